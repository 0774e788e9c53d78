"""The files of an audit: a table of all findings, and a page with photos of the first of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from mmfusion.audit.audit import (
    MISSING_WORD,
    SAME_PHOTO,
    WRONG_PHOTO,
    WRONG_WORD,
    Audit,
    Finding,
    Judged,
    Settings,
    counts,
)
from mmfusion.audit.thresholds import Threshold
from mmfusion.data.catalogue import Catalogue
from mmfusion.data.tables import Rows
from mmfusion.evaluation.tables import percent
from mmfusion.report.build import fill
from mmfusion.report.tiles import Thumbnails

COLUMNS = ("finding", "product_id", "title", "attribute", "title_says", "photo_says", "score", "same_photo_as")
# A spreadsheet would run these as a formula, and titles are written by anybody.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def findings_csv(found: Audit, titles: Sequence[str], names: Sequence[str]) -> str:
    """All findings as CSV, a row each, with a head.

    Args:
        found: The audit.
        titles: Of the products that were looked at. One that a spreadsheet would run as a formula gets a ' in front.
        names: Their ids.
    """
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in found.findings:
        says = one.photo_says or ", ".join(found.photo_says(one.row))
        title_says, others = ", ".join(one.title_says), " ".join(names[row] for row in one.others)
        cells = [one.kind, names[one.row], titles[one.row], one.attribute, title_says, says, f"{one.score:.3f}", others]
        writer.writerow([f"'{cell}" if cell.startswith(_FORMULA) else cell for cell in cells])
    return table.getvalue()


def attribute_rows(found: Audit) -> list[list[str]]:
    """What titles name, leave out and get wrong, an attribute in each row below a head; shares in per cent."""
    head = [
        "attribute",
        "titles name it",
        "they do not",
        "photo says it",
        "wrong",
        "wrong words",
        "precision",
        "recall",
    ]
    total = int(found.audited.sum())
    rows = [head]
    for one in found.judged:
        named = int((one.naming.named.any(1) & found.audited).sum())
        kinds = [finding.kind for finding in found.findings if finding.attribute == one.attribute.name]
        rows.append(
            [
                one.attribute.name,
                percent(named / total),
                percent(1 - named / total),
                percent(kinds.count(MISSING_WORD) / total),
                told(one.wrong, one.wrong.errors),
                f"{kinds.count(WRONG_WORD):,}",
                told(one.wrong, one.wrong.precision),
                told(one.wrong, one.wrong.recall),
            ]
        )
    return rows


def told(threshold: Threshold, share: float) -> str:
    """A share that was measured with a threshold, in per cent, where there is one."""
    return percent(None if threshold.score is None else share)


def audit_page(
    found: Audit,
    catalogue: Catalogue,
    rows: Rows,
    titles: Sequence[str],
    *,
    shown: int,
    settings: Settings,
    fingerprint: str,
) -> str:
    """The page, which fetches nothing.

    Args:
        found: The audit.
        catalogue: Where the rows point.
        rows: (P,) of the products that were looked at.
        titles: Of these.
        shown: Findings of each kind with photos, the surest.
        settings: How it was decided.
        fingerprint: Of the model.
    """
    thumbnail = lru_cache(maxsize=None)(Thumbnails(catalogue))

    def tile(place: int) -> dict[str, Any]:
        row = int(rows[place])
        name = str(catalogue.product_ids[row])
        return {"thumbnail": thumbnail(row), "title": titles[place], "product_id": name}

    def card(one: Finding) -> dict[str, Any]:
        said = [value for judged in found.judged for value in _named(judged, one.row)]
        photo, title = [one.photo_says] * bool(one.photo_says), list(one.title_says)
        # What the finding is about, then what else there is.
        says = {"photo": (photo, found.photo_says(one.row)), "title": (title, said)}
        return {
            **tile(one.row),
            "says": {who: (own, [v for v in all_ if v not in own]) for who, (own, all_) in says.items()},
        }

    of_kind = {kind: [one for one in found.findings if one.kind == kind] for kind in counts(found)}
    groups = [[tile(place) for place in (one.row, *one.others)] for one in of_kind[SAME_PHOTO][:shown]]
    return fill(
        "audit.html",
        counts=counts(found),
        cards={kind: [card(one) for one in of_kind[kind][:shown]] for kind in (WRONG_WORD, WRONG_PHOTO, MISSING_WORD)},
        groups=groups,
        attributes=attribute_rows(found),
        missing=[(one.attribute.name, one.missing) for one in found.judged],
        wrong_photo=found.wrong_photo,
        total=int(found.audited.sum()),
        without=int((found.audited & ~found.has_photo).sum()),
        settings=settings,
        fingerprint=fingerprint,
        shown=shown,
    )


def _named(judged: Judged, row: int) -> list[str]:
    return [value for value, there in zip(judged.attribute.values, judged.naming.named[row], strict=True) if there]
