"""Tiny text and vision encoders with random weights, built locally, for the quick start and the tests.

They are no pretrained models: what they know, they learn from the catalogue they are trained on.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece
from transformers import BertConfig, BertModel, ConvNextConfig, ConvNextModel, PreTrainedTokenizerFast
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from mmfusion.data.toy_catalogue import begin_folder, write_record
from mmfusion.data.toy_photos import PHOTO_SIZE
from mmfusion.data.toy_words import all_words
from mmfusion.files import whole_folder

MAX_TOKENS: Final = 64
_SPECIAL_TOKENS: Final = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_VERSION: Final = 1


@dataclass(frozen=True)
class ToyEncoders:
    """Folders that transformers' Auto classes load from.

    Attributes:
        text: Text encoder and its tokenizer.
        vision: Vision encoder and its image processor.
    """

    text: Path
    vision: Path


def write_toy_encoders(folder: str | os.PathLike[str], *, seed: int = 0) -> ToyEncoders:
    """Writes a BERT of 2 layers with its tokenizer and a ConvNeXt of 3 blocks with its image processor, both 64 wide.

    The image encoder's ``last_hidden_state`` is a map of [batch, 64, 8, 8] for photos of 64 x 64 pixels.

    Weights are random, drawn from ``seed`` without touching torch's global generator. A complete folder written with
    the same seed is left as it is.

    Args:
        folder: Output folder; made if missing. Gets the subfolders ``text`` and ``vision``.
        seed: At least 0.

    Returns:
        The two subfolders.

    Raises:
        ValueError: The seed is negative, or the folder was written with another one.
        FileExistsError: The folder holds encoders that were not written by this function.
        NotADirectoryError: ``folder`` is a file.
    """
    folder = Path(folder)
    backbones = ToyEncoders(folder / "text", folder / "vision")
    arguments = {"embedded_backbones": _VERSION, "seed": seed}
    if begin_folder(folder, arguments, ("text", "vision")):
        return backbones
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with whole_folder(backbones.text, files=None, overwrite=True) as new:
            _save_text_encoder(new)
        torch.manual_seed(seed + 1)
        with whole_folder(backbones.vision, files=None, overwrite=True) as new:
            _save_vision_encoder(new)
    write_record(folder, arguments, complete=True)
    return backbones


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer that knows the catalogue's words and spells other ASCII words letter by letter.

    Anything else (emoji, Chinese, Arabic, ...) becomes ``[UNK]``.
    """
    characters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    pieces = [*_SPECIAL_TOKENS, *characters, *(f"##{c}" for c in characters if c.isalnum()), *all_words()]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=40))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=MAX_TOKENS,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def _save_text_encoder(folder: Path) -> None:
    tokenizer = build_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=MAX_TOKENS,
        pad_token_id=tokenizer.pad_token_id,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _save_vision_encoder(folder: Path) -> None:
    # A ConvNeXt, because it learns colours and patterns from a thousand photos in fewer steps than a ViT of this size,
    # and because it has no BatchNorm, whose statistics would stay frozen at their meaningless start values.
    # A layer scale of 1e-6 and weights of 0.02, the defaults, are made for deep networks and long training.
    config = ConvNextConfig(
        image_size=PHOTO_SIZE,
        patch_size=4,
        num_stages=2,
        hidden_sizes=[32, 64],
        depths=[1, 2],
        layer_scale_init_value=1.0,
        initializer_range=0.1,
    )
    ConvNextModel(config).save_pretrained(folder)
    # Not ConvNeXt's own processor: that one crops.
    ViTImageProcessorPil(
        size={"height": PHOTO_SIZE, "width": PHOTO_SIZE}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(folder)
