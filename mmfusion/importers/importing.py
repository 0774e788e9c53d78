"""From files to a catalogue: read, group, find photos, judge, split, write, report."""

from __future__ import annotations

import csv
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
from filelock import FileLock, Timeout

from mmfusion.data.catalogue_schema import COLUMNS, LANGUAGE_KEY, TEMPLATE_KEY, CatalogueError
from mmfusion.data.photo_urls import PhotoFetcher
from mmfusion.files import move_files
from mmfusion.importers.changes import DIGESTS, Digests
from mmfusion.importers.downloads import Downloads
from mmfusion.importers.items import Imported, ImportLog, Item, Judgement, Query, ReadSettings, Split
from mmfusion.importers.judging import check_one_source, judged_by_files, with_derived_ids
from mmfusion.importers.photo_store import DOWNLOADED, FAILED, PhotoStore
from mmfusion.importers.photos import PhotoFolders
from mmfusion.importers.registry import find_importer
from mmfusion.importers.report import tiles_of, write_report
from mmfusion.importers.settings import ImportResult, ImportSettings
from mmfusion.importers.source import Source, open_source
from mmfusion.importers.splits import split_products, split_queries, split_queries_by_product
from mmfusion.importers.values import language_of_locale
from mmfusion.importers.variants import products_of
from mmfusion.importers.write import (
    ProductsWriter,
    read_queries,
    read_split,
    where_columns,
    where_mask,
    write_qrels,
    write_queries,
    writing,
)
from mmfusion.progress import progress_bar

# Products that are in memory at a time, where they are not grouped.
_PART, _PART_BYTES = 8192, 64 << 20
_TABLES = ("products.parquet", "queries.parquet", "qrels.parquet", "rejected.csv", FAILED)


def import_catalogue(
    sources: Sequence[str], output: str | Path, settings: ImportSettings | None = None, *, dry_run: bool = False
) -> ImportResult:
    """Makes a catalogue of files; a kill leaves the catalogue of before.

    Args:
        sources: Files, folders, globs, URLs, or ids of data sets on the Hub.
        output: Folder of the catalogue; one that holds an earlier import of the same shop is brought up to date.
        settings: As above.
        dry_run: Writes the report alone.

    Raises:
        CatalogueError: A source cannot be read or has no products, settings do not fit it, or the output cannot be
            written.
    """
    settings, folder = settings or ImportSettings(), Path(output)
    check_one_source(settings)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".import.lock", blocking=False)
    try:
        with lock, writing(folder):
            for left in folder.glob(".import-*"):  # by an import that was killed
                shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=".import-", dir=folder) as temporary:
                return _import(sources, folder, Path(temporary), settings, dry_run)
    except Timeout:
        remedy = "Wait for it to end, or give another --output."
        raise CatalogueError("another import writes to this folder", str(folder), remedy) from None


def _import(
    sources: Sequence[str], folder: Path, temporary: Path, settings: ImportSettings, dry_run: bool
) -> ImportResult:
    rejected = temporary / "rejected.csv"
    with rejected.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "line", "reason"])
        log = ImportLog(lambda *row: writer.writerow(row))
        result, write = _read(sources, folder, temporary, settings, log, dry_run)
    tables = temporary / "tables"
    tables.mkdir()
    write(tables)
    if result.log.rejected_by_reason:
        rejected.rename(tables / rejected.name)
    if (temporary / FAILED).exists():
        (temporary / FAILED).rename(tables / FAILED)
    for name in _TABLES if not dry_run else ():
        # Of an earlier import, and about products that may be gone.
        if not (tables / name).exists():
            (folder / name).unlink(missing_ok=True)
    names = sorted((path.name for path in tables.iterdir()), key=lambda name: (name == DIGESTS, name))
    move_files(tables, folder, names)
    return result


