"""How an import is asked for, and what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmfusion.importers.changes import Changes
from mmfusion.importers.items import ImportLog, Judgement, Query, Variants
from mmfusion.importers.photo_store import PhotoCounts
from mmfusion.importers.source import Source
from mmfusion.importers.variants import Duplicates


@dataclass
class ImportSettings:
    """How sources become a catalogue.

    Attributes:
        format: Name of the format; default: what the source is recognised as.
        columns: Column of the file by column of the catalogue, e.g. {"title": "Name", "image": ["Photo 1", "Photo 2"]}.
        id_column: Column of the file that holds the ids of products.
        locale: Market of a data set with several, e.g. us; or how numbers are written, e.g. de for 1.299,95. It
            says the language on model cards, too.
        subset: Part of a data set that comes in several, e.g. small for the small version of ESCI.
        splits: Split by name of a part of a data set, e.g. {"novel_query": "val"}; default: what is usual for it.
        where: Only products that fulfil conditions on columns of the catalogue, e.g. [["price", "<", 50]].
        unpublished: Whether drafts, archived and hidden products are imported, too.
        variants: What becomes a product: a `product` with all its variants, each variant (`item`), or each of its
            distinct photos (`photo`); default: what suits the format.
        duplicates: What is done with an id that comes again: `first` keeps the first row, `merge` merges them, `error`
            stops.
        photos: Folders of photos, several as [a,b]; `download` among them fetches those that are named by URLs and are
            in no folder. Default: the folders of the sources.
        embed_photos: Whether the catalogue holds the photos themselves rather than a link to their folder.
        allow_missing_photos: Whether to go on where fewer than half of the photos that are named can be read.
        downloads_per_host: Photos that are fetched from one server at a time.
        allow_private_urls: Whether photos are also fetched from this machine and private networks.
        clicks: Files of click data: an aggregated search report, a session log, UBI events or a GA4 export; several as
            [a,b].
        judgements: Files of judgements: query, product and grade, as lists, ESCI labels, TREC or BEIR qrels.
        click_columns: Column of these files by role, where it is not recognised, e.g. {"query": "Zoekterm"}. Roles are
            query, product_id, impressions, clicks, add_to_cart, purchases, position, session_id, search_id, event and
            time; of judgements query, query_id, product_id and grade.
        grades: How clicks become grades from 0 to 3; default: what suits the click data.
        min_impressions: Pairs of query and product that were shown more rarely are not graded.
        signal: What counts as success: orders (and carts), or clicks; default: orders, where the click data has some.
        split_by: What is split into train, val and test where the files do not say: queries, so that all products
            compete in each split; or each product with its variants, and the queries with the products they ask for.
        seed: Of the splits.
    """

    format: str | None = None
    columns: dict[str, str | list[str]] = field(default_factory=dict)
    id_column: str | None = None
    locale: str | None = None
    subset: str | None = None
    splits: dict[str, str] = field(default_factory=dict)
    where: list[Any] | None = None
    unpublished: bool = False
    variants: Variants | None = None
    duplicates: Duplicates = "first"
    photos: str | list[str] | None = None
    embed_photos: bool = False
    allow_missing_photos: bool = False
    downloads_per_host: int = 4
    allow_private_urls: bool = False
    clicks: str | list[str] | None = None
    judgements: str | list[str] | None = None
    click_columns: dict[str, str] = field(default_factory=dict)
    grades: Literal["funnel", "pbm", "rate", "coec", "sdbn", "linear"] | None = None
    min_impressions: int = 20
    signal: Literal["orders", "clicks"] | None = None
    split_by: Literal["query", "product"] = "query"
    seed: int = 0


@dataclass
class ImportResult:
    """What came of an import.

    Attributes:
        folder: The catalogue.
        source: What was read.
        format: Name of the format.
        summary: What it is, in a few words.
        mapping: Where each column of the catalogue comes from.
        num_products: Products written.
        num_items: Rows that they were made of.
        queries: Queries with their splits.
        judgements: Grades of these queries.
        judgement_rule: How they came about.
        template: Text of a product that suits the data.
        photos: What became of photos.
        changes: What has changed since the last import into this folder, if there was one.
        log: What was left out, and warnings.
        settings: How it was made.
    """

    folder: Path
    source: Source
    format: str
    summary: str
    mapping: dict[str, str]
    settings: ImportSettings
    log: ImportLog
    template: str = "{title}"
    num_products: int = 0
    num_items: int = 0
    queries: list[Query] = field(default_factory=list)
    judgements: list[Judgement] = field(default_factory=list)
    judgement_rule: str = ""
    photos: PhotoCounts = field(default_factory=PhotoCounts)
    changes: Changes | None = None

    def lines(self) -> Iterator[str]:
        """What a user should know, in lines: warnings, what was left out, and what the catalogue holds."""
        photos, splits = self.photos, Counter(query.split for query in self.queries)
        yield from self.log.lines()
        if self.log.rejected_by_reason:
            count = self.log.rejected_by_reason.total()
            yield f"rejected: {count:,} rows, listed in {self.folder / 'rejected.csv'}"
        if photos.named:
            yield f"{photos.found:,} of {photos.named:,} photos found, {photos.unused:,} of no product"
        if splits:
            shares = ", ".join(f"{splits[name]:,} {name}" for name in ("train", "val", "test"))
            yield f"{len(self.queries):,} queries ({shares}) with {len(self.judgements):,} judgements"
            yield f"grades: {self.judgement_rule}"
        if self.changes is not None:
            yield f"since the last import: {self.changes}"
        yield f"{self.num_products:,} products in {self.folder}; see {self.folder / 'import.html'}"
