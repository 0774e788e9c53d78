"""The Lightning data module: train batches from train products only, and the val split for ranking metrics."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmfusion.data.catalogue import Catalogue, CatalogueError
from mmfusion.data.cut_texts import log_cut_texts
from mmfusion.data.feature_cache import FeatureCache, build_feature_cache
from mmfusion.data.hard_negatives import HardNegatives
from mmfusion.data.product_keys import group_keys, product_keys
from mmfusion.data.qrels import Qrels
from mmfusion.data.sampler import PairSampler, ResumableLoader, RowSampler, RowsSampler
from mmfusion.data.stream_loaders import ResumableStreamLoader, StreamLoader, log_stream, refuse_with_stream
from mmfusion.data.stream_sampler import StreamRowSampler, StreamSampler
from mmfusion.data.streamed_catalogue import StreamedCatalogue
from mmfusion.data.streamed_tables import StreamedProductTable, StreamedTable
from mmfusion.data.tables import PairTable, ProductTable, QueryTable, Rows, text_lengths
from mmfusion.data.text_cache import build_text_cache
from mmfusion.data.workers import WorkersLoader
from mmfusion.model import MMFusionModel, MMFusionProcessor

logger = logging.getLogger("mmfusion")


class MMFusionDataModule(L.LightningDataModule):
    """Loaders of a catalogue.

    Every loss, miner and cache of training sees products and judgements of the train split only. A catalogue without
    a val split is trained without validation.

    Attributes:
        train_qrels: Judgements between train queries and train products; what the losses read.
        val_qrels: The same for val.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        processor: MMFusionProcessor,
        *,
        batch_size: int = 128,
        eval_batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        photos: bool = True,
        dev_fraction: float = 0.0,
        dev_by: str | None = None,
        extra_products: int = 0,
        no_duplicates: str | None = None,
        group_by: str | None = None,
        hard_negatives: str | None = None,
        negatives_per_query: int | None = None,
        photo_views: int = 1,
        shuffle_buffer: int = 4096,
    ) -> None:
        """Prepares the splits.

        Args:
            catalogue: Products, queries and judgements.
            processor: Turns them into tensors.
            batch_size: Pairs per device and step, at least 2.
            eval_batch_size: Products or queries per device in validation.
            num_workers: Processes that decode photos and tokenise; 0 does it in the training process.
            seed: Of the order of batches and the choice of positives.
            photos: False trains a tower that never looks at photos.
            dev_fraction: Share of train queries held out as the validation fold instead of the val split, in [0, 1).
            dev_by: Query column whose values go to one side of that fold as a whole, e.g. the combination of
                attributes asked for; default: the query text.
            extra_products: Train products per device and step beside those that belong to the queries; more negatives
                are cheap where encoders are frozen and cached.
            no_duplicates: What no two products of a global batch share: product, photo and title, or some of them,
                separated by commas; None: they are not compared.
            group_by: Product column that is of one value in a batch, as far as a value has enough queries.
            hard_negatives: Folder that recipes/mine.py wrote for this catalogue; None: no mined negatives.
            negatives_per_query: Mined negatives of each query in a batch, as further products; default: 1.
            photo_views: Views of each photo to train with, at least 1, see [`photo_view`].
            shuffle_buffer: Products that each worker holds to draw from where the catalogue is a
                [`StreamedCatalogue`], at least 1; see [`StreamSampler`].

        Raises:
            CatalogueError: The train split has no judged query, or there is no such column or kind of duplicate.
            FileNotFoundError: There are no such mined negatives.
            ValueError: They are of another catalogue, or their number is given without them or below 1; or an option
                cannot be had from a stream.
        """
        super().__init__()
        if isinstance(catalogue, StreamedCatalogue):
            refuse_with_stream(locals())
        self.shuffle_buffer = shuffle_buffer
        self.catalogue = catalogue
        self.processor = processor
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.extra_products = extra_products
        self._keys = None if no_duplicates is None else product_keys(catalogue, no_duplicates.split(","))
        self._groups = None if group_by is None else group_keys(catalogue, group_by)
        self._negatives = None if hard_negatives is None else HardNegatives.load(hard_negatives, catalogue)
        self._negatives_per_query = _per_query(hard_negatives, negatives_per_query)
        self.photo_views = photo_views
        self.photos = photos
        self.num_workers = num_workers
        self.seed = seed
        self.train_qrels, self.val_qrels = self._split(dev_fraction, dev_by)
        if not len(self.train_qrels):
            raise CatalogueError(
                "no train query has a judged train product", catalogue.source, "Check the split columns and the qrels."
            )
        if not len(self.val_qrels):
            logger.warning(
                "%s: no val query has a judged val product, so that training is not validated; give --dev_fraction "
                "0.1, or write val queries",
                catalogue.source,
            )
        self.train_rows = catalogue.product_rows("train")
        self.val_rows = self.train_rows if dev_fraction else catalogue.product_rows("val")
        self._vision_cache: tuple[MMFusionModel, Path] | None = None
        self._text_cache: tuple[MMFusionModel, Path] | None = None
        self._queries = QueryTable(catalogue, processor)
        self._train_products = self._product_table()
        # A fold of train queries is judged over train products: one table, so that nothing is cached twice.
        self._val_products = self._train_products if dev_fraction else self._product_table()

    @property
    def streamed(self) -> bool:
        """Whether products are read from where they lie rather than from a copy on disk."""
        return isinstance(self.catalogue, StreamedCatalogue)

    @property
    def levels(self) -> list[int]:
        """Positive grades of the train judgements, ascending."""
        return [int(grade) for grade in np.unique(self.train_qrels.grade) if grade > 0]

    def cache_vision(self, model: MMFusionModel, folder: Path) -> None:
        """Replaces photos by activations of the model's frozen vision blocks, one cache for each split.

        Caches are built in `prepare_data`, by one process of a node; those that are there already are checked.

        Args:
            model: Model of which `freeze_vision` froze at least one block.
            folder: Folder for the caches.
        """
        self._vision_cache = model, folder

    def cache_text(self, model: MMFusionModel, folder: Path) -> None:
        """Adds states of the model's frozen text encoder to queries and products; as [`cache_vision`].

        Args:
            model: Model whose text encoder is frozen, and pooled by `mean` or `cls`.
            folder: Folder for the caches.
        """
        self._text_cache = model, folder

    def prepare_data(self) -> None:
        # Of a stream, nobody has read the texts yet.
        if not self.streamed:
            log_cut_texts(self._train_products, self.train_rows)
            log_cut_texts(self._queries, np.unique(self.train_qrels.query))
        self._open_caches()

    def setup(self, stage: str) -> None:
        self._open_caches()

    def _open_caches(self) -> None:
        splits = (("train", self._train_products, self.train_rows), ("val", self._val_products, self.val_rows))
        for name, table, rows in splits:
            if self._vision_cache and table.photos and not table.caches and len(rows):
                model, folder = self._vision_cache
                views = self.photo_views if table is self._train_products else 1
                names = [name, *(f"{name}_view{view}" for view in range(1, views))]
                table.caches = tuple(
                    self._cache(model, table, rows, folder / own, view) for view, own in enumerate(names)
                )
            if self._text_cache and table.text_cache is None and len(rows):
                model, folder = self._text_cache
                texts = ProductTable(self.catalogue, self.processor, photos=False)
                table.text_cache = build_text_cache(folder, model, texts, rows, "product")
        if self._text_cache and self._queries.text_cache is None:
            model, folder = self._text_cache
            asked = np.union1d(self.train_qrels.query, self.val_qrels.query)
            self._queries.text_cache = build_text_cache(folder, model, self._queries, asked, "query")

    def _cache(self, model: MMFusionModel, table: ProductTable, rows: Rows, folder: Path, view: int) -> FeatureCache:
        return build_feature_cache(
            folder, model, table, rows, batch_size=self.eval_batch_size, num_workers=self.num_workers, view=view
        )

    def train_dataloader(self) -> ResumableLoader:
        world, rank = self._place()
        if isinstance(self._train_products, StreamedProductTable):
            return self._stream_loader(self._train_products)
        lengths = text_lengths(self.catalogue, self.processor.template_columns)
        sampler = PairSampler(
            self.train_qrels,
            lengths,
            batch_size=self.batch_size,
            seed=self.seed,
            num_replicas=world,
            rank=rank,
            pool=self.train_rows,
            extra_products=self.extra_products,
            groups=self._groups,
            keys=self._keys,
            negatives=self._negatives,
            negatives_per_query=self._negatives_per_query,
            photo_views=self.photo_views if self.photos else 1,
        )
        return ResumableLoader(PairTable(self._queries, self._train_products), sampler=sampler, **self._loading())

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """Two loaders: val queries that are judged, and all products of the val pool."""
        if not len(self.val_qrels) or not len(self.val_rows):
            return []
        queries = self._eval_loader(self._queries, np.unique(self.val_qrels.query), None)
        if isinstance(self._val_products, StreamedProductTable):
            return [queries, self._val_stream_loader(self._val_products)]
        lengths = text_lengths(self.catalogue, self.processor.template_columns)
        return [queries, self._eval_loader(self._val_products, self.val_rows, lengths)]

    def _product_table(self) -> ProductTable:
        table = StreamedProductTable if self.streamed else ProductTable
        return table(self.catalogue, self.processor, photos=self.photos)  # type: ignore[arg-type]

    def _stream_loader(self, products: StreamedProductTable) -> ResumableLoader:
        sampler = StreamSampler(
            self.train_qrels,
            products.shards.starts,
            batch_size=self.batch_size,
            shuffle_buffer=self.shuffle_buffer,
            seed=self.seed,
            photo_views=self.photo_views if self.photos else 1,
            **self._readers(),
        )
        if sampler.rank == 0:
            log_stream(sampler)
        table = StreamedTable(PairTable(self._queries, products), products)
        return ResumableStreamLoader(table, agree=self._agree, sampler=sampler, **self._loading())

    def _val_stream_loader(self, products: StreamedProductTable) -> DataLoader[Any]:
        sampler = StreamRowSampler(
            self.val_rows, products.shards.starts, batch_size=self.eval_batch_size, **self._readers()
        )
        return StreamLoader(StreamedTable(products, products), agree=self._agree, sampler=sampler, **self._loading())

    def _readers(self) -> dict[str, int]:
        world, rank = self._place()
        return {"readers": max(self.num_workers, 1), "num_replicas": world, "rank": rank}

    def _agree(self, well: bool) -> bool:
        return well if self.trainer is None else bool(self.trainer.strategy.reduce_boolean_decision(well))

    def _eval_loader(self, table: Dataset[Any], rows: Rows, lengths: Rows | None) -> DataLoader[Any]:
        world, rank = self._place()
        sampler: RowsSampler = RowSampler(rows, lengths, batch_size=self.eval_batch_size, num_replicas=world, rank=rank)
        return WorkersLoader(table, sampler=sampler, **self._loading())

    def _loading(self) -> dict[str, Any]:
        # A generator of its own keeps the making of an iterator from drawing on the global random state, which
        # dropout uses and which an exact resume restores.
        return {
            "batch_size": None,
            "num_workers": self.num_workers,
            "generator": torch.Generator().manual_seed(self.seed),
            "pin_memory": torch.cuda.is_available(),
            "persistent_workers": False,
        }

    def _place(self) -> tuple[int, int]:
        trainer = self.trainer
        return (trainer.world_size, trainer.global_rank) if trainer is not None else (1, 0)

    def transfer_batch_to_device(self, batch: Mapping[str, Tensor], device: torch.device, dataloader_idx: int) -> Any:
        return {name: value.to(device, non_blocking=True) for name, value in batch.items()}

    def _split(self, dev_fraction: float, dev_by: str | None) -> tuple[Qrels, Qrels]:
        train = self.catalogue.split_qrels("train")
        if dev_fraction:
            held_out = _fold(self.catalogue, dev_fraction, dev_by or "query")
            train_side, val_side = np.flatnonzero(~held_out), np.flatnonzero(held_out)
            return train.restrict(query_rows=train_side), train.restrict(query_rows=val_side)
        if "split" in self.catalogue.queries.column_names:
            return train, self.catalogue.split_qrels("val")
        return train, train.restrict(query_rows=np.empty(0, dtype=np.int64))


def _per_query(hard_negatives: str | None, count: int | None) -> int:
    if hard_negatives is None and count is not None:
        raise ValueError(
            f"negatives_per_query is {count} but there are no mined negatives; give hard_negatives, the folder that "
            "recipes/mine.py wrote, or leave negatives_per_query out."
        )
    if count is not None and count < 1:
        raise ValueError(f"negatives_per_query is {count}; give at least 1, or leave hard_negatives out.")
    return 0 if hard_negatives is None else count or 1


def _fold(catalogue: Catalogue, fraction: float, column: str) -> Any:
    """Bool by query row: True for those whose value of a column falls into the held-out share, by a stable hash."""
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"dev_fraction is {fraction}; give a number from 0 (off) up to, but not including, 1.")
    if column not in catalogue.queries.column_names:
        raise CatalogueError(
            f"dev_by names the column {column!r}",
            f"queries of {catalogue.source}",
            f"Use one of {', '.join(catalogue.queries.column_names)}.",
        )
    values = catalogue.queries.select_columns([column])[:][column]
    return np.array([crc32(str(value).encode()) % 10_000 < fraction * 10_000 for value in values])
