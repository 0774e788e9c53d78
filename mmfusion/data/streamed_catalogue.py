"""A catalogue whose products stay where they are: only their ids and splits are loaded."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Literal

import datasets
import fsspec

from mmfusion.data.catalogue import Catalogue
from mmfusion.data.catalogue_checks import check_products, check_queries
from mmfusion.data.catalogue_error import CatalogueError, reading
from mmfusion.data.catalogue_files import Folder, find_folder, refuse_revision
from mmfusion.data.catalogue_judgements import build_qrels
from mmfusion.data.catalogue_load import load_from_folder
from mmfusion.data.catalogue_schema import COLUMNS
from mmfusion.data.product_shards import ProductShards
from mmfusion.data.qrels import Qrels


class StreamedCatalogue(Catalogue):
    """A catalogue for training from streams; rows are those of the whole catalogue.

    ``products`` holds ``product_id`` and ``split`` alone (some 20 bytes a product, memory-mapped); titles, photos and
    further columns are read from ``shards``, many at a time. Judgements and queries are loaded as ever.

    Attributes:
        shards: The products' row groups.
    """

    def __init__(
        self,
        products: datasets.Dataset,
        queries: datasets.Dataset,
        qrels: Qrels,
        shards: ProductShards,
        *,
        source: str,
        photo_root: str | None,
    ) -> None:
        """Use `load`."""
        super().__init__(products, queries, qrels, source=source, photo_root=photo_root)
        self.shards = shards

    @classmethod
    def load(
        cls,
        source: str | os.PathLike[str],
        *,
        cache_dir: str | os.PathLike[str],
        revision: str | None = None,
        unknown: Literal["error", "drop"] = "error",
    ) -> StreamedCatalogue:
        """Loads what is small, and checks it; see [`Catalogue.load`].

        Args:
            source: As there; a Hub data set needs a folder of Parquet files for each configuration, as
                ``push_to_hub(org/name, config_name="products")`` writes.
            cache_dir: Folder for ids, queries and judgements.
            revision, unknown: As there.

        Raises:
            CatalogueError: As there; texts and photos of products are checked when they are read.
        """
        if unknown not in ("error", "drop"):
            raise CatalogueError(f"unknown={unknown!r}", "StreamedCatalogue.load", "Use 'error' or 'drop'.")
        name, cache = os.fspath(source), os.path.abspath(cache_dir)
        folder = _find(name, revision)
        shards = ProductShards.open(folder)
        further = [column for column in shards.column_names if column not in ("product_id", "split")]
        tables = {
            "products": load_from_folder(folder, "products", cache, leave_out=further),
            "queries": load_from_folder(folder, "queries", cache),
            "qrels": load_from_folder(folder, "qrels", cache),
        }
        check_products(tables["products"], name, folder.photo_root)
        check_queries(tables["queries"], name)
        qrels = build_qrels(tables, name, unknown)
        return cls(tables["products"], tables["queries"], qrels, shards, source=name, photo_root=folder.photo_root)

    @property
    def metadata_columns(self) -> list[str]:
        return [column for column in self.shards.column_names if column not in COLUMNS["products"]]

    def product(self, row: int) -> dict[str, Any]:
        raise self._not_at_random("products")

    def titles(self, rows: Iterable[int]) -> list[str]:
        raise self._not_at_random("titles")

    def descriptions(self, rows: Iterable[int]) -> list[str]:
        raise self._not_at_random("descriptions")

    def _not_at_random(self, what: str) -> CatalogueError:
        return CatalogueError(
            f"{what} of a streamed catalogue cannot be looked up by row",
            f"catalogue {self.source!r}",
            "Load it with Catalogue.load, or read it in order with Catalogue.stream.",
        )


def _find(name: str, revision: str | None) -> Folder:
    folder = find_folder(name)
    if folder is not None:
        refuse_revision(name, revision)
        return folder
    url = f"hf://datasets/{name}{'' if revision is None else f'@{revision}'}"
    remedy = f"Check the id (there is no folder {name!r} either), the network and your login."
    with reading(f"Hub data set {name!r}", remedy):
        fs, root = fsspec.url_to_fs(url)
        # Asking whether it is a folder would say no where the Hub cannot be reached.
        fs.ls(root)
    return Folder(url, fs, root)