def _read(
    sources: Sequence[str], folder: Path, temporary: Path, settings: ImportSettings, log: ImportLog, dry_run: bool
) -> tuple[ImportResult, Callable[[Path], None]]:
    """All of an import but what it leaves: the result, and what writes the tables into a folder."""
    source = open_source(sources, folder / "downloads")
    name, importer = find_importer(source, settings.format)
    wanted = ReadSettings(**{one.name: getattr(settings, one.name) for one in fields(ReadSettings)})
    imported = importer.read(source, wanted, log)
    result = ImportResult(folder, source, name, importer.summary, imported.mapping, settings, log, imported.template)
    print(f"{source}: {importer.summary}")
    print("".join(f"  {column} ← {origin}\n" for column, origin in imported.mapping.items()), end="")

    parts = temporary / "parts"
    parts.mkdir()
    products = ProductsWriter(parts)
    photos = _photo_store(source, folder, temporary / FAILED, settings, log)
    found = _read_products(products, photos, imported, result)
    if not products.rows:
        reasons = (log.left_out + log.rejected_by_reason).most_common(3)
        why = ", ".join(f"{reason}: {count:,}" for reason, count in reasons) or "there are no rows"
        raise CatalogueError(f"no product is left ({why})", str(source), "Check the file and --where.")
    result.num_products, result.photos = products.rows, photos.counts
    _judge(result, imported, found)
    split = _split(result, found, imported.val_from_train)
    if not dry_run:
        photos.fetch()
    photos.check(allow_missing=settings.allow_missing_photos)

    def write(tables: Path) -> None:
        digests = Digests(folder)
        if dry_run:
            for table in products.tables():
                deque(digests.noted(photos.settled(table)), 0)
        else:
            photos.link()
            target = tables / "products.parquet"
            notes = {TEMPLATE_KEY: result.template.encode()}
            if language := language_of_locale(settings.locale):
                notes[LANGUAGE_KEY] = language.encode()
            products.finish(target, split, notes, lambda table: digests.noted(photos.settled(table)), digests.whole)
            digests.write(tables / DIGESTS)
            if result.queries:
                write_queries(tables / "queries.parquet", result.queries)
                write_qrels(tables / "qrels.parquet", result.judgements, result.judgement_rule)
        result.changes = digests.against(folder)
        tiles = tiles_of(products.tables(), products.rows, photos, fetched=not dry_run)
        write_report(result, tables, tiles, temporary / "rejected.csv")
        photos.close()

    return result, write


def _photo_store(source: Source, folder: Path, failures: Path, settings: ImportSettings, log: ImportLog) -> PhotoStore:
    given = [settings.photos] if isinstance(settings.photos, str) else settings.photos or []
    given = [os.path.expanduser(place) for place in given]
    for place in given:
        if place != "download" and not os.path.isdir(place):
            remedy = "Check the spelling, or write download."
            raise CatalogueError("there is no such folder", f"--photos {place}", remedy)
    places = [Path(place) for place in given if place != "download"]
    # The folder that a file is in may be somebody's home.
    sure = bool(places) or any(map(os.path.isdir, source.given))
    folders = PhotoFolders(places or source.folders, log, given=sure, skip=folder)
    downloads = None
    if "download" in given:
        fetcher = PhotoFetcher(allow_private=settings.allow_private_urls)
        downloads = Downloads(folder / DOWNLOADED, fetcher, per_host=settings.downloads_per_host)
    return PhotoStore(folder, folders, log, failures, downloads=downloads, embed=settings.embed_photos)


def _in_parts(items: Iterator[Item]) -> Iterator[list[Item]]:
    """Products that are in memory at a time: fewer where their photos are."""
    part, size = list[Item](), 0
    for item in items:
        part.append(item)
        size += sum(len(photo) for photo in item.photos)
        if len(part) >= _PART or size >= _PART_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


@dataclass
class _Found:
    """Ids of the products that were written.

    Attributes:
        groups: Group by product id; of a product without one, its own id.
        product_of: Product id by other ids that its items have.
    """

    groups: dict[str, str] = field(default_factory=dict)
    product_of: dict[str, str] = field(default_factory=dict)


def _read_products(products: ProductsWriter, photos: PhotoStore, imported: Imported, result: ImportResult) -> _Found:
    settings, log, found = result.settings, result.log, _Found()
    named = where_columns(settings.where or [])
    seen: set[str] = set()
    untitled, first_untitled = 0, ""

    def counted() -> Iterator[Item]:
        for item in imported.items:
            result.num_items += 1
            yield item

    stream = products_of(
        counted(),
        settings.variants or imported.variants,
        gather=imported.groups,
        adjacent=imported.adjacent,
        duplicates=settings.duplicates,
        log=log,
        product_of=found.product_of,
    )
    with progress_bar(desc="products", unit="", unit_scale=True, delay=2) as progress:
        for part in _in_parts(stream):
            progress.update(len(part))
            columns = _columns(part)
            seen |= columns.keys()
            if settings.where:
                part = [
                    item for item, kept in zip(part, _fulfilled(columns, settings.where, named), strict=True) if kept
                ]
                log.leave_out("--where does not hold", len(columns["product_id"]) - len(part))
                columns = _columns(part)
            if part:
                textless = [item.item_id for item in part if not item.title and not item.description]
                untitled, first_untitled = untitled + len(textless), first_untitled or "".join(textless[:1])
                found.groups.update((item.item_id, item.group_id or item.item_id) for item in part)
                products.write(columns, [photos.structs(item) for item in part])
    if 0 < untitled < products.rows:
        log.warn(f"products without a title or description: {untitled:,}, the first is {first_untitled!r}")
    if named - seen:
        remedy = f"Use one of {', '.join(sorted(seen))}."
        raise CatalogueError(f"there is no column {min(named - seen)!r}", "--where", remedy)
    return found


