"""A family's own features, computed with transformers or sentence-transformers alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from families.family import PhotoFeatures, TextFeatures

# Of the output of an encoder for a batch of one, without padding: (1, width).
Pool = Callable[[Any], Tensor]
Pixels = Callable[[Path, list[Image.Image]], dict[str, Tensor]]


def first(output: Any) -> Tensor:
    return output.last_hidden_state[:, 0]


def last(output: Any) -> Tensor:
    return output.last_hidden_state[:, -1]


def mean(output: Any) -> Tensor:
    return output.last_hidden_state.mean(1)


def pooler(output: Any) -> Tensor:
    return output.pooler_output.flatten(1)


def grid(output: Any) -> Tensor:
    """Mean over a feature map (1, width, height, width)."""
    return output.last_hidden_state.flatten(2).mean(2)


def patches(output: Any) -> Tensor:
    """Mean over all states but the class token's."""
    return output.last_hidden_state[:, 1:].mean(1)


def projected(name: str) -> Pool:
    return lambda output: getattr(output, name)


def of_texts(model_class: Any, pool: Pool, **loading: Any) -> TextFeatures:
    """Each text by itself through `model_class`."""

    def features(folder: Path, texts: list[str]) -> Tensor:
        model = model_class.from_pretrained(folder, **loading).eval()
        return torch.cat([pool(model(**text_tokens(folder, text))) for text in texts])

    return _without_gradients(features)


def of_photos(model_class: Any, pool: Pool, pixels: Pixels | None = None, **loading: Any) -> PhotoFeatures:
    """Each photo by itself through `model_class`."""
    read = pixels or processed

    def features(folder: Path, photos: list[Image.Image]) -> Tensor:
        model = model_class.from_pretrained(folder, **loading).eval()
        return torch.cat([pool(model(**read(folder, [photo]))) for photo in photos])

    return _without_gradients(features)


def dual_texts(model_class: Any, *, full_length: int | None = None, **loading: Any) -> TextFeatures:
    """Each text by itself through `get_text_features`; with `full_length` padded to it, and without a mask."""

    def features(folder: Path, texts: list[str]) -> Tensor:
        model = model_class.from_pretrained(folder, **loading).eval()
        found = []
        for text in texts:
            tokens = text_tokens(folder, text, full_length)
            if full_length is not None:
                tokens = {"input_ids": tokens["input_ids"]}
            found.append(_pooled(model.get_text_features(**tokens)))
        return torch.cat(found)

    return _without_gradients(features)


def dual_photos(model_class: Any, pixels: Pixels | None = None) -> PhotoFeatures:
    """Each photo by itself through `get_image_features`."""
    read = pixels or processed

    def features(folder: Path, photos: list[Image.Image]) -> Tensor:
        model = model_class.from_pretrained(folder).eval()
        return torch.cat([_pooled(model.get_image_features(**read(folder, [photo]))) for photo in photos])

    return _without_gradients(features)


def sentence_transformers(prompt: str) -> TextFeatures:
    """Each text by itself through sentence-transformers, behind the prompt of this name if the folder has it."""

    def features(folder: Path, texts: list[str]) -> Tensor:
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(folder), device="cpu")
        name = prompt if prompt in model.prompts else None
        encoded = [model.encode([text], prompt_name=name, show_progress_bar=False) for text in texts]
        return torch.from_numpy(np.concatenate(encoded))

    return features


def processed(folder: Path, photos: list[Image.Image]) -> dict[str, Tensor]:
    """What the checkpoint's own image processor gives."""
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    given = processor(images=photos, return_tensors=None)
    return {name: torch.as_tensor(np.stack([np.ascontiguousarray(one) for one in given[name]])) for name in given}


def by_hand(mean: list[float], deviation: list[float], size: int) -> Pixels:
    """Resized bilinearly, scaled and normalised, for processors that exist for torchvision alone."""

    def pixels(folder: Path, photos: list[Image.Image]) -> dict[str, Tensor]:
        resized = [np.asarray(photo.resize((size, size), Image.Resampling.BILINEAR), np.float32) for photo in photos]
        scaled = (np.stack(resized) / 255 - np.float32(mean)) / np.float32(deviation)
        return {"pixel_values": torch.from_numpy(scaled.transpose(0, 3, 1, 2).copy())}

    return pixels


def text_tokens(folder: Path, text: str, full_length: int | None = None) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask` (1, length) of a text, padded to `full_length` if it is given."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    padding = {} if full_length is None else {"padding": "max_length", "max_length": full_length}
    tokens = tokenizer([text], return_tensors="pt", truncation=True, **padding)
    # Some encoders take no segments; where there is one segment alone, they say nothing.
    return {name: tokens[name] for name in ("input_ids", "attention_mask") if name in tokens}


def _pooled(features: Any) -> Tensor:
    return features if isinstance(features, Tensor) else features.pooler_output


def _without_gradients(features: Any) -> Any:
    def run(*arguments: Any) -> Tensor:
        with torch.no_grad():
            return features(*arguments)

    return run
