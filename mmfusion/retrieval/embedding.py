"""Embeds queries and products of a catalogue in batches of similar length."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mmfusion.allocator import keep_freed_memory
from mmfusion.data.catalogue import Catalogue
from mmfusion.data.feature_cache import FeatureCache
from mmfusion.data.sampler import RowSampler
from mmfusion.data.tables import ProductTable, QueryTable, Rewrite, Rows, log_cut_texts, text_lengths
from mmfusion.model import MMFusionModel, MMFusionProcessor
from mmfusion.progress import progress_bar
from mmfusion.retrieval.parts import PartBatch, PartEncoder, PartTable, part_batches, shown_parts
from mmfusion.retrieval.vectors import FloatArray, IntArray

# As many products as are in a shard of a job.
_SHARED_AMONG = 4096


class EmbeddedProducts(NamedTuple):
    """`embeds` (P, D) float32 L2-normalised and `modality_weights` (P, 2) float32, shares of text and photo."""

    embeds: FloatArray
    modality_weights: FloatArray


@torch.inference_mode()
def embed_queries(
    model: MMFusionModel,
    processor: MMFusionProcessor,
    catalogue: Catalogue,
    rows: Rows,
    *,
    batch_size: int = 256,
    rewrite: Rewrite | None = None,
) -> FloatArray:
    """Embeddings (Q, D) float32 of query rows, in their order; `rewrite` replaces their texts."""
    out = np.zeros((len(rows), model.config.vector_dim), dtype=np.float32)
    table, lengths = QueryTable(catalogue, processor, rewrite=rewrite), text_lengths(catalogue, ["query"], "queries")
    log_cut_texts(table, rows)
    batches = RowSampler(rows, lengths, batch_size=batch_size)
    for places, batch in _batches(model, table, rows, batches, 0, "query"):
        features = model.get_query_features(batch["query_input_ids"], batch["query_attention_mask"])
        out[places] = features.float().cpu().numpy()
    return out


@torch.inference_mode()
def embed_products(
    model: MMFusionModel,
    processor: MMFusionProcessor,
    catalogue: Catalogue,
    rows: Rows,
    *,
    batch_size: int = 64,
    num_workers: int = 0,
    cache: FeatureCache | None = None,
    photos: bool = True,
    photo_of: Rows | None = None,
    rewrite: Rewrite | None = None,
) -> EmbeddedProducts:
    """Embeds products.

    Batches depend on `rows`, what they show and `batch_size` alone, so that a second run gives the same bits. Texts and
    photos that several products share are encoded once.

    Args:
        model: In evaluation mode, on the device that computes.
        processor: The model's.
        catalogue: Where the rows point.
        rows: (P,) int64 different product rows.
        batch_size: Products per forward pass.
        num_workers: Processes that decode photos.
        cache: Activations of the model's frozen vision blocks, instead of photos.
        photos: False leaves all photos out.
        photo_of: Row whose photo each product shows; the control that shuffles photos.
        rewrite: Applied to the product texts; a product whose text it makes empty has none.
    """
    keep_freed_memory()
    embeds = np.zeros((len(rows), model.config.vector_dim), dtype=np.float32)
    weights = np.zeros((len(rows), 2), dtype=np.float32)
    table = ProductTable(catalogue, processor, cache=cache, photos=photos, photo_of=photo_of, rewrite=rewrite)
    log_cut_texts(table, rows)
    lengths = _text_lengths(table, rows)
    table.photos &= looks_at_photos(model, lengths[rows])
    loaded: Dataset[Any] = table
    batches: Iterable[Any] = RowSampler(rows, lengths, batch_size=batch_size)
    shared = [] if cache is not None or photo_of is not None else _shared_batches(table, rows, lengths, batch_size)
    if shared:
        loaded, batches = PartTable(table), shared
    encoder, planned = PartEncoder(model), iter(shared)
    for places, batch in _batches(model, loaded, rows, batches, num_workers, "product"):
        output: Any = encoder(next(planned), batch) if shared else model(**batch)
        embeds[places] = output.product_embeds.float().cpu().numpy()
        weights[places] = output.modality_weights.float().cpu().numpy()
    return EmbeddedProducts(embeds, weights)


def _shared_batches(table: ProductTable, rows: Rows, lengths: IntArray, batch_size: int) -> list[PartBatch]:
    """Batches in which what products share is encoded once; none where nothing is shared."""
    ordered, found, any_equal = np.sort(rows), list[PartBatch](), False
    for start in range(0, len(ordered), _SHARED_AMONG):
        block = ordered[start : start + _SHARED_AMONG]
        parts = shown_parts(table, block)
        any_equal |= parts.any_equal
        found += part_batches(block, parts, lengths[block], batch_size)
    return found if any_equal else []


def looks_at_photos(model: MMFusionModel, lengths: IntArray) -> bool:
    """Whether photos have a part in the vectors of products whose texts have these lengths (P,)."""
    # A tower of texts shows the photo of a product that has none.
    return model.config.fusion != "text_only" or bool((lengths == 0).any())


def _text_lengths(table: ProductTable, rows: Rows) -> IntArray:
    if table.rewrite is None:
        return text_lengths(table.catalogue, table.processor.template_columns)
    # Which texts are empty decides whether photos are read at all, so the rewritten ones are what counts.
    lengths = np.zeros(len(table.catalogue.products), dtype=np.int64)
    lengths[rows] = [len(text) for text in table.texts(rows)]
    return lengths


def _batches(
    model: MMFusionModel,
    table: Dataset[Any],
    rows: Rows,
    batches: Iterable[Any],
    num_workers: int,
    unit: str,
) -> Iterator[tuple[IntArray, dict[str, Any]]]:
    """Batches on the model's device, each with the places of its rows in `rows`."""
    order = np.argsort(rows)
    loader = DataLoader(table, batch_size=None, sampler=batches, num_workers=num_workers)
    # Below another bar, this one vanishes when it is full.
    with progress_bar(total=len(rows), desc="embedding", unit=unit, leave=None) as bar:
        for batch in loader:
            found = batch.pop(f"{unit}_rows").numpy()
            inputs = {name: value.to(model.device, non_blocking=True) for name, value in batch.items()}
            yield order[np.searchsorted(rows, found, sorter=order)], inputs
            bar.update(len(found))
