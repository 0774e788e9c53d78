"""Folders of sentence-transformers, which say themselves how they pool, prompt and project."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from safetensors.torch import save_file

from families import vocabularies
from families.family import WIDTH, family, save, write_json
from families.features import sentence_transformers
from families.text_encoders import gemma3, sizes
from families.vision_encoders import CLIP_PROCESSOR

Layer = tuple[int, int, str]  # Dense: width in, width out, name of torch's activation
_MODULES = "sentence_transformers.models"
_OLD_NAMES = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens", "lasttoken": "lasttoken"}
_ENCODES: dict[str, Any] = {
    "queries": sentence_transformers("query"),
    "titles": sentence_transformers("document"),
    "needs": ("sentence_transformers",),
}


def write_sentence_files(
    folder: Path,
    pooling: str,
    *,
    prompts: dict[str, str] | None = None,
    dense: Sequence[Layer] = (),
    normalize: bool = True,
    encoder: str = "",
    newest: bool = False,
    lower_case: bool = False,
    longest: int | None = None,
) -> None:
    """Writes what sentence-transformers puts next to an encoder.

    Args:
        folder: Of the checkpoint.
        pooling: Name in newer versions: `cls`, `mean`, `max`, `lasttoken`.
        prompts: By name of the side.
        dense: Layers between pooling and normalisation.
        normalize: Whether vectors get length 1.
        encoder: Folder of the encoder within; empty: the checkpoint's own.
        newest: Whether the pooling is written as by sentence-transformers 6.
        lower_case: Whether texts are put in lower case.
        longest: Length of texts in tokens, if it is given.
    """
    names = [("Transformer", encoder), ("Pooling", "1_Pooling")]
    names += [("Dense", f"{2 + number}_Dense") for number in range(len(dense))]
    names += [("Normalize", f"{2 + len(dense)}_Normalize")] if normalize else []
    modules = [
        {"idx": place, "name": str(place), "path": path, "type": f"{_MODULES}.{name}"}
        for place, (name, path) in enumerate(names)
    ]
    write_json(folder / "modules.json", modules)
    old = {f"pooling_mode_{name}": mode == pooling for mode, name in _OLD_NAMES.items()}
    pools = (
        {"embedding_dimension": WIDTH, "pooling_mode": pooling}
        if newest
        else {"word_embedding_dimension": WIDTH, **old}
    )
    write_json(folder / "1_Pooling" / "config.json", pools)
    for number, (width, out, activation) in enumerate(dense):
        kind = f"torch.nn.modules.{'linear' if activation == 'Identity' else 'activation'}.{activation}"
        fields = {"in_features": width, "out_features": out, "bias": True, "activation_function": kind}
        write_json(folder / f"{2 + number}_Dense" / "config.json", fields)
        weights = {"linear.weight": torch.randn(out, width) * 0.3, "linear.bias": torch.randn(out) * 0.3}
        save_file(weights, folder / f"{2 + number}_Dense" / "model.safetensors")
    settings = {"prompts": prompts or {}, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    write_json(folder / "config_sentence_transformers.json", settings)
    if longest is not None or lower_case:
        limits = {"max_seq_length": longest, "do_lower_case": lower_case}
        write_json(folder / encoder / "sentence_bert_config.json", limits)


def _bert(folder: Path) -> None:
    tokenizer = vocabularies.bert()
    save(folder, tf.BertModel(tf.BertConfig(**sizes(tokenizer))), tokenizer)


@family("all-MiniLM (sentence-transformers)", text="mean over tokens", **_ENCODES, common=True)
def minilm(folder: Path) -> None:
    _bert(folder)
    write_sentence_files(folder, "mean", longest=24)


@family("BGE (sentence-transformers)", text="first token", **_ENCODES, common=True)
def bge(folder: Path) -> None:
    _bert(folder)
    write_sentence_files(folder, "cls", prompts={"query": "search query: "}, lower_case=True)


@family("BGE-M3 (sentence-transformers)", text="first token", **_ENCODES)
def bge_m3(folder: Path) -> None:
    tokenizer = vocabularies.xlm_roberta()
    save(folder, tf.XLMRobertaModel(tf.XLMRobertaConfig(**sizes(tokenizer))), tokenizer)
    write_sentence_files(folder, "cls", newest=True)


# encode_document of sentence-transformers 6 passes over a prompt called passage, with which E5 was trained.
@family(
    "E5 (sentence-transformers)",
    text="mean over tokens",
    **{**_ENCODES, "titles": sentence_transformers("passage")},
    common=True,
)
def e5(folder: Path) -> None:
    _bert(folder)
    write_sentence_files(folder, "mean", prompts={"query": "query: ", "passage": "passage: "}, newest=True)


@family("all-mpnet (sentence-transformers)", text="mean over tokens", **_ENCODES)
def all_mpnet(folder: Path) -> None:
    tokenizer = vocabularies.mpnet()
    save(folder, tf.MPNetModel(tf.MPNetConfig(**sizes(tokenizer, pad_token_id=1))), tokenizer)
    write_sentence_files(folder, "mean")


@family("GTE-ModernBERT (sentence-transformers)", text="first token", **_ENCODES)
def gte_modernbert(folder: Path) -> None:
    tokenizer = vocabularies.modernbert()
    ends = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
    config = tf.ModernBertConfig(**sizes(tokenizer, **ends), local_attention=8, global_attn_every_n_layers=2)
    save(folder, tf.ModernBertModel(config), tokenizer)
    write_sentence_files(folder, "cls", newest=True)


@family(
    "Nomic embed (sentence-transformers)",
    text="mean over tokens",
    **_ENCODES,
)
def nomic_embed(folder: Path) -> None:
    tokenizer = vocabularies.bert()
    save(folder, tf.NomicBertModel(tf.NomicBertConfig(**sizes(tokenizer))), tokenizer)
    write_sentence_files(folder, "mean", prompts={"query": "search_query: ", "document": "search_document: "})


@family("LaBSE: a dense layer with tanh (sentence-transformers)", text="first token, dense layer, tanh", **_ENCODES)
def labse(folder: Path) -> None:
    _bert(folder)
    write_sentence_files(folder, "cls", dense=[(WIDTH, WIDTH, "Tanh")])


@family(
    "distiluse: narrower, in a folder of its own (sentence-transformers)",
    text="mean over tokens, dense layer to another width, tanh",
    **_ENCODES,
)
def distiluse(folder: Path) -> None:
    tokenizer = vocabularies.bert()
    config = tf.DistilBertConfig(
        vocab_size=len(tokenizer), dim=WIDTH, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=48
    )
    inner = folder / "0_Transformer"
    inner.mkdir()
    save(inner, tf.DistilBertModel(config), tokenizer)
    write_sentence_files(folder, "mean", dense=[(WIDTH, 24, "Tanh")], normalize=False, encoder="0_Transformer")


@family("A folder that takes the largest of each component (sentence-transformers)", text="max", **_ENCODES)
def max_pooled(folder: Path) -> None:
    _bert(folder)
    write_sentence_files(folder, "max")


@family("sentence-t5 (sentence-transformers)", text="mean over tokens, dense layer", **_ENCODES)
def sentence_t5(folder: Path) -> None:
    tokenizer = vocabularies.t5()
    config = tf.T5Config(vocab_size=len(tokenizer), d_model=WIDTH, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    save(folder, tf.T5EncoderModel(config), tokenizer)
    write_sentence_files(folder, "mean", dense=[(WIDTH, WIDTH, "Identity")])


@family("Qwen3-Embedding (sentence-transformers)", text="last token", **_ENCODES, common=True)
def qwen3_embedding(folder: Path) -> None:
    tokenizer = vocabularies.qwen()
    ends = {"bos_token_id": 256, "eos_token_id": 256, "pad_token_id": None}
    config = tf.Qwen3Config(**sizes(tokenizer, **ends), num_key_value_heads=2, head_dim=8)
    save(folder, tf.Qwen3Model(config), tokenizer)
    prompts = {"query": "Instruct: find it\nQuery:", "document": ""}
    write_sentence_files(folder, "lasttoken", prompts=prompts)


@family("EmbeddingGemma (sentence-transformers)", text="mean over tokens, two dense layers", **_ENCODES, common=True)
def embedding_gemma(folder: Path) -> None:
    tokenizer = vocabularies.gemma()
    save(folder, gemma3(tokenizer), tokenizer)
    prompts = {"query": "task: search result | query: ", "document": "title: none | text: "}
    dense = [(WIDTH, 48, "Identity"), (48, WIDTH, "Identity")]
    write_sentence_files(folder, "mean", prompts=prompts, dense=dense)


@family("CLIP in a folder of sentence-transformers", text="end token, its own projection", **_ENCODES)
def clip_sentence_transformers(folder: Path) -> None:
    tokenizer = vocabularies.clip()
    text = sizes(
        tokenizer,
        max_position_embeddings=vocabularies.LONGEST,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = {**sizes(tokenizer), "image_size": 32, "patch_size": 8}
    inner = folder / "0_CLIPModel"
    inner.mkdir()
    config = tf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=20)
    save(inner, tf.CLIPModel(config), tokenizer, CLIP_PROCESSOR)
    write_json(inner / "processor_config.json", {"processor_class": "CLIPProcessor"})
    modules = [{"idx": 0, "name": "0", "path": "0_CLIPModel", "type": f"{_MODULES}.CLIPModel"}]
    write_json(folder / "modules.json", modules)
