"""A catalogue of what a program has in memory, written as an import writes it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmfusion.data.catalogue import Catalogue
from mmfusion.data.catalogue_schema import CatalogueError
from mmfusion.files import whole_file
from mmfusion.importers.items import ImportLog, Judgement, Query
from mmfusion.importers.judging import check_one_source, judged_by_files, with_derived_ids
from mmfusion.importers.settings import ImportSettings
from mmfusion.importers.splits import split_queries
from mmfusion.importers.write import write_qrels, write_queries

# Products whose photos are read and written at a time.
_ROWS = 512


def write_records(
    folder: str | os.PathLike[str], products: Any, queries: Any = None, qrels: Any = None, *, settings: ImportSettings
) -> ImportLog:
    """Writes a catalogue that holds its photos.

    Args:
        folder: Output folder; tables that are there are replaced.
        products: As for `Catalogue.from_records`.
        queries: As there; without a column `split` they are split as an import splits them.
        qrels: As there.
        settings: Clicks or judgements in files instead of queries and qrels, how they become grades, and the seed of
            the splits; other settings of an import are about files of products.

    Returns:
        What was left out, and warnings.

    Raises:
        CatalogueError: Records or clicks cannot be used, a photo cannot be read, or clicks come with judgements.
    """
    check_one_source(settings)
    in_files = settings.clicks is not None or settings.judgements is not None
    if in_files and (queries is not None or qrels is not None):
        given = "clicks" if settings.clicks is not None else "judgements"
        raise CatalogueError(f"{given} are given, and queries or qrels, too", "records", "Give one of them.")
    if (queries is None) != (qrels is None):
        raise CatalogueError("one of queries and qrels is given without the other", "records", "Give both, or none.")
    catalogue, place, log = Catalogue.from_records(products, queries, qrels), Path(folder), ImportLog()
    place.mkdir(parents=True, exist_ok=True)
    for name in ("queries", "qrels"):
        (place / f"{name}.parquet").unlink(missing_ok=True)
    _write_products(catalogue, place / "products.parquet")
    graded = judged_by_files(settings, {str(name): str(name) for name in catalogue.product_ids}, log)
    if graded is None:
        asked, judged = _judged(catalogue)
    elif graded.by_id:
        remedy = "Give the texts in a column `query`."
        raise CatalogueError("queries are named by id, and no file has their texts", "judgements", remedy)
    else:
        asked, judged = with_derived_ids(graded)
    if asked:
        write_queries(place / "queries.parquet", split_queries(asked, log=log, seed=settings.seed))
        write_qrels(place / "qrels.parquet", judged, "" if graded is None else graded.rule)
    return log


def _judged(catalogue: Catalogue) -> tuple[list[Query], list[Judgement]]:
    table, qrels = catalogue.queries, catalogue.qrels
    columns = [table[name] if name in table.column_names else [None] * len(table) for name in ("split", "kind")]
    texts = zip(catalogue.query_ids, table["query"], *columns, strict=True)
    asked = [Query(str(name), text, split, kind) for name, text, split, kind in texts]
    rows = zip(qrels.query.tolist(), qrels.product.tolist(), qrels.grade.tolist(), strict=True)
    names = catalogue.query_ids, catalogue.product_ids
    return asked, [Judgement(str(names[0][query]), str(names[1][row]), value) for query, row, value in rows]


def _write_products(catalogue: Catalogue, path: Path) -> None:
    schema = catalogue.product_schema
    with whole_file(path) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for start in range(0, len(catalogue.products), _ROWS):
            part: pa.Table = catalogue.products.data.table.slice(start, _ROWS)
            if "image" in schema.names and not pa.types.is_null(schema.field("image").type):
                at = schema.get_field_index("image")
                photos = [_read(photo) for photo in part.column(at).to_pylist()]
                part = part.set_column(at, schema.field(at), pa.array(photos, schema.field(at).type))
            writer.write_table(part.cast(schema))


def _read(photo: Any) -> Any:
    """A photo with its bytes instead of its path; a URL stays one."""
    if isinstance(photo, list):
        return [_read(one) for one in photo]
    if not isinstance(photo, Mapping) or photo.get("bytes") is not None or not photo.get("path"):
        return photo
    if "://" in photo["path"]:
        raise CatalogueError(f"the photo {photo['path']!r} is a URL", "records", "Import it with --photos download.")
    try:
        return {"bytes": Path(photo["path"]).read_bytes(), "path": None}
    except OSError as error:
        remedy = "Give a file that is there, or None."
        raise CatalogueError(f"the photo {photo['path']!r} cannot be read ({error})", "records", remedy) from error