def _columns(items: Sequence[Item]) -> dict[str, list[Any]]:
    """Values by column of the catalogue; text that is blank is none."""
    columns: dict[str, list[Any]] = {
        "product_id": [item.item_id for item in items],
        "title": [item.title for item in items],
        "description": [item.description or None for item in items],
    }
    if not any(columns["description"]):
        del columns["description"]
    for name in dict.fromkeys(name for item in items for name in item.metadata):
        values = [item.metadata.get(name) for item in items]
        own = f"original_{name}" if name in COLUMNS["products"] else name
        columns[own] = [None if value == "" else value for value in values]
    groups = [item.group_id if item.group_id != item.item_id else None for item in items]
    if any(groups) and "item_group_id" not in columns:
        columns["item_group_id"] = groups
    urls = [next((one for one in item.photos if isinstance(one, str) and "://" in one), None) for item in items]
    if any(urls) and "image_url" not in columns:
        columns["image_url"] = urls
    return columns


def _fulfilled(columns: dict[str, list[Any]], where: Sequence[Any], named: set[str]) -> list[bool]:
    rows = len(columns["product_id"])
    table = pa.table({name: columns.get(name, [None] * rows) for name in named})
    return where_mask(table, where).to_pylist()


def _judge(result: ImportResult, imported: Imported, found: _Found) -> None:
    """Queries and grades of known products; what is left out is counted."""
    log = result.log
    queries = (imported.queries() if callable(imported.queries) else imported.queries) or []
    known_queries = {query.query_id: query for query in queries}
    known = {**found.product_of, **{name: name for name in found.groups}}
    graded = judged_by_files(result.settings, known, log, known_queries)
    if graded is None:
        _judge_by_source(result, imported, queries, found)
        return
    result.judgement_rule = graded.rule
    if not graded.by_id:
        result.queries, result.judgements = with_derived_ids(graded)
        return
    result.queries = [known_queries[name] for name in graded.queries if name in known_queries]
    result.judgements = [Judgement(*row) for row in graded.rows if row[0] in known_queries]
    log.leave_out("judgement of an unknown query", len(graded.rows) - len(result.judgements))
    if not result.queries:
        remedy = "Give a file with the texts in a column `query`, or import the queries, too."
        raise CatalogueError("queries are named by id, and no file has their texts", "--judgements", remedy)


def _judge_by_source(result: ImportResult, imported: Imported, queries: Sequence[Query], found: _Found) -> None:
    """Judgements of a data set that comes with them."""
    log = result.log
    judgements = (imported.judgements() if callable(imported.judgements) else imported.judgements) or []
    grades: dict[tuple[str, str], int] = {}
    ids = {query.query_id for query in queries}
    for query_id, item_id, grade in judgements:
        product_id = found.product_of.get(item_id, item_id)
        if product_id not in found.groups:
            log.leave_out("judgement of an unknown product")
        elif query_id not in ids:
            log.leave_out("judgement of an unknown query")
        else:
            grades[query_id, product_id] = max(grade, grades.get((query_id, product_id), 0))
    judged = {query_id for query_id, _ in grades}
    result.queries = [query for query in queries if query.query_id in judged]
    log.leave_out("query without a judgement", len(queries) - len(result.queries))
    result.judgements = [Judgement(*pair, grade) for pair, grade in grades.items()]
    result.judgement_rule = imported.judgement_rule


def _split(result: ImportResult, found: _Found, val_from_train: bool) -> dict[str, Split] | None:
    """Gives the queries their splits; and the products, where they are what is split."""
    settings, log = result.settings, result.log
    if settings.split_by == "query":
        previous = read_queries(result.folder / "queries.parquet")
        result.queries = split_queries(
            result.queries, log=log, previous=previous, seed=settings.seed, val_from_train=val_from_train
        )
        return None
    before = read_split(result.folder / "products.parquet")
    split = split_products(found.groups, previous=before, seed=settings.seed)
    result.queries, result.judgements = split_queries_by_product(
        result.queries, result.judgements, split, log=log, seed=settings.seed
    )
    return split
