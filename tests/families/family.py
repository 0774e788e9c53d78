"""What a family of the matrix is, and how its tiny checkpoint is laid out in a folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel

WIDTH = 32
IMAGE = 32  # pixels, height and width
TRANSFORMER: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
VISION: dict[str, Any] = {**TRANSFORMER, "image_size": IMAGE, "patch_size": 8}

TextFeatures = Callable[[Path, list[str]], Tensor]
PhotoFeatures = Callable[[Path, list[Image.Image]], Tensor]


@dataclass(frozen=True)
class Family:
    """One row of the matrix.

    Attributes:
        name: A word for tests and data.
        title: What readers know it as.
        build: Writes its tiny checkpoint into a folder that exists.
        text, photo: In words, how it was trained to make one vector; empty if the family has no such half.
        queries, photos: Its own features, (texts or photos, width) float.
        titles: The same for product texts, where they have another prompt; None: as queries.
        refused: Pattern of the one line with which it is refused; empty: it is taken.
        needs: Modules without which it cannot be tried.
        common: Whether it is used so much that it is tried in every run of the tests.
        hinted: Whether its checkpoint tells how to pool. Where it does not, there must be a warning.
        double: Whether it can be tried in float64.
        exports: Whether PyTorch can export it to ONNX.
        note: What readers should know besides.
    """

    name: str
    title: str
    build: Callable[[Path], None]
    text: str = ""
    photo: str = ""
    queries: TextFeatures | None = None
    photos: PhotoFeatures | None = None
    titles: TextFeatures | None = None
    refused: str = ""
    needs: tuple[str, ...] = ()
    common: bool = False
    hinted: bool = True
    double: bool = True
    exports: bool = True
    note: str = ""

    @property
    def halves(self) -> tuple[bool, bool]:
        """Whether it gives a text encoder and a vision encoder."""
        return bool(self.text), bool(self.photo)


FAMILIES: dict[str, Family] = {}


def family(title: str, **fields: Any) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """Enters the function that builds a checkpoint into [`FAMILIES`] under its own name."""

    def enter(build: Callable[[Path], None]) -> Callable[[Path], None]:
        FAMILIES[build.__name__] = Family(build.__name__, title, build, **fields)
        return build

    return enter


def save(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: Any = None,
    image_processor: dict[str, Any] | None = None,
    files: Iterable[tuple[str, Any]] = (),
) -> None:
    """Writes a checkpoint as it lies on the Hub; weights are enlarged, so that wrong pooling shows."""
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim >= 2:
                value.add_(torch.randn_like(value) * 0.15)
    _settle_batch_norm(model)
    model.eval().save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    if image_processor is not None:
        write_json(folder / "preprocessor_config.json", image_processor)
    for name, content in files:
        write_json(folder / name, content)


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content), "utf-8")


def _settle_batch_norm(model: PreTrainedModel) -> None:
    """Gives BatchNorm layers statistics of noise; with those of new layers the signal fades away over the blocks."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.normal_(norm.weight, 1.0, 0.1)
    if not norms or hasattr(model, "text_model"):
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    size = getattr(model.config, "image_size", None) or IMAGE
    height, width = (size, size) if isinstance(size, int) else size
    with torch.no_grad():
        model.train()(torch.randn(8, 3, height, width))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
