"""The Python blocks of a Markdown page, to run them as they are written."""

import re
from dataclasses import dataclass

_HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*$")
_FENCE = re.compile(r"^(`{3,}|~{3,})\s*(\w*)\s*$")


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
