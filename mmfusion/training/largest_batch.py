"""The largest batch of an epoch, and what an epoch holds: rows, tokens and photos."""

from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from mmfusion.data.datamodule import MMFusionDataModule
from mmfusion.data.sampler import PairSampler
from mmfusion.data.tables import PairRows, Rows, photo_counts, text_lengths

# Texts that are tokenised at most, to find the largest batch and to count an epoch: a few seconds.
_TEXTS = 20_000
_CHARACTERS_PER_TOKEN = 8


class Contents(NamedTuple):
    """What is in one batch or more.

    Attributes:
        pairs, products, photos: How many.
        tokens: Of queries and product texts.
        padded: The same with padding.
    """

    pairs: float
    products: float
    tokens: float
    padded: float
    photos: float


class Epoch(NamedTuple):
    """An epoch over all ranks.

    Attributes:
        batches: Of each rank.
        counted: Batches that were counted; the contents are estimated from them.
        contents: Of all ranks.
    """

    batches: int
    counted: int
    contents: Contents


class LargestBatch:
    """Looks for the largest batch of the first epoch, of any rank.

    Batches are compared by the characters of their texts, padded to the longest, and by their photos; the ones at the
    top are tokenised. With `--extra_products` the rows that are not in the pairs are drawn for these alone.
    """

    def __init__(self, data: MMFusionDataModule, ranks: int) -> None:
        """Args: data: Of the training. ranks: How many train.

        Raises:
            ValueError: The catalogue is streamed.
        """
        place: Any = SimpleNamespace(world_size=ranks, global_rank=0)
        data.trainer = place
        sampler, data.trainer = data.train_dataloader().sampler, None
        if not isinstance(sampler, PairSampler):
            raise ValueError(
                f"--dry_run cannot look ahead in batches of a {type(sampler).__name__}; do a dry run with the "
                "catalogue, or a part of it, copied to disk: without --stream."
            )
        self.data, self.ranks, self.sampler = data, ranks, sampler
        processor = data.processor
        queries, products = (
            text_lengths(data.catalogue, ["query"], of="queries"),
            text_lengths(data.catalogue, processor.template_columns),
        )
        self._query_lengths = np.minimum(queries, _CHARACTERS_PER_TOKEN * processor.max_query_length)
        self._lengths = np.minimum(products, _CHARACTERS_PER_TOKEN * processor.max_product_length)
        self._photos = photo_counts(data.catalogue, processor.max_photos) * int(data._train_products.photos)

    def find(self) -> PairRows:
        """Its rows; the pairs' products first, in the order of the queries."""
        batches = [
            (index, rank, queries, products)
            for index, (whole_queries, whole_products, _) in enumerate(self.sampler.epoch_batches())
            for rank, (queries, products) in enumerate(
                zip(np.split(whole_queries, self.ranks), np.split(whole_products, self.ranks), strict=True)
            )
        ]
        text = [_padded(self._lengths, p) + _padded(self._query_lengths, q) for _, _, q, p in batches]
        photos = [self._photos[products].sum() for _, _, _, products in batches]
        few = max(1, _TEXTS // (4 * self.sampler.batch_size))
        order = np.argsort(-_sizes(text, photos), kind="stable")[: min(8, few)]
        top = [self._batch(*batches[place][:2]) for place in order]
        found = [self.count(rows) for rows in top]
        return top[int(np.argmax(_sizes([one.padded for one in found], [one.photos for one in found])))]

    def epoch(self) -> Epoch:
        """What an epoch holds, estimated from some batches where there are many."""
        batches = len(self.sampler)
        texts = 2 * (self.sampler.batch_size + self.data.extra_products) * self.ranks
        counted = min(batches, max(1, _TEXTS // texts))
        places = np.linspace(0, batches - 1, counted).round().astype(int).tolist()
        found = [self.count(self._batch(index, rank)) for index in places for rank in range(self.ranks)]
        return Epoch(batches, counted, Contents(*np.sum(found, axis=0) * batches / counted))

    def count(self, rows: PairRows) -> Contents:
        """What a batch holds; its texts are tokenised, its photos not read."""
        processor = self.data.processor
        masks = [
            processor.process_queries(self.data._queries.texts(rows.queries))["attention_mask"],
            processor.process_product_texts(self.data._train_products.texts(rows.products))["attention_mask"],
        ]
        return Contents(
            pairs=len(rows.queries),
            products=len(rows.products),
            tokens=sum(int(mask.sum()) for mask in masks),
            padded=sum(mask.numel() for mask in masks),
            photos=int(self._photos[rows.products].sum()),
        )

    def _batch(self, index: int, rank: int) -> PairRows:
        self.sampler.start_batch, self.sampler.rank = index, rank
        return next(iter(self.sampler))


def _sizes(text: list[Any], photos: list[Any]) -> Any:
    """One number for each batch, from its text and its photos, each in shares of their mean."""
    return np.array(text) / max(1.0, np.mean(text)) + np.array(photos) / max(1.0, np.mean(photos))


def _padded(lengths: Rows, rows: Rows) -> int:
    return int(lengths[rows].max()) * len(rows)
