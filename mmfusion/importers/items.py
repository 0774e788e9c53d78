"""What a reader of a format gets and gives: settings, items, queries, judgements, and the log of what was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Variants = Literal["product", "item", "photo"]
Split = Literal["train", "val", "test"]


@dataclass(slots=True)
class Item:
    """A row of a shop's file: a variant, a whole product, or what the variants of a product have in common.

    Attributes:
        item_id: Id as written in the file, never as a number. Rows of one product have ids that differ (the name of a
            photo, say) and its id as `group_id`; an id that comes again is a duplicate.
        title: Plain text; "" where there is none.
        description: Plain text; "" where there is none.
        photos: Paths or URLs as they are written, or the bytes of files, in the order of the file.
        metadata: Further columns. `price` is a float, `currency` a code of ISO 4217, `availability` one of in_stock,
            out_of_stock, preorder and backorder; other values are as the file has them.
        group_id: Id of the product that a variant belongs to; None: of none.
        is_parent: Describes its group alone and is not sold itself: no product of its own with `variants="item"`.
        photo_name: Name that a photo of a folder may have beside the item's id, e.g. a SKU; None: no other one.
        place: File and line, e.g. "products.csv, line 12".
    """

    item_id: str
    title: str = ""
    description: str = ""
    photos: list[str | bytes] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    group_id: str | None = None
    is_parent: bool = False
    photo_name: str | None = None
    place: str = ""


class Query(NamedTuple):
    """A query of a data set that comes with queries.

    Attributes:
        query_id: Id as written in the file.
        text: The query.
        split: Where the file says one; `dev` and `validation` are val. None: the import draws one.
        kind: Free label for slices, or None.
    """

    query_id: str
    text: str
    split: Split | None = None
    kind: str | None = None


class Judgement(NamedTuple):
    """A grade of at least 0 for a pair; higher is better."""

    query_id: str
    product_id: str
    grade: int


@dataclass(frozen=True)
class ReadSettings:
    """What somebody may say about the files.

    Attributes:
        columns: Column of the file by column of the catalogue, e.g. {"title": "Name"}; overrides what is recognised.
            `image` may be a list of columns.
        id_column: Column of the file that holds ids.
        locale: Language or market: which rows of a data set in several, or how numbers are written ("de": 1.299,95).
        subset: Part of a data set that comes in several, e.g. "small" for the small version of ESCI.
        splits: Split by name of a part of a data set, e.g. {"novel_query": "val"}; overrides what is usual.
        unpublished: Whether drafts, archived and hidden products are read, too.
        variants: What becomes a product; None: the default of the format.
    """

    columns: Mapping[str, str | list[str]] = field(default_factory=dict)
    id_column: str | None = None
    locale: str | None = None
    unpublished: bool = False
    variants: Variants | None = None
    subset: str | None = None
    splits: Mapping[str, str] = field(default_factory=dict)


class ImportLog:
    """What an import left out, changed or doubts.

    Attributes:
        rejected: File, line (from 1, with the header; 0: the whole file) and reason of rows that could not be read.
        left_out: Number of products, rows or queries that were left out on purpose, by reason.
        warnings: Sentences for the report, each once.
    """

    def __init__(self, on_reject: Callable[[str, int, str], None] | None = None) -> None:
        """A log; `on_reject` gets each rejected row instead of `rejected`, which then stays empty."""
        self.rejected: list[tuple[str, int, str]] = []
        self.rejected_by_reason: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self.warnings: list[str] = []
        self._on_reject = on_reject or (lambda *row: self.rejected.append(row))

    def reject(self, file: str, line: int, reason: str) -> None:
        """A row that cannot be read."""
        self.rejected_by_reason[reason.partition(":")[0]] += 1
        self._on_reject(file, line, reason)

    def leave_out(self, reason: str, count: int = 1) -> None:
        """Something that was left out on purpose, e.g. "Status draft"."""
        if count:
            self.left_out[reason] += count

    def warn(self, sentence: str) -> None:
        """Something that the user should look at; a sentence that came before is not repeated."""
        if sentence not in self.warnings:
            self.warnings.append(sentence)

    def lines(self) -> Iterator[str]:
        """Warnings, and what was left out on purpose."""
        yield from (f"warning: {warning}" for warning in self.warnings)
        yield from (f"left out: {reason}: {count:,}" for reason, count in self.left_out.most_common())


@dataclass
class Imported:
    """What a reader found in its files.

    Attributes:
        items: Products, read while somebody asks for them.
        mapping: Where each column of the catalogue comes from, e.g. {"title": "Name"}, to be printed.
        queries: Queries, where the format has some. A list, or a function that reads them once `items` were read.
        judgements: Their grades; product ids are those of items (or of groups).
        judgement_rule: How labels became grades, to be printed and stored.
        variants: What becomes a product by default.
        groups: Whether items belong to groups, or one id may be in several rows that belong together: they are then
            gathered in memory rather than streamed.
        adjacent: Whether the items of a group follow each other, so that one group at a time is enough.
        val_from_train: Whether a tenth of the train queries becomes val where the files have no val queries.
        template: Text of a product over its columns that suits the data, e.g. "{title} {description}".
    """

    items: Iterable[Item]
    mapping: dict[str, str]
    queries: list[Query] | Callable[[], list[Query]] | None = None
    judgements: list[Judgement] | Callable[[], list[Judgement]] | None = None
    judgement_rule: str = ""
    variants: Variants = "product"
    groups: bool = False
    adjacent: bool = False
    val_from_train: bool = True
    template: str = "{title}"
