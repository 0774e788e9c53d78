"""HTML that is escaped by construction: text becomes markup only through `tag`."""

import html
import re

# Browsers replace or reject these, and none of them is text: C0 and C1 controls (but tab and line ends), surrogates.
_NOT_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_VOID = frozenset({"br", "hr", "img", "link", "meta"})

Attribute = str | int | float | bool | None


class Html(str):
    """Markup that is safe to put into a page as it is."""

    __slots__ = ()


def escape(text: str) -> Html:
    """Text as markup, safe between tags and inside quoted attributes.

    >>> escape("<script>")
    '&lt;script&gt;'
    """
    return text if isinstance(text, Html) else Html(html.escape(_NOT_TEXT.sub("\ufffd", text), quote=True))


def tag(name: str, /, *children: str | None, **attributes: Attribute) -> Html:
    """One element; children that are not `Html` are escaped, as are all attributes.

    Args:
        name: Name of the element.
        *children: Text or markup, in order; None is left out.
        **attributes: A trailing underscore is dropped and others become hyphens (`class_`, `aria_label`); None and
            False leave an attribute out, True gives one without a value.

    >>> tag("p", "a < b", tag("b", "!"), class_="note", hidden=False)
    '<p class="note">a &lt; b<b>!</b></p>'
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(*children)}</{name}>")


def join(*children: str | None) -> Html:
    """Children one after the other; text is escaped."""
    return Html("".join(escape(child) for child in children if child is not None))


def foreign(text: str, limit: int = 300) -> Html:
    """Text that a catalogue brought, of any script and length: its direction stays inside it.

    Args:
        text: Any text.
        limit: Longer text is cut after this many characters and ends in an ellipsis.
    """
    line = " ".join(text.split())
    return tag("bdi", line if len(line) <= limit else f"{line[:limit]}…", dir="auto")


def table(header: list[str], rows: list[list[str]], *, caption: str) -> Html:
    """A table in a box that scrolls by itself; the first column heads its row. Rows may hold `td` elements."""
    head = tag("thead", tag("tr", *(tag("th", cell, scope="col") for cell in header)))
    body = tag("tbody", *(tag("tr", tag("th", row[0], scope="row"), *map(_cell, row[1:])) for row in rows))
    inner = tag("table", tag("caption", caption), head, body)
    return tag("div", inner, class_="scroll", role="region", aria_label=caption, tabindex=0)


def _cell(content: str) -> Html:
    if isinstance(content, Html) and content.startswith("<td"):
        return content
    return tag("td", content)


def _attribute(key: str, value: Attribute) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'
