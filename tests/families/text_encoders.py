"""Text encoders as they lie on the Hub without a word from sentence-transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers as tf

from families import vocabularies
from families.family import TRANSFORMER, WIDTH, family, save
from families.features import first, last, mean, of_texts

UNKNOWN = "mean over tokens, as nothing says how it was trained; a warning lists the choices"
AVERAGED = "mean over tokens"
CLASS_TOKEN = "first token"
LAST_TOKEN = "last token"
ENCODER = "mean over tokens of the encoder half; the decoder is not loaded"


def sizes(tokenizer: Any, **fields: Any) -> dict[str, Any]:
    """Fields of a text config: a tiny transformer with an embedding for every token."""
    return {**TRANSFORMER, "vocab_size": len(tokenizer) + 4, "max_position_embeddings": 48, **fields}


@family("BERT", text=UNKNOWN, queries=of_texts(tf.BertModel, mean), hinted=False, common=True)
def bert(folder: Path) -> None:
    tokenizer = vocabularies.bert()
    save(folder, tf.BertModel(tf.BertConfig(**sizes(tokenizer))), tokenizer)


@family("BERT, saved with its masked-language head", text=UNKNOWN, queries=of_texts(tf.BertModel, mean), hinted=False)
def bert_masked_lm(folder: Path) -> None:
    tokenizer = vocabularies.bert()
    save(folder, tf.BertForMaskedLM(tf.BertConfig(**sizes(tokenizer))), tokenizer)


@family("RoBERTa", text=UNKNOWN, queries=of_texts(tf.RobertaModel, mean), hinted=False)
def roberta(folder: Path) -> None:
    tokenizer = vocabularies.roberta()
    save(folder, tf.RobertaModel(tf.RobertaConfig(**sizes(tokenizer))), tokenizer)


@family("XLM-RoBERTa", text=UNKNOWN, queries=of_texts(tf.XLMRobertaModel, mean), hinted=False)
def xlm_roberta(folder: Path) -> None:
    tokenizer = vocabularies.xlm_roberta()
    save(folder, tf.XLMRobertaModel(tf.XLMRobertaConfig(**sizes(tokenizer))), tokenizer)


@family("MPNet", text=UNKNOWN, queries=of_texts(tf.MPNetModel, mean), hinted=False)
def mpnet(folder: Path) -> None:
    tokenizer = vocabularies.mpnet()
    save(folder, tf.MPNetModel(tf.MPNetConfig(**sizes(tokenizer, pad_token_id=1))), tokenizer)


@family("DistilBERT", text=UNKNOWN, queries=of_texts(tf.DistilBertModel, mean), hinted=False)
def distilbert(folder: Path) -> None:
    tokenizer = vocabularies.bert()
    config = tf.DistilBertConfig(
        vocab_size=len(tokenizer), dim=WIDTH, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=48
    )
    save(folder, tf.DistilBertModel(config), tokenizer)


@family("ALBERT", text=UNKNOWN, queries=of_texts(tf.AlbertModel, mean), hinted=False)
def albert(folder: Path) -> None:
    tokenizer = vocabularies.albert()
    save(folder, tf.AlbertModel(tf.AlbertConfig(**sizes(tokenizer, embedding_size=16))), tokenizer)


@family("ELECTRA", text=UNKNOWN, queries=of_texts(tf.ElectraModel, mean), hinted=False)
def electra(folder: Path) -> None:
    tokenizer = vocabularies.bert()
    save(folder, tf.ElectraModel(tf.ElectraConfig(**sizes(tokenizer, embedding_size=16))), tokenizer)


@family("DeBERTa v3", text=UNKNOWN, queries=of_texts(tf.DebertaV2Model, mean), hinted=False)
def deberta_v3(folder: Path) -> None:
    tokenizer = vocabularies.deberta_v2()
    config = tf.DebertaV2Config(
        **sizes(tokenizer),
        relative_attention=True,
        position_buckets=8,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        max_relative_positions=-1,
    )
    save(folder, tf.DebertaV2Model(config), tokenizer)


_ENDS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}


@family("ModernBERT", text=UNKNOWN, queries=of_texts(tf.ModernBertModel, mean), hinted=False)
def modernbert(folder: Path) -> None:
    tokenizer = vocabularies.modernbert()
    config = tf.ModernBertConfig(
        **sizes(tokenizer, cls_token_id=2, sep_token_id=3, **_ENDS), local_attention=8, global_attn_every_n_layers=2
    )
    save(folder, tf.ModernBertModel(config), tokenizer)


@family("EuroBERT", text=UNKNOWN, queries=of_texts(tf.EuroBertModel, mean), hinted=False)
def eurobert(folder: Path) -> None:
    tokenizer = vocabularies.modernbert()
    save(folder, tf.EuroBertModel(tf.EuroBertConfig(**sizes(tokenizer, mask_token_id=4, **_ENDS))), tokenizer)


@family("Nomic-BERT", text=AVERAGED, queries=of_texts(tf.NomicBertModel, mean))
def nomic_bert(folder: Path) -> None:
    tokenizer = vocabularies.bert()
    save(folder, tf.NomicBertModel(tf.NomicBertConfig(**sizes(tokenizer))), tokenizer)


if hasattr(tf, "GteModel"):  # not in the oldest transformers that we admit

    @family("GTE (the newer ones)", text=CLASS_TOKEN, queries=of_texts(tf.GteModel, first))
    def gte(folder: Path) -> None:
        tokenizer = vocabularies.xlm_roberta()
        save(folder, tf.GteModel(tf.GteConfig(**sizes(tokenizer))), tokenizer)


@family("Jina embeddings v3", text=AVERAGED, queries=of_texts(tf.JinaEmbeddingsV3Model, mean))
def jina_embeddings_v3(folder: Path) -> None:
    tokenizer = vocabularies.xlm_roberta()
    save(folder, tf.JinaEmbeddingsV3Model(tf.JinaEmbeddingsV3Config(**sizes(tokenizer))), tokenizer)


@family("Longformer", text=UNKNOWN, queries=of_texts(tf.LongformerModel, mean), hinted=False, exports=False)
def longformer(folder: Path) -> None:
    tokenizer = vocabularies.roberta()
    config = tf.LongformerConfig(**sizes(tokenizer, max_position_embeddings=66), attention_window=[8, 8])
    save(folder, tf.LongformerModel(config), tokenizer)


_T5: dict[str, Any] = {"d_model": WIDTH, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}


@family(
    "T5 encoder (sentence-t5, GTR)",
    text=AVERAGED,
    queries=of_texts(tf.T5EncoderModel, mean),
    common=True,
)
def t5_encoder(folder: Path) -> None:
    tokenizer = vocabularies.t5()
    save(folder, tf.T5EncoderModel(tf.T5Config(vocab_size=len(tokenizer), **_T5)), tokenizer)


@family("T5 with its decoder", text=ENCODER, queries=of_texts(tf.T5EncoderModel, mean))
def t5(folder: Path) -> None:
    tokenizer = vocabularies.t5()
    save(folder, tf.T5ForConditionalGeneration(tf.T5Config(vocab_size=len(tokenizer), **_T5)), tokenizer)


@family("mT5 with its decoder", text=ENCODER, queries=of_texts(tf.MT5EncoderModel, mean))
def mt5(folder: Path) -> None:
    tokenizer = vocabularies.t5()
    config = tf.MT5Config(vocab_size=len(tokenizer), tie_word_embeddings=False, **_T5)
    save(folder, tf.MT5ForConditionalGeneration(config), tokenizer)


@family("UMT5 with its decoder", text=ENCODER, queries=of_texts(tf.UMT5EncoderModel, mean))
def umt5(folder: Path) -> None:
    tokenizer = vocabularies.t5()
    save(folder, tf.UMT5ForConditionalGeneration(tf.UMT5Config(vocab_size=len(tokenizer), **_T5)), tokenizer)


# Their attention adds the least float64 to scores and takes the softmax in float32, where that is -inf: a window that
# holds padding alone gives NaN.
_SINGLE: dict[str, Any] = {"double": False, "note": "transformers gives NaN for padding in double precision"}


@family(
    "T5Gemma with its decoder",
    text=ENCODER,
    queries=of_texts(tf.T5GemmaEncoderModel, mean, is_encoder_decoder=False),
    **_SINGLE,
)
def t5gemma(folder: Path) -> None:
    tokenizer = vocabularies.gemma()
    half = {**sizes(tokenizer), "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8}
    config = tf.T5GemmaConfig(encoder=dict(half), decoder=dict(half), vocab_size=half["vocab_size"])
    save(folder, tf.T5GemmaForConditionalGeneration(config), tokenizer)


_GROUPED: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 8}


@family("Qwen3 (Qwen3-Embedding)", text=LAST_TOKEN, queries=of_texts(tf.Qwen3Model, last), common=True)
def qwen3(folder: Path) -> None:
    tokenizer = vocabularies.qwen()
    config = tf.Qwen3Config(**sizes(tokenizer, bos_token_id=256, eos_token_id=256, pad_token_id=None), **_GROUPED)
    save(folder, tf.Qwen3Model(config), tokenizer)


@family("Mistral (e5-mistral)", text=LAST_TOKEN, queries=of_texts(tf.MistralModel, last))
def mistral(folder: Path) -> None:
    tokenizer = vocabularies.qwen()
    save(folder, tf.MistralModel(tf.MistralConfig(**sizes(tokenizer), **_GROUPED, sliding_window=None)), tokenizer)


@family("Llama", text=LAST_TOKEN, queries=of_texts(tf.LlamaModel, last))
def llama(folder: Path) -> None:
    tokenizer = vocabularies.qwen()
    save(folder, tf.LlamaModel(tf.LlamaConfig(**sizes(tokenizer), **_GROUPED)), tokenizer)


@family("Llama, saved with its language head", text=LAST_TOKEN, queries=of_texts(tf.LlamaModel, last))
def llama_causal_lm(folder: Path) -> None:
    tokenizer = vocabularies.qwen()
    save(folder, tf.LlamaForCausalLM(tf.LlamaConfig(**sizes(tokenizer), **_GROUPED)), tokenizer)


@family("Gemma 2", text=LAST_TOKEN, queries=of_texts(tf.Gemma2Model, last), **_SINGLE)
def gemma2(folder: Path) -> None:
    tokenizer = vocabularies.gemma()
    save(folder, tf.Gemma2Model(tf.Gemma2Config(**sizes(tokenizer), **_GROUPED, sliding_window=8)), tokenizer)


@family("GPT-2", text=LAST_TOKEN, queries=of_texts(tf.GPT2Model, last))
def gpt2(folder: Path) -> None:
    tokenizer = vocabularies.gpt2()
    end = tokenizer.eos_token_id
    ends = {"bos_token_id": end, "eos_token_id": end}
    config = tf.GPT2Config(vocab_size=len(tokenizer), n_positions=48, n_embd=WIDTH, n_layer=2, n_head=4, **ends)
    save(folder, tf.GPT2Model(config), tokenizer)


def gemma3(tokenizer: Any) -> tf.PreTrainedModel:
    """The encoder of EmbeddingGemma: Gemma 3 that reads both ways."""
    config = tf.Gemma3TextConfig(
        **sizes(tokenizer, pad_token_id=0, eos_token_id=1, bos_token_id=2),
        **_GROUPED,
        use_bidirectional_attention=True,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
    )
    return tf.Gemma3TextModel(config)


@family(
    "EmbeddingGemma without its sentence-transformers files",
    text="mean over tokens, as it reads both ways",
    queries=of_texts(tf.Gemma3TextModel, mean),
)
def embedding_gemma_encoder(folder: Path) -> None:
    tokenizer = vocabularies.gemma()
    save(folder, gemma3(tokenizer), tokenizer)


if hasattr(tf, "EmbeddingGemma2TextModel"):  # not in the oldest transformers that we admit

    @family(
        "EmbeddingGemma 2 (text)",
        text="mean over tokens, after its own projection",
        queries=of_texts(tf.EmbeddingGemma2TextModel, mean),
    )
    def embedding_gemma2(folder: Path) -> None:
        tokenizer = vocabularies.gemma()
        config = tf.EmbeddingGemma2TextConfig(
            **sizes(tokenizer),
            **_GROUPED,
            global_head_dim=8,
            num_global_key_value_heads=1,
            hidden_size_per_layer_input=8,
            embedding_dim=24,
            sliding_window=8,
        )
        save(folder, tf.EmbeddingGemma2TextModel(config), tokenizer)
