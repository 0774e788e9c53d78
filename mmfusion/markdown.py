"""Markdown tables, whatever their cells hold."""

from __future__ import annotations

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is its head, and the first column is aligned left."""
    cells = [[cell(text) for text in row] for row in rows]
    rule = ["---", *["---:"] * (len(rows[0]) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [cells[0], rule, *cells[1:]])


def cell(text: str) -> str:
    """A text that stays in its cell, whatever it holds."""
    return " ".join(text.replace("|", r"\|").replace("<", "&lt;").split())
