"""What is measured of a family: its own features, batches, a saved folder, a training step and ONNX."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from families import FAMILIES
from families.family import Family
from families.vocabularies import WORDS
from mmfusion import MMFusionModel, MMFusionProcessor

SMALL = {"fusion_hidden_size": 16, "fusion_heads": 2, "fusion_layers": 1, "fusion_latents": 2}
PARTNERS = {"text": "minilm", "photo": "vit"}

LEAST_COSINE = 0.9999
LEAST_RANK_CORRELATION = 0.995
BATCH = {"float32": 1e-6, "float64": 1e-10}  # largest 1 - cosine
ONNX = 1e-4
SLOW = ("training", "onnx")

Result = dict[str, Any]


def texts(count: int = 8) -> list[str]:
    """Texts of one to three words."""
    return [" ".join(WORDS[(5 * row + 3 * place) % 20] for place in range(1 + row % 3)) for row in range(count)]


LONG = "large black leather shoe for summer made of cotton"


def photos(count: int = 6, height: int = 32, width: int = 32) -> list[Image.Image]:
    """Photos that differ in more than noise."""
    drawn = []
    for number in range(count):
        random = np.random.default_rng(number)
        coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        drawn.append(coarse.resize((width, height), Image.Resampling.BICUBIC))
    return drawn


def measure(family: Family, folder: Path, *, slow: Collection[str] = SLOW) -> Result:
    """Builds the family's checkpoint below `folder` and measures it.

    Args:
        family: The family.
        folder: Exists, and is empty.
        slow: Those of the checks in `SLOW` that are made as well.

    Returns:
        `status`: `works`, `refused`, `fails` or `not run here`; `error`, its reason; and what was measured.
    """
    lacking = [name for name in family.needs if find_spec(name) is None]
    if lacking:
        return {"status": "not run here", "error": f"{' and '.join(lacking)} cannot be imported"}
    torch.manual_seed(1)
    own = _written(family, folder)
    sources = [own if half else _written(FAMILIES[PARTNERS[name]], folder) for name, half in _halves(family)]
    result: Result = {"status": "works"}
    try:
        with warnings.catch_warnings(record=True) as caught, _logged() as logged:
            warnings.simplefilter("always")
            _measure(family, own, sources, folder, result, slow)
        result["warnings"] = len(logged) + sum(one.category is UserWarning for one in caught)
    except Exception as error:  # The matrix is there to find whatever is raised.
        result["status"] = "refused" if family.refused else "fails"
        result["error"] = f"{type(error).__name__}: {error}"
    return result


def problems(family: Family, result: Result) -> list[str]:
    """What a result lacks of what the family should give; empty if nothing."""
    if result["status"] == "not run here":
        return []
    if family.refused:
        line = result.get("error", "")
        if result["status"] != "refused" or "\n" in line or not re.search(family.refused, line):
            return [f"should be refused in one line about {family.refused!r}, but: {line or result['status']}"]
        return []
    if result["status"] != "works":
        return [str(result.get("error"))]
    found = [
        f"{name} {result[name]:.6f} is below {least}"
        for name, least in (
            *((f"{view}_cosine", LEAST_COSINE) for view in ("query", "title", "photo")),
            ("rank_correlation", LEAST_RANK_CORRELATION),
        )
        if name in result and not result[name] >= least
    ]
    found += [
        f"alone and in a batch differ by {result[f'batch_{name}']:.1e} in {name}"
        for name, most in BATCH.items()
        if f"batch_{name}" in result and not result[f"batch_{name}"] <= most
    ]
    found += [] if result.get("reload_equal", True) else ["vectors change when the model is saved and loaded"]
    found += [f"training: {result['training']}"] if result.get("training", "ok") != "ok" else []
    onnx = result.get("onnx", 0.0 if family.exports else "")
    # What cannot be exported is to be told so, in one line.
    exported = not isinstance(onnx, str) and onnx <= ONNX
    if exported != family.exports or (not exported and onnx and not re.match("OnnxError: PyTorch cannot export", onnx)):
        found.append(f"ONNX: {onnx}")
    if not family.hinted and not result["warnings"]:
        found.append("nothing says how it was trained, and there is no warning")
    return found


@contextmanager
def _logged() -> Iterator[list[str]]:
    """Warnings that the package logs inside the block."""
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("mmfusion")
    log.addHandler(handler)
    try:
        yield lines
    finally:
        log.removeHandler(handler)


def _halves(family: Family) -> list[tuple[str, bool]]:
    return list(zip(("text", "photo"), family.halves, strict=True))


def _written(family: Family, folder: Path) -> Path:
    place = folder / family.name
    if not place.exists():
        place.mkdir(parents=True)
        family.build(place)
    return place


def _measure(
    family: Family, own: Path, sources: Sequence[Path], folder: Path, result: Result, slow: Collection[str]
) -> None:
    text, photo = map(str, sources)
    queries, images = texts(), photos()
    expected: dict[str, Tensor] = {}
    if family.queries is not None:
        expected["query"] = family.queries(own, queries)
        expected["title"] = expected["query"] if family.titles is None else family.titles(own, queries)
    if family.photos is not None:
        expected["photo"] = family.photos(own, images)
    # Beside a text encoder of another width our projection of photos would not start as identity.
    fields = {"embedding_dim": expected["photo"].shape[1]} if family.photos and not family.text else {}
    model = MMFusionModel.from_backbones(text, photo, **SMALL, **fields).eval()
    processor = MMFusionProcessor.from_backbones(text, photo)
    result["text_pooling"], result["image_pooling"] = model.config.text_pooling, model.config.image_pooling
    result["query_prompt"], result["product_prompt"] = processor.query_prompt, processor.product_prompt
    products = [{"title": title, "image": None} for title in queries]
    shown = [{"title": "mug", "image": image} for image in images]
    views = {
        "query": _queries(model, processor, queries),
        "title": _views(model, processor, products).text_embeds,
        "photo": _views(model, processor, shown).image_embeds,
    }
    for name, features in expected.items():
        result[f"{name}_cosine"] = round(_least_cosine(views[name], features), 6)
        result[f"{name}_spread"] = round(_spread(features), 4)
    if family.text and family.photo and {"query", "photo"} <= set(expected):
        ours = views["query"] @ views["photo"].T
        own_scores = _unit(expected["query"]) @ _unit(expected["photo"]).T
        result["rank_correlation"] = round(_rank_correlation(ours, own_scores), 4)
    for dtype in (torch.float32, torch.float64)[: 1 + family.double]:
        result[f"batch_{str(dtype).removeprefix('torch.')}"] = float(
            f"{_apart(model.to(dtype), processor, images):.1e}"
        )
    model.to(torch.float32)
    result["reload_equal"] = _same_when_loaded(model, processor, folder / "saved", queries, shown)
    if "training" in slow:
        result["training"] = _training(model, processor, images)
    if "onnx" in slow and family.text:
        result["onnx"] = _onnx(model, processor, folder / "onnx")


@torch.no_grad()
def _queries(model: Any, processor: Any, queries: list[str]) -> Tensor:
    return model.get_query_features(**processor(queries=queries))


@torch.no_grad()
def _views(model: Any, processor: Any, products: list[dict[str, Any]]) -> Any:
    return model.forward_products(**processor(products=products), views_only=True)


def _least_cosine(ours: Tensor, own: Tensor) -> float:
    """Of the same texts or photos; -1 where not even the widths agree."""
    if ours.shape != own.shape:
        return -1.0
    return float((_unit(ours) * _unit(own)).sum(1).min())


def _unit(vectors: Tensor) -> Tensor:
    return F.normalize(vectors.double(), dim=1)


def _spread(features: Tensor) -> float:
    """Largest distance 1 - cosine between two of them: where it is nothing, parity says nothing."""
    return float((1 - _unit(features) @ _unit(features).T).max())


def _rank_correlation(ours: Tensor, own: Tensor) -> float:
    """Mean over queries of Spearman's correlation of the photos' scores."""
    ranks = [scores.argsort(1).argsort(1).double() for scores in (ours, own)]
    centred = [rank - rank.mean(1, keepdim=True) for rank in ranks]
    return float(F.cosine_similarity(*centred, dim=1).mean())


def _apart(model: Any, processor: Any, images: list[Image.Image]) -> float:
    """Largest 1 - cosine of a query, a title and a photo alone and next to others."""
    short = texts()[1]
    alone = _queries(model, processor, [short])
    beside = _queries(model, processor, [short, LONG])[:1]
    product = {"title": short, "image": images[0]}
    other = {"title": LONG, "image": images[1]}
    single, double = _views(model, processor, [product]), _views(model, processor, [product, other])
    with torch.no_grad():
        fused = [model.get_product_features(**processor(products=rows))[:1] for rows in ([product], [product, other])]
    pairs = [
        (alone, beside),
        (single.text_embeds, double.text_embeds[:1]),
        (single.image_embeds, double.image_embeds[:1]),
        (fused[0], fused[1]),
    ]
    return max(1 - _least_cosine(one, two) for one, two in pairs)


def _same_when_loaded(
    model: Any, processor: Any, folder: Path, queries: list[str], products: list[dict[str, Any]]
) -> bool:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    again, reader = MMFusionModel.from_pretrained(folder).eval(), MMFusionProcessor.from_pretrained(folder)
    before, after = _views(model, processor, products), _views(again, reader, products)
    return (
        torch.equal(_queries(model, processor, queries), _queries(again, reader, queries))
        and torch.equal(before.text_embeds, after.text_embeds)
        and torch.equal(before.image_embeds, after.image_embeds)
    )


def _training(model: Any, processor: Any, images: list[Image.Image]) -> str:
    """One step: `ok`, or what is wrong with it."""
    queries = texts(4)
    products = [{"title": title, "image": image} for title, image in zip(queries, images, strict=False)]
    model.train()
    model.zero_grad(set_to_none=True)
    torch.manual_seed(0)
    inputs = processor(queries=queries, products=products)
    sides = model(**inputs), model(**inputs, views_only=True)
    targets = torch.arange(len(queries))
    scores = [
        query @ product.T * model.logit_scale.exp()
        for query, product in (
            (sides[0].query_embeds, sides[0].product_embeds),
            (sides[1].query_embeds, sides[1].text_embeds),
            (sides[1].query_embeds, sides[1].image_embeds),
        )
    ]
    loss = torch.stack([F.cross_entropy(score, targets) for score in scores]).sum()
    if not torch.isfinite(loss):
        return f"the loss is {loss.item()}"
    loss.backward()
    trained = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    without = [name for name, value in trained if value.grad is None]
    broken = [name for name, value in trained if value.grad is not None and not torch.isfinite(value.grad).all()]
    model.zero_grad(set_to_none=True)
    model.eval()
    if without:
        return f"no gradient for {', '.join(without)}"
    return f"gradients that are not finite for {', '.join(broken)}" if broken else "ok"


def _onnx(model: Any, processor: Any, folder: Path) -> float | str:
    from mmfusion.onnx import export_query_tower

    try:
        return float(f"{export_query_tower(model, processor, folder).parity:.1e}")
    except Exception as error:  # Each step of an export has its own.
        return f"{type(error).__name__}: {error}"
