"""Loaders of a streamed catalogue: what they refuse, and how ranks end together if one cannot read."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from mmfusion.data.catalogue import CatalogueError
from mmfusion.data.sampler import ResumableLoader
from mmfusion.data.stream_sampler import StreamSampler
from mmfusion.data.streamed_tables import ReadError, StreamedTable
from mmfusion.data.workers import WorkersLoader

logger = logging.getLogger("mmfusion")

# From whether this rank is well to whether all are.
Agree = Callable[[bool], bool]

_WHY_NOT = {
    "dev_fraction": "validation would read all train products; give the catalogue a val split",
    "extra_products": "they come from all of the catalogue, and a reader holds a part",
    "no_duplicates": "it compares titles and photos of all products before training",
    "group_by": "it reads a column of all products before training",
    "hard_negatives": "they come from all of the catalogue, and a reader holds a part",
}


def refuse_with_stream(options: Mapping[str, Any]) -> None:
    """Refuses options that need products at random places of the catalogue.

    Raises:
        ValueError: One of them is set.
    """
    for name, reason in _WHY_NOT.items():
        if options[name]:
            raise ValueError(
                f"{name} is {options[name]!r}, which cannot be had from a stream: {reason}; leave one out."
            )


class _TogetherLoader(WorkersLoader):
    """A loader over a [`StreamedTable`], with as many batches on each rank."""

    def __init__(self, dataset: StreamedTable, *, agree: Agree, **options: Any) -> None:
        super().__init__(dataset, **options)
        self._agree = agree

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        assert isinstance(self.dataset, StreamedTable)
        self.dataset.products.forget()
        return raise_together(super().__iter__(), self._agree)


class StreamLoader(_TogetherLoader):
    """Batches of products in the order of the files."""


class ResumableStreamLoader(ResumableLoader, _TogetherLoader):
    """Training batches over a [`StreamSampler`], from where a checkpoint was written on."""


def raise_together(batches: Iterable[Any], agree: Agree) -> Iterator[Any]:
    """Hands batches on until a rank could not read one, and raises on all ranks then.

    Raises:
        CatalogueError: A row group cannot be read, here or on another rank.
    """
    for batch in batches:
        failed = isinstance(batch, ReadError)
        if not agree(not failed):
            raise CatalogueError(
                batch.message if failed else "Another rank could not read its products; see its error."
            )
        yield batch


def log_stream(sampler: StreamSampler) -> None:
    """Says how much is read by how many, and what is not."""
    all_readers = sampler.readers * sampler.num_replicas
    left_out = sampler.num_products - len(sampler) * sampler.batch_size * sampler.num_replicas
    logger.info(
        "streaming %d train products with a relevant query from %d row groups to %d reader(s), each of which holds up "
        "to %d products and a row group; %d products that fill no batch are left out of an epoch, others in each",
        *(sampler.num_products, sampler.num_groups, all_readers, sampler.shuffle_buffer, left_out),
    )
    without = len(sampler.starts) - 1 - sampler.num_groups
    if without:
        logger.info("%d row groups hold no such product and are not read in training", without)
    if sampler.num_groups < all_readers:
        logger.warning(
            "%d readers share %d row groups, so that some are read more than once an epoch; write the products in more "
            "row groups, or use fewer workers",
            *(all_readers, sampler.num_groups),
        )
