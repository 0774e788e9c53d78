"""The largest batch of an epoch, and what an epoch holds: rows, tokens and photos."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mmfusion.data.datamodule import MMFusionDataModule
from mmfusion.data.sampler import PairSampler
from mmfusion.data.tables import PairRows, Rows, photo_counts, text_lengths
from mmfusion.training.dry_run.rehearsal_data import RehearsalData

# Texts that are tokenised at most, to find the largest batch and to count an epoch: a few seconds.
_TEXTS = 20_000
_CHARACTERS_PER_TOKEN = 8


@dataclass(frozen=True)
class Contents:
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

    def times(self, factor: float) -> "Contents":
        return Contents(*(factor * value for value in vars(self).values()))


@dataclass(frozen=True)
class Epoch:
    """An epoch over all ranks.

    Attributes:
        batches: Of each rank.
        contents: Of all ranks; counted in `counted` of the batches.
    """

    batches: int
    counted: int
    contents: Contents


class LargestBatch:
    """Looks for the largest batch of the first epoch, of whichever rank.

    Batches are compared by the characters of their texts, padded to the longest, and by their photos; the ones at the
    top are tokenised. With `--extra_products` the rows beside the pairs are drawn for these alone.
    """

    def __init__(self, data: RehearsalData, ranks: int) -> None:
        self.data, self.ranks = data, ranks
        loader = MMFusionDataModule.train_dataloader(data)
        if not isinstance(loader.sampler, PairSampler):
            raise ValueError(
                f"--dry_run cannot look ahead in batches of a {type(loader.sampler).__name__}; rehearse with the "
                "catalogue, or a part of it, copied to disk: without --stream."
            )
        self.sampler = loader.sampler
        processor = data.processor
        limits = processor.max_query_length, processor.max_product_length
        self._query_lengths, self._lengths = (
            np.minimum(lengths, _CHARACTERS_PER_TOKEN * limit)
            for lengths, limit in zip(
                (
                    text_lengths(data.catalogue, ["query"], of="queries"),
                    text_lengths(data.catalogue, processor.template_columns),
                ),
                limits,
                strict=True,
            )
        )
        self._photos = photo_counts(data.catalogue, processor.max_photos) * int(data._train_products.photos)

    def find(self) -> PairRows:
        """Its rows; the pairs' products first, in the order of the queries."""
        batches = [
            (index, rank, PairRows(queries, products))
            for index, (whole_queries, whole_products, _) in enumerate(self.sampler.epoch_batches())
            for rank, (queries, products) in enumerate(
                zip(np.split(whole_queries, self.ranks), np.split(whole_products, self.ranks), strict=True)
            )
        ]
        scores = self._scores([rows for _, _, rows in batches])
        few = max(1, _TEXTS // (4 * len(batches[0][2].products)))
        top = [self._batch(*batches[at][:2]) for at in np.argsort(-scores, kind="stable")[: min(8, few)]]
        sizes = [self.count(rows) for rows in top]
        photos = np.mean([size.photos for size in sizes]) or 1.0
        padded = np.mean([size.padded for size in sizes])
        return top[int(np.argmax([size.padded / padded + size.photos / photos for size in sizes]))]

    def epoch(self) -> Epoch:
        """What an epoch holds, estimated from some batches where there are many."""
        batches = len(self.sampler)
        texts = 2 * (self.sampler.batch_size + self.data.extra_products) * self.ranks
        counted = min(batches, max(1, _TEXTS // texts))
        whole = Contents(0, 0, 0, 0, 0)
        for index in np.linspace(0, batches - 1, counted).round().astype(int).tolist():
            for rank in range(self.ranks):
                found = self.count(self._batch(index, rank))
                whole = Contents(*(a + b for a, b in zip(vars(whole).values(), vars(found).values(), strict=True)))
        return Epoch(batches, counted, whole.times(batches / counted))

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

    def largest_first(self, rows: PairRows) -> PairRows:
        """The same batch, with the longest text, and the product with most photos, among its first pairs."""
        own, further = np.split(rows.products, [len(rows.queries)])
        first = [
            int(np.argmax(self._lengths[own])),
            int(np.argmax(self._photos[own])),
            int(np.argmax(self._query_lengths[rows.queries])),
        ]
        order = np.array([*dict.fromkeys([*first, *range(len(own))])])
        return PairRows(rows.queries[order], np.concatenate([own[order], further]), rows.crop)

    def _batch(self, index: int, rank: int) -> PairRows:
        self.sampler.start_batch, self.sampler.rank = index, rank
        return next(iter(self.sampler))

    def _scores(self, batches: list[PairRows]) -> Rows:
        text = np.array([_padded(self._lengths, b.products) + _padded(self._query_lengths, b.queries) for b in batches])
        photos = np.array([self._photos[b.products].sum() for b in batches])
        return text / max(1.0, text.mean()) + photos / max(1.0, photos.mean())


def _padded(lengths: Rows, rows: Rows) -> int:
    return int(lengths[rows].max()) * len(rows)


def growing(start: int, end: int) -> Iterator[int]:
    """start, 2 start, 4 start … up to `end`."""
    while start <= end:
        yield start
        start *= 2
