"""The Lightning data module: train batches from train products only, and the val split for ranking metrics."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mmfusion.data.batch import Judgements
from mmfusion.data.catalogue import BaseCatalogue, CatalogueError
from mmfusion.data.feature_cache import build_feature_cache, build_text_cache
from mmfusion.data.hard_negatives import HardNegatives
from mmfusion.data.loaders import ResumableLoader, WorkersLoader
from mmfusion.data.product_keys import group_keys, product_keys
from mmfusion.data.qrels import Qrels
from mmfusion.data.sampler import PairSampler, RowSampler
from mmfusion.data.streamed_catalogue import StreamedCatalogue
from mmfusion.data.streaming import StreamedProductTable, StreamedTable, StreamRowSampler, StreamSampler
from mmfusion.data.tables import PairTable, ProductTable, QueryTable, log_cut_texts, no_text, text_lengths
from mmfusion.model import MMFusionModel, MMFusionProcessor

logger = logging.getLogger(__name__)

# Options that need products at random places of the catalogue, and why a stream has no place for them.
_NOT_STREAMED = {
    "dev_fraction": "validation would read all train products; give the catalogue a val split",
    "extra_products": "they come from all of the catalogue, and a reader holds a part",
    "no_duplicates": "it compares titles and photos of all products before training",
    "group_by": "it reads a column of all products before training",
    "hard_negatives": "they come from all of the catalogue, and a reader holds a part",
}


class MMFusionDataModule(L.LightningDataModule):
    """Loaders of a catalogue.

    Every loss, miner and cache of training sees products and judgements of the train split only. A catalogue without
    a val split is trained without validation.

    Attributes:
        train_qrels: Judgements between train queries and train products, which batches bring to the losses.
        val_qrels: The same for val.
        levels: Positive grades of the train judgements, ascending.
    """

    def __init__(
        self,
        catalogue: BaseCatalogue,
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
        no_duplicates: Sequence[str] | None = None,
        group_by: str | None = None,
        hard_negatives: str | None = None,
        negatives_per_query: int | None = None,
        photo_views: int = 1,
        shuffle_buffer: int = 4096,
        val_texts: bool = True,
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
            extra_products: Train products per device and step in addition to those of the queries; more negatives are
                cheap where encoders are frozen and cached.
            no_duplicates: What no two products of a global batch share: product, photo and title, or some of
                them; None: they are not compared.
            group_by: Product column that is of one value in a batch, as far as a value has enough queries.
            hard_negatives: Folder that mmfusion mine wrote for this catalogue; None: no mined negatives.
            negatives_per_query: Mined negatives of each query in a batch, as further products; default: 1.
            photo_views: Crops of each photo to train with, the whole photo among them, at least 1; see
                [`cropped_photo`].
            shuffle_buffer: Products that each worker holds to draw from where the catalogue is a
                [`StreamedCatalogue`], at least 1; see [`StreamSampler`].
            val_texts: False leaves the texts of products out in validation, where queries are their titles; not of a
                fold of train queries.

        Raises:
            CatalogueError: The train split has no judged query, or there is no such column or kind of duplicate.
            FileNotFoundError: There are no such mined negatives.
            ValueError: They are of another catalogue, or their number is given without them or below 1; or an option
                is not supported with a stream.
        """
        super().__init__()
        self.streamed = isinstance(catalogue, StreamedCatalogue)
        if self.streamed:
            given = locals()
            for name, reason in _NOT_STREAMED.items():
                if given[name]:
                    raise ValueError(f"{name}={given[name]!r} is not supported with stream=True: {reason}.")
        if negatives_per_query is not None and (hard_negatives is None or negatives_per_query < 1):
            raise ValueError(
                f"negatives_per_query is {negatives_per_query} and hard_negatives is {hard_negatives}; at least 1 goes "
                "with the folder that mmfusion mine wrote; give both, or leave negatives_per_query out."
            )
        self.catalogue, self.processor = catalogue, processor
        self.batch_size, self.eval_batch_size, self.extra_products = batch_size, eval_batch_size, extra_products
        self.num_workers, self.shuffle_buffer, self.seed = num_workers, shuffle_buffer, seed
        self.photos, self.photo_views = photos, photo_views
        self._keys = None if no_duplicates is None else product_keys(catalogue, no_duplicates)
        self._groups = None if group_by is None else group_keys(catalogue, group_by)
        self._negatives = None if hard_negatives is None else HardNegatives.load(hard_negatives, catalogue)
        self._negatives_per_query = 0 if hard_negatives is None else negatives_per_query or 1
        self.train_qrels, self.val_qrels = self._split(dev_fraction, dev_by or "query")
        self.levels = tuple(int(grade) for grade in np.unique(self.train_qrels.grade) if grade > 0)
        if not self.levels:
            raise CatalogueError(
                "no train query has a train product with a grade above 0",
                catalogue.source,
                "Check the split columns and the qrels.",
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
        # A fold of train queries is judged over train products, and all queries are where products have no splits: one
        # table, so that nothing is cached twice. (What a stream holds is of one of its readings.)
        same = bool(dev_fraction) or (
            val_texts and not self.streamed and np.array_equal(self.val_rows, self.train_rows)
        )
        self._val_products = self._train_products if same else self._product_table()
        if not val_texts:
            self._val_products.rewrite = no_text

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
                options = {"batch_size": self.eval_batch_size, "num_workers": self.num_workers}
                crops = self.photo_views if table is self._train_products else 1
                names = [name, *(f"{name}_view{crop}" for crop in range(1, crops))]
                table.caches = tuple(
                    build_feature_cache(folder / own, model, table, rows, crop=crop, **options)
                    for crop, own in enumerate(names)
                )
                table.photo_width = model.activation_width
            if self._text_cache and table.text_cache is None and table.rewrite is None and len(rows):
                model, folder = self._text_cache
                texts = ProductTable(self.catalogue, self.processor, photos=False)
                table.text_cache = build_text_cache(folder, model, texts, rows, "product")
                table.means = model.config.text_pooling == "mean" and not model.fusion.reads_tokens
        if self._text_cache and self._queries.text_cache is None:
            model, folder = self._text_cache
            asked = np.union1d(self.train_qrels.query, self.val_qrels.query)
            self._queries.text_cache = build_text_cache(folder, model, self._queries, asked, "query")
            self._queries.means = model.config.text_pooling == "mean"

    def train_dataloader(self) -> ResumableLoader:
        products, place = self._train_products, self._place()
        options: dict[str, Any] = {
            "batch_size": self.batch_size,
            "seed": self.seed,
            "photo_views": self.photo_views if self.photos else 1,
            **place,
        }
        pairs = PairTable(self._queries, products)
        if isinstance(products, StreamedProductTable):
            options |= {"readers": max(self.num_workers, 1), "shuffle_buffer": self.shuffle_buffer}
            stream = StreamSampler(self.train_qrels, products.shards.starts, **options)
            if stream.rank == 0:
                stream.log()
            table = StreamedTable(pairs, products)
            return ResumableLoader(table, sampler=stream, agree=self._agree, **self._loading())
        sampler = PairSampler(
            self.train_qrels,
            text_lengths(self.catalogue, self.processor.template_columns),
            pool=self.train_rows,
            extra_products=self.extra_products,
            groups=self._groups,
            keys=self._keys,
            negatives=self._negatives,
            negatives_per_query=self._negatives_per_query,
            **options,
        )
        return ResumableLoader(pairs, sampler=sampler, **self._loading())

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """Two loaders: val queries that are judged, and all products of the val pool."""
        if not len(self.val_qrels) or not len(self.val_rows):
            return []
        products, options = self._val_products, {"batch_size": self.eval_batch_size, **self._place()}
        asked = RowSampler(np.unique(self.val_qrels.query), None, **options)
        queries = WorkersLoader(self._queries, sampler=asked, **self._loading())
        if isinstance(products, StreamedProductTable):
            readers = max(self.num_workers, 1)
            stream = StreamRowSampler(self.val_rows, products.shards.starts, readers=readers, **options)
            table = StreamedTable(products, products)
            return [queries, WorkersLoader(table, sampler=stream, agree=self._agree, **self._loading())]
        sampler = RowSampler(self.val_rows, text_lengths(self.catalogue, self.processor.template_columns), **options)
        return [queries, WorkersLoader(products, sampler=sampler, **self._loading())]

    def _product_table(self) -> ProductTable:
        table = StreamedProductTable if self.streamed else ProductTable
        return table(self.catalogue, self.processor, photos=self.photos)  # type: ignore[arg-type]

    def _agree(self, well: bool) -> bool:
        return well if self.trainer is None else bool(self.trainer.strategy.reduce_boolean_decision(well))

    def _loading(self) -> dict[str, Any]:
        # A separate generator keeps the making of an iterator from drawing on the global random state, which
        # dropout uses and which an exact resume restores.
        return {
            "batch_size": None,
            "num_workers": self.num_workers,
            "generator": torch.Generator().manual_seed(self.seed),
            "pin_memory": torch.cuda.is_available(),
            "persistent_workers": False,
        }

    def _place(self) -> dict[str, int]:
        trainer = self.trainer
        world, rank = (1, 0) if trainer is None else (trainer.world_size, trainer.global_rank)
        return {"num_replicas": world, "rank": rank}

    def transfer_batch_to_device(self, batch: Mapping[str, Tensor], device: torch.device, dataloader_idx: int) -> Any:
        """Moves a batch, which gets the judgements of its split as well."""
        moved = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
        if "query_rows" in batch and "product_rows" in batch:
            judgements = Judgements(self.train_qrels, self.catalogue, self.levels)
            judgements = judgements.of_batch(batch["query_rows"], batch["product_rows"], device)
        else:
            judgements = Judgements(self.val_qrels, self.catalogue, self.levels)
        return {**moved, "judgements": judgements}

    def _split(self, dev_fraction: float, dev_by: str) -> tuple[Qrels, Qrels]:
        """Judgements to train on and to validate on."""
        train, queries = self.catalogue.split_qrels("train"), self.catalogue.queries
        if not dev_fraction:
            has_splits = "split" in queries.column_names
            return train, self.catalogue.split_qrels("val") if has_splits else train.restrict(query_rows=[])
        if not 0.0 < dev_fraction < 1.0:
            raise ValueError(f"dev_fraction is {dev_fraction}; give a number from 0 (off) up to, but not including, 1.")
        if dev_by not in queries.column_names:
            place, remedy = f"queries of {self.catalogue.source}", f"Use one of {', '.join(queries.column_names)}."
            raise CatalogueError(f"dev_by names the column {dev_by!r}", place, remedy)
        # By a stable hash, so that equal values are on one side, the same in every run.
        values = queries.select_columns([dev_by])[:][dev_by]
        held_out = np.array([crc32(str(value).encode()) % 10_000 < dev_fraction * 10_000 for value in values])
        return train.restrict(query_rows=np.flatnonzero(~held_out)), train.restrict(query_rows=np.flatnonzero(held_out))
