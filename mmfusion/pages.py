"""What Markdown and HTML pages are made of: tables of text, templates, and photos that are small enough for a page."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

# Browsers replace or reject these, and none of them is text: C0 and C1 controls (but tab and line ends), surrogates.
_NOT_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_QUALITY = 78


def escape_cell(text: str) -> str:
    """A text that stays in its cell of a Markdown table."""
    return " ".join(text.replace("|", r"\|").replace("<", "&lt;").split())


def text_table(rows: Sequence[Sequence[str]], *, aligned: bool = False, numbers: bool = True) -> str:
    """A Markdown table of texts; the first row is its head.

    Args:
        rows: Texts, the same number in each row.
        numbers: Aligns all columns but the first to the right.
        aligned: Pads cells to equal widths, to be read in a terminal as well.
    """
    cells = [[escape_cell(cell) for cell in row] for row in rows]
    if not aligned:
        rule = ["---", *["---:" if numbers else "---"] * (len(cells[0]) - 1)]
        return "\n".join(f"| {' | '.join(row)} |" for row in [cells[0], rule, *cells[1:]])
    first, *others = (max(3, *map(len, column)) for column in zip(*cells, strict=True))
    lines = []
    for head, *row in cells:
        padded = [head.ljust(first), *(cell.rjust(width) for cell, width in zip(row, others, strict=True))]
        lines.append(f"| {' | '.join(padded)} |")
    rule_line = f"|{'-' * (first + 2)}|" + "".join(f"{'-' * (width + 1)}:|" for width in others)
    return "\n".join([lines[0], rule_line, *lines[1:]])


def page_environment(folder: Path, *, html: bool = False) -> jinja2.Environment:
    """Jinja2 over the templates of a folder; a place that nobody fills is an error.

    Args:
        folder: Where templates and what they include are.
        html: Escapes what is filled in, and replaces what is no text. Markdown is not escaped: tables and prose are
            Markdown themselves.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=html,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    if html:
        environment.finalize = _without_controls
    environment.filters["shorten"] = shorten
    return environment


def shorten(text: str, limit: int = 300) -> str:
    """A text that a catalogue brought, in one line, cut after so many characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[:limit]}…"


def thumbnail(photo: Image.Image, size: tuple[int, int]) -> dict[str, Any]:
    """A photo as a small JPEG in a data URI (`uri`), with its `width` and `height` in pixels.

    Args:
        photo: In mode RGB.
        size: Largest width and height in pixels.
    """
    small, file = photo.copy(), io.BytesIO()
    small.thumbnail(size, Image.Resampling.LANCZOS)
    small.save(file, "JPEG", quality=_QUALITY, optimize=True)
    uri = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
    return {"uri": uri, "width": small.width, "height": small.height}


def _without_controls(value: Any) -> Any:
    """Applied to all that is filled in; what is markup already was made of such texts."""
    return _NOT_TEXT.sub("\ufffd", value) if isinstance(value, str) and not hasattr(value, "__html__") else value
