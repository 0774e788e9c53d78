"""Readers of click data: kinds, columns, numbers, queries, what is left out and why."""

import json
from pathlib import Path

from mmfusion.importers.clicks import ClickLog, read_clicks


def counts_of(log: ClickLog) -> dict[str, dict[str, int]]:
    """Counts by "query / product"."""
    sums = log.cells.groupby(["query", "product"])[["impressions", "clicks", "add_to_cart", "purchases"]].sum()
    return {
        f"{log.queries[query]} / {log.products[product]}": row.to_dict() for (query, product), row in sums.iterrows()
    }


def test_the_sample_report_is_read_as_expected(samples: Path) -> None:
    folder = samples / "clicks"
    expected = json.loads((folder / "expected.json").read_text())["files"]["search_report.csv"]
    rejected: list[tuple[str, int, str]] = []
    log = read_clicks(
        folder / "search_report.csv", {"007", "008", "009", "010"}, reject=lambda *row: rejected.append(row)
    )
    assert log.queries == expected["normalised_queries"]
    assert counts_of(log)["red dress / 007"] == expected["merged_rows"]["red dress / 007"]
    assert log.warnings == expected["warnings"]
    assert log.num_rows == 11 and log.num_merged == 1 and not log.has_sessions and log.has_positions
    assert log.counts == {"query is a placeholder": 1, "query is blank": 1, "product is unknown": 1}
    assert [(line, reason) for _, line, reason in rejected] == [
        (8, "query is a placeholder: (not set)"),
        (9, "product is unknown: '0999'"),
        (11, "query is blank"),
    ]
