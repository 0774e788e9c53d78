"""The Python of a card: an example product that suits the model, and all snippets, to run them as they are written."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mmfusion.hub.card_facts import ModelFacts

_HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*$")
_FENCE = re.compile(r"^(`{3,}|~{3,})\s*(\w*)\s*$")
_EXAMPLES = (("Red floral summer dress", "red"), ("Blue denim jacket", "blue"))


@dataclass(frozen=True)
class Snippet:
    """A fenced block of Python.

    Attributes:
        heading: The nearest heading above it.
        code: Its lines.
        line: Number of its first line in the card, from 1.
    """

    heading: str
    code: str
    line: int


def python_snippets(markdown: str) -> list[Snippet]:
    """All fenced blocks of a text that are marked as Python, in their order."""
    found: list[Snippet] = []
    heading, fence, language, start = "", "", "", 0
    lines = markdown.splitlines()
    for number, line in enumerate(lines, start=1):
        mark = _FENCE.match(line)
        if not fence and mark:
            fence, language, start = mark[1], mark[2], number
        elif fence and mark and mark[1].startswith(fence) and not mark[2]:
            if language in ("python", "py"):
                found.append(Snippet(heading, "\n".join(lines[start : number - 1]) + "\n", start + 1))
            fence = ""
        elif not fence and (title := _HEADING.match(line)):
            heading = title[1]
    return found


def example_products(facts: ModelFacts) -> str:
    """Python of a list of two products, with and without a photo, in the columns that the model's template names."""
    columns = [column for column in facts.columns if column != "image"]
    lines = []
    for (title, colour), with_photo in zip(_EXAMPLES, (True, False), strict=True):
        texts = [f"{_quoted(column)}: {_quoted(title if column == columns[0] else '')}" for column in columns]
        photo = f"Image.new('RGB', (192, 256), {colour!r})".replace("'", '"') if with_photo else "None"
        lines.append("    {" + ", ".join([*texts, f"{_quoted('image')}: {photo}"]) + "},")
    return "\n".join(["[", *lines, "]"])


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
