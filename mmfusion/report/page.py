"""The whole document: one file that fetches nothing and runs nothing."""

import base64
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from mmfusion.files import replace_text
from mmfusion.report.html import Html, join, tag
from mmfusion.report.style import CSS

FILE_NAME = "report.html"
_GENERATOR = "mmfusion report"


@dataclass(frozen=True)
class Section:
    """A part of the page with its heading.

    Attributes:
        anchor: Its id, letters only.
        heading: Its heading.
        body: What it holds.
    """

    anchor: str
    heading: str
    body: Html


def build_page(title: str, introduction: Html, sections: list[Section]) -> Html:
    """The document, UTF-8, with a policy that lets a browser load nothing but embedded pictures.

    Args:
        title: Heading and title of the page.
        introduction: Below the heading.
        sections: The rest, in order.
    """
    links = [tag("li", tag("a", section.heading, href=f"#{section.anchor}")) for section in sections]
    main = tag(
        "main",
        *(tag("section", tag("h2", part.heading), part.body, id=part.anchor) for part in sections),
    )
    header = tag("header", tag("h1", title), introduction, tag("nav", tag("ul", *links), aria_label="Contents"))
    document = tag("html", _head(title), tag("body", header, main), lang="en")
    return join(Html("<!DOCTYPE html>\n"), document, "\n")


def write_page(folder: str | os.PathLike[str], page: Html) -> Path:
    """Writes the page as `report.html`, whole or not at all; an older report is replaced.

    Args:
        folder: Output folder; made if missing.
        page: The document.

    Raises:
        FileExistsError: The folder holds a file of that name that is no report.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE_NAME
    if path.exists() and str(_generator()) not in path.read_text("utf-8", errors="replace")[:4000]:
        raise FileExistsError(f"{path} is not a report of mmfusion; move it away or give another --output")
    replace_text(path, page)
    return path


def _head(title: str) -> Html:
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{_digest(CSS)}'; base-uri 'none'; form-action 'none'"
    )
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        _generator(),
        tag("title", title),
        # Without it a browser asks the server for /favicon.ico.
        tag("link", rel="icon", href="data:,"),
        # A style element is raw text: escaped quotes would stay as they are, and its digest must match.
        tag("style", Html(CSS)),
    )


def _generator() -> Html:
    return tag("meta", name="generator", content=_GENERATOR)


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
