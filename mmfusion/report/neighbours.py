"""A page of products and what is nearest to each: what a model can show where nobody has asked anything yet."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmfusion.data.catalogue import Catalogue
from mmfusion.model import MMFusionModel, MMFusionProcessor
from mmfusion.report.build import fill
from mmfusion.report.tiles import Thumbnails
from mmfusion.retrieval.embedding import embed_products
from mmfusion.retrieval.fingerprint import model_fingerprint

POOL, NEAREST, EXAMPLES = 5_000, 8, 3
"""Products that are embedded at most, neighbours of each, and pseudo-queries of each kind that are shown."""


def neighbours_page(
    model: MMFusionModel,
    processor: MMFusionProcessor,
    catalogue: Catalogue,
    *,
    count: int,
    seed: int,
    batch_size: int = 64,
    num_workers: int = 0,
) -> str:
    """The page.

    Args:
        model: In evaluation mode.
        processor: The model's.
        catalogue: Its products, of which at most `POOL` are drawn; with pseudo-queries, examples of them are shown.
        count: Products to show, at least 1.
        seed: Of what is drawn.
        batch_size: Products per forward pass.
        num_workers: Processes that decode photos.
    """
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(len(catalogue.products), min(POOL, len(catalogue.products)), replace=False))
    embeds = embed_products(model, processor, catalogue, rows, batch_size=batch_size, num_workers=num_workers).embeds
    shown = np.sort(rng.choice(len(rows), min(count, len(rows)), replace=False))
    scores = embeds[shown] @ embeds.T
    thumbnail, titles = Thumbnails(catalogue), catalogue.titles(rows)

    def tile(place: int, score: float) -> dict[str, Any]:
        row = int(rows[place])
        name = str(catalogue.product_ids[row])
        return {"thumbnail": thumbnail(row), "title": titles[place], "product_id": name, "score": score}

    products = []
    for own, found in zip(shown.tolist(), scores, strict=True):
        order = [place for place in np.argsort(-found, kind="stable").tolist() if place != own][:NEAREST]
        near = [tile(place, float(found[place])) for place in order]
        products.append({**tile(own, float(found[own])), "near": near})
    return fill(
        "neighbours.html",
        products=products,
        model=f"Fusion {model.config.fusion}",
        fingerprint=model_fingerprint(model, processor),
        pool=len(rows),
        whole=len(catalogue.products),
        seed=seed,
        pseudo=_pseudo_queries(catalogue),
    )


def _pseudo_queries(catalogue: Catalogue) -> dict[str, Any] | None:
    if not len(catalogue.queries):
        return None
    kinds: dict[str, list[str]] = {}
    for kind, text in zip(catalogue.queries["kind"], catalogue.queries["query"], strict=True):
        kinds.setdefault(kind, []).append(text)
    return {"count": len(catalogue.queries), "examples": {kind: texts[:EXAMPLES] for kind, texts in kinds.items()}}
