"""Tiny tokenizers of the real classes, whose vocabularies are made by hand."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import transformers as tf
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

_SEEN = (
    "red blue green floral summer dress mug hand made jacket denim cotton shirt xl a the large small shoe leather "
    "black white silk wool query passage search title none text"
)
WORDS = _SEEN.split()
CHARACTERS = list(string.ascii_lowercase + string.digits + "-,.:|'/%")
CHINESE = list("红色连衣裙夏季")
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
LONGEST = 40  # tokens


def _numbered(tokens: list[str]) -> dict[str, int]:
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}


def _word_pieces(*special: str, last: tuple[str, ...] = ()) -> dict[str, int]:
    pieces = WORDS + CHARACTERS + [f"##{character}" for character in CHARACTERS] + CHINESE
    return _numbered([*special, *pieces, *last])


def _unigrams(*special: str, last: tuple[str, ...] = ()) -> list[tuple[str, float]]:
    scored = [(token, 0.0) for token in special]
    scored += [(f"▁{word}", -2.0) for word in WORDS if len(word) > 1] + [("▁", -3.0)]
    scored += [(character, -5.0) for character in CHARACTERS + CHINESE]
    return scored + [(token, 0.0) for token in last]


def bert() -> Any:
    return tf.BertTokenizer(vocab=_word_pieces("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), model_max_length=LONGEST)


def mpnet() -> Any:
    return tf.MPNetTokenizer(
        vocab=_word_pieces("<s>", "<pad>", "</s>", "[UNK]", last=("<mask>",)), model_max_length=LONGEST
    )


def xlm_roberta() -> Any:
    vocabulary = _unigrams("<s>", "<pad>", "</s>", "<unk>", last=("<mask>",))
    return tf.XLMRobertaTokenizer(vocab=vocabulary, model_max_length=LONGEST)


def t5() -> Any:
    return tf.T5Tokenizer(vocab=_unigrams("<pad>", "</s>", "<unk>"), extra_ids=0, model_max_length=LONGEST)


def albert() -> Any:
    vocabulary = _unigrams("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")
    return tf.AlbertTokenizer(vocab=vocabulary, model_max_length=LONGEST)


def deberta_v2() -> Any:
    vocabulary = _unigrams("[PAD]", "[UNK]", "[CLS]", "[SEP]", last=("[MASK]",))
    return tf.DebertaV2Tokenizer(vocab=vocabulary, model_max_length=LONGEST)


def clip() -> Any:
    tokens = [*BYTES, *(f"{byte}</w>" for byte in BYTES), "<|startoftext|>", "<|endoftext|>"]
    return tf.CLIPTokenizer(vocab=_numbered(tokens), merges=[], model_max_length=LONGEST)


def roberta() -> Any:
    vocabulary = _numbered(["<s>", "<pad>", "</s>", "<unk>", *BYTES, "<mask>"])
    return tf.RobertaTokenizer(vocab=vocabulary, merges=[], model_max_length=LONGEST)


def qwen(*, ends: bool = True) -> Any:
    """Qwen's tokenizer; with `ends` it closes each text with an end token, as Qwen3-Embedding's does."""
    end = "<|endoftext|>"
    vocabulary = _numbered([*BYTES, end, "<|im_start|>", "<|im_end|>"])
    tokenizer = tf.Qwen2Tokenizer(vocab=vocabulary, merges=[], model_max_length=LONGEST, padding_side="left")
    if ends:
        template = processors.TemplateProcessing(
            single=f"$A:0 {end}:0", pair=f"$A:0 {end}:0 $B:0 {end}:0", special_tokens=[(end, vocabulary[end])]
        )
        parts = [processors.ByteLevel(trim_offsets=False), template]
        tokenizer.backend_tokenizer.post_processor = processors.Sequence(parts)
    return tokenizer


def gpt2() -> Any:
    """GPT-2's tokenizer, which has no padding token of its own and adds no token to a text."""
    tokenizer = tf.GPT2Tokenizer(vocab=_numbered([*BYTES, "<|endoftext|>"]), merges=[], model_max_length=LONGEST)
    tokenizer.pad_token = "<|endoftext|>"
    return tokenizer


def gemma(longest: int = 2048) -> Any:
    """Gemma's tokenizer with the start and end tokens that EmbeddingGemma's adds."""
    tokenizer = tf.GemmaTokenizer(vocab=_gemma_vocabulary(), merges=[], model_max_length=longest)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", pair="<bos> $A <eos> $B <eos>", special_tokens=[("<bos>", 2), ("<eos>", 1)]
    )
    return tokenizer


def siglip2() -> Any:
    return tf.Siglip2Tokenizer(vocab=_gemma_vocabulary(), merges=[], model_max_length=64, padding_side="right")


def _gemma_vocabulary() -> dict[str, int]:
    unseen = [f"<0x{number:02X}>" for number in range(256)]
    return _numbered(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *CHARACTERS, *unseen])


def modernbert() -> Any:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.BPE(vocab=_numbered([*special, *BYTES]), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    return tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=LONGEST, **names)


def siglip(folder: Path) -> Any:
    """SigLIP's tokenizer, which is a SentencePiece model and has no other form; its file is trained in `folder`."""
    import sentencepiece

    lines = [" ".join(WORDS[start : start + 6]) for start in range(len(WORDS))] * 30
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(folder / "spiece"),
        vocab_size=80,
        pad_id=-1,
        bos_id=-1,
        eos_id=1,
        unk_id=0,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    tokenizer = tf.SiglipTokenizer(vocab_file=str(folder / "spiece.model"))
    (folder / "spiece.vocab").unlink()
    return tokenizer


def longer_than_its_table() -> Any:
    """BERT's tokenizer with tokens that were added, and no embeddings for them."""
    tokenizer = bert()
    tokenizer.add_tokens([AddedToken(f"sku{number}") for number in range(10)])
    return tokenizer
