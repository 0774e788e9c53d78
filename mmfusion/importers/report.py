"""What an import found and left out: `import.md`, and `import.html` with photos and texts of a few products."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mmfusion.data.photos import decode_photo
from mmfusion.files import replace_text
from mmfusion.importers.changes import Changes
from mmfusion.importers.photo_store import FAILED, PhotoCounts, PhotoStore
from mmfusion.importers.settings import ImportResult, ImportSettings
from mmfusion.model.photos import PhotoError
from mmfusion.pages import escape_cell, page_environment, text_table, thumbnail

FILES = ("import.md", "import.html")
PRODUCTS = 24
"""Products that the page shows."""

_SIZE = (176, 176)
_SHOWN = 20
_FOLDER = Path(__file__).parent
_TEXTS = ("product_id", "title", "description", "image", "image_url", "split")
_FACTS = 5


@dataclass
class Section:
    """A part of the report.

    Attributes:
        title: Its heading.
        rows: A table, the head first; empty: none.
        text: A sentence before the table.
        after: A sentence after the table.
        lines: A list.
    """

    title: str
    rows: list[list[str]] = field(default_factory=list)
    text: str = ""
    after: str = ""
    lines: list[str] = field(default_factory=list)


@dataclass
class Tile:
    """A product as the page shows it.

    Attributes:
        product_id: Its id.
        title: Its title.
        description: Its description.
        facts: Further columns that have a value.
        photo: `uri`, `width` and `height` of its first photo, or `missing`: why there is none.
        others: Number of further photos.
    """

    product_id: str
    title: str
    description: str
    facts: list[tuple[str, str]]
    photo: dict[str, Any]
    others: int


def write_report(result: ImportResult, folder: Path, tiles: list[Tile], rejected: Path) -> None:
    """Writes both files.

    Args:
        result: What came of the import.
        folder: Where they belong.
        tiles: Products that the page shows.
        rejected: The list of rejected rows.
    """
    parts = [part for part in _sections(result, rejected) if part.rows or part.lines or part.text]
    title = f"Import of {result.source}"
    command = _command(result)
    lines = [f"# {title}", f"Read as {result.summary} (`{result.format}`). To do it again: `{command}`"]
    for part in parts:
        listed = "\n".join(f"- {escape_cell(line)}" for line in part.lines)
        table = text_table(part.rows, numbers=False) if part.rows else ""
        lines += [one for one in (f"## {part.title}", part.text, listed, table, part.after) if one]
    replace_text(folder / FILES[0], "\n\n".join(lines) + "\n")
    css = (_FOLDER / "import.css").read_text("utf-8")
    page = page_environment(_FOLDER, html=True).get_template("import.html")
    text = page.render(
        title=title,
        summary=f"Read as {result.summary} ({result.format}).",
        command=command,
        css=css,
        css_digest=base64.b64encode(hashlib.sha256(css.encode()).digest()).decode(),
        figures=_figures(result),
        tiles=tiles,
        num_products=result.num_products,
        parts=parts,
    )
    replace_text(folder / FILES[1], text)


def tiles_of(tables: Iterable[pa.Table], rows: int, photos: PhotoStore, *, fetched: bool) -> list[Tile]:
    """Products spread evenly over a catalogue, the first and the last among them.

    Args:
        tables: The products in order.
        rows: Their number.
        photos: Where their photos are.
        fetched: Whether photos that are to be downloaded have been.
    """
    wanted = np.unique(np.linspace(0, rows - 1, min(PRODUCTS, rows)).round().astype(np.int64))
    products: list[dict[str, Any]] = []
    start = 0
    for table in tables:
        inside = wanted[(wanted >= start) & (wanted < start + len(table))] - start
        products += [table.slice(row, 1).to_pylist()[0] for row in inside.tolist()]
        start += len(table)
    missing = photos.missing_of({product["product_id"] for product in products})
    return [_tile(product, photos, missing, fetched) for product in products]


def _tile(product: dict[str, Any], photos: PhotoStore, missing: Mapping[str, str], fetched: bool) -> Tile:
    stored = product.get("image") or []
    photo: dict[str, Any] = {"missing": missing.get(product["product_id"], "names no photo")}
    if stored:
        try:
            photo = thumbnail(decode_photo(photos.located(stored[0]), min_size=_SIZE), _SIZE)
        except PhotoError as error:
            photo = {"missing": f"photo cannot be read: {error}" if fetched else "not downloaded in a dry run"}
    facts = [(name, value) for name, value in product.items() if name not in _TEXTS and value not in (None, "", [])]
    return Tile(
        product["product_id"],
        product["title"] or "",
        product.get("description") or "",
        [(name, _short(value)) for name, value in facts[:_FACTS]],
        photo,
        max(len(stored) - 1, 0),
    )


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _figures(result: ImportResult) -> list[tuple[str, str]]:
    photos = result.photos
    found = [
        (f"{result.num_products:,}", "products"),
        (f"{photos.found:,}", f"of {photos.named:,} photos found"),
        (f"{len(result.queries):,}", "queries"),
        (f"{len(result.judgements):,}", "judgements"),
        (f"{sum(result.log.left_out.values()):,}", "left out"),
        (f"{sum(result.log.rejected_by_reason.values()):,}", "rejected rows"),
    ]
    return [one for one in found if result.queries or one[1] not in ("queries", "judgements")]


def _sections(result: ImportResult, rejected: Path) -> list[Section]:
    log, photos = result.log, result.photos
    return [
        Section("Warnings", lines=log.warnings),
        Section(
            "Products",
            [
                ["", "number"],
                ["rows read", f"{result.num_items:,}"],
                ["products", f"{result.num_products:,}"],
                ["with a photo", f"{photos.products:,}"],
                ["photos named", f"{photos.named:,}"],
                ["photos found", f"{photos.found:,}"],
                *([["of these, to be downloaded", f"{photos.waiting:,}"]] if photos.waiting else []),
                ["of these, by the id of the product", f"{photos.by_id:,}"],
                ["photos missing", f"{photos.missing:,}"],
                ["photos of no product in the folders", f"{photos.unused:,}"],
            ],
            after=f"A text of a product that suits the data: {result.template}",
        ),
        *([_changed(result.changes)] if result.changes is not None else []),
        Section("Columns", [["column", "from"], *([name, str(origin)] for name, origin in result.mapping.items())]),
        *([_judged(result)] if result.queries else []),
        _counted("Left out", log.left_out),
        _rejected(log.rejected_by_reason, rejected),
        _missing(photos),
    ]


def _changed(changes: Changes) -> Section:
    rows = [
        [name, f"{getattr(changes, name):,}", ", ".join(changes.examples[name])] for name in ("new", "changed", "gone")
    ]
    rows.append(["as before", f"{changes.same:,}", ""])
    return Section("Since the last import", [["products", "number", "the first"], *rows])


def _judged(result: ImportResult) -> Section:
    split_of = {query.query_id: query.split or "none" for query in result.queries}
    queries = Counter(split_of.values())
    grades = Counter((split_of[one.query_id], one.grade) for one in result.judgements)
    levels = sorted({grade for _, grade in grades}, reverse=True)[:11]
    head = ["split", "queries", "judgements", *(f"grade {level}" for level in levels)]
    rows = [
        [
            split,
            f"{queries[split]:,}",
            f"{sum(count for (name, _), count in grades.items() if name == split):,}",
            *(f"{grades[split, level]:,}" for level in levels),
        ]
        for split in ("train", "val", "test", "none")
        if queries[split]
    ]
    rule = f"Grades: {result.judgement_rule}." if result.judgement_rule else ""
    return Section("Queries", [head, *rows], text=rule)


def _missing(photos: PhotoCounts) -> Section:
    rows = [["product", "photo", "reason"], *(list(one) for one in photos.examples[:_SHOWN])]
    return Section("Photos that are missing", rows if photos.examples else [], after=f"All of them are in {FAILED}.")


def _counted(title: str, counts: Counter[str]) -> Section:
    rows = [["reason", "number"], *([reason, f"{count:,}"] for reason, count in counts.most_common())]
    return Section(title, rows if counts else [])


def _rejected(counts: Counter[str], file: Path) -> Section:
    section = _counted("Rejected", counts)
    if section.rows:
        with file.open(newline="", encoding="utf-8") as opened:
            section.lines = [
                f"{name}, line {line}: {reason}" for name, line, reason in islice(csv.reader(opened), 1, 1 + _SHOWN)
            ]
        section.after = "All of them are in rejected.csv."
    return section


def _command(result: ImportResult) -> str:
    """The command that does the same, with the flags that are no defaults."""
    words = ["mmfusion", "import", *result.source.given, "--output", str(result.folder)]
    for name, value in _given(result.settings).items():
        words += [f"--{name}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)]
    return shlex.join(words)


def _given(settings: ImportSettings) -> dict[str, Any]:
    found = {}
    for one in fields(ImportSettings):
        default = one.default_factory() if one.default_factory is not MISSING else one.default
        value = getattr(settings, one.name)
        if value != default or one.name == "seed":
            found[one.name] = value
    return found
