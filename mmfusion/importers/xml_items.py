"""Items of an XML feed, one after the other: broken ones are named, and none takes the rest with it."""

from __future__ import annotations

import codecs
import html
import io
import re
from collections.abc import Iterator

from lxml import etree

from mmfusion.importers.encodings import STRAYS, encoding_of_head
from mmfusion.importers.html_text import ENTITY
from mmfusion.importers.items import ImportLog
from mmfusion.importers.rows import MAX_ROW
from mmfusion.importers.source import SourceFile

Fields = dict[str, list[str]]

# Others that hold elements, e.g. shipping with its prices, say nothing about the product.
_WITH_MARKUP = ("title", "description", "summary", "content", "image")

_CHUNK = 1 << 18
_DECLARED = re.compile(rb"""^\s*<\?xml[^>]*encoding=["']([\w.-]+)["']""")
# Comments and CDATA may hold what looks like the end of an item.
_TOKEN = re.compile(r"<!--.*?-->|<!\[CDATA\[.*?\]\]>|<(/?)(?:[\w.-]+:)?(item|entry)(?=[\s>])[^>]*>", re.DOTALL)
_LITERAL = re.compile(r"(<!\[CDATA\[.*?\]\]>)|<!--.*?-->", re.DOTALL)
_BARE = re.compile(r"&(?!(?:amp|lt|gt|quot|apos|#\d+|#x[0-9a-fA-F]+);)|<(?![A-Za-z_/])")
_VOID = re.compile(r"<(br|hr|img|input|wbr)\b([^<>]*?)/?>", re.IGNORECASE)
_UNQUOTED = re.compile(r"(<[^<>]*?\s[\w:.-]+=)([^\s\"'<>]+)")
_PREFIX = re.compile(r"(?:</?|\s)([A-Za-z_][\w.-]*):[A-Za-z_]")
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
_OF_XML = ("&amp;", "&lt;", "&gt;", "&quot;", "&apos;")


def is_feed(file: SourceFile) -> bool:
    """Whether a file starts as a feed of Google Merchant does."""
    start = file.head.lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n\0")
    if not start.startswith(b"<"):
        return False
    head = file.head.replace(b"\0", b"")
    return bool(re.search(rb"<(?:[\w.-]+:)?(?:item|entry)[\s>]", head)) and (
        b"base.google.com/ns/1.0" in head or bool(re.search(rb"<(?:[\w.-]+:)?image_link[\s>/]", head))
    )


def xml_items(file: SourceFile, log: ImportLog) -> Iterator[tuple[int, Fields]]:
    """First line and fields of each `item` or `entry`: texts by name without prefix, several where it is repeated.

    Items are cut out of the file and parsed one by one, so that memory stays small and an error costs one item.
    Prefixes need not be declared, `&` may be bare; entities that a document type declares are never expanded. Where a
    name comes with and without a prefix, as the `id` of Atom and of Google, the one with the prefix counts.
    """
    for line, text in _cut(file, log):
        try:
            root = _parsed(text)
        except etree.XMLSyntaxError as error:
            log.reject(file.name, line, f"not XML: {error.msg}")
            continue
        yield line, _fields(root)


def _cut(file: SourceFile, log: ImportLog) -> Iterator[tuple[int, str]]:
    """First line and text of each item."""
    encoding = encoding_of_head(file)
    name, errors = encoding.name, encoding.errors
    declared = _DECLARED.match(file.head)
    if declared and not name.startswith(("utf-16", "utf-32", "utf-8-sig")):
        try:
            name = codecs.lookup(declared[1].decode()).name
            # What calls itself Latin-1 is Windows-1252, as browsers know; it has the same letters and more signs.
            name = "cp1252" if name in ("iso8859-1", "ascii") else name
        except LookupError:
            log.warn(f"{file.name}: its encoding {declared[1].decode()!r} is unknown, it is read as {name}")
        errors = STRAYS if name in ("utf-8", "cp1252") else "replace"
    # An item that is open: where it starts in the buffer, and its line.
    buffer, position, start, line, start_line = "", 0, -1, 1, 0
    with file.open() as stream:
        text = io.TextIOWrapper(stream, name, errors)
        more = "-"
        while more:
            # A comment, CDATA or tag at the end may go on in the next chunk.
            opened = max(buffer.rfind("<![CDATA["), buffer.rfind("<!--"))
            is_open = opened >= 0 and buffer.find("-->" if buffer[opened + 2] == "-" else "]]>", opened) < 0
            for token in _TOKEN.finditer(buffer, position, opened if is_open else len(buffer)):
                line += buffer.count("\n", position, token.start())
                if token[2] and not token[1] and not token[0].endswith("/>"):
                    if start >= 0:
                        log.reject(file.name, start_line, f"not XML: <{token[2]}> is not closed")
                    start, start_line = token.start(), line
                elif token[1] and start >= 0:
                    yield start_line, buffer[start : token.end()]
                    start = -1
                line += token[0].count("\n")
                position = token.end()
            last = opened if is_open else buffer.rfind("<", position)
            scanned = max(position, last if last >= 0 else len(buffer))
            if start >= 0 and len(buffer) - start > MAX_ROW:
                log.reject(file.name, start_line, f"an item of more than {MAX_ROW >> 20} million characters")
                start, scanned = -1, len(buffer)
            line += buffer.count("\n", position, scanned)
            kept = start if start >= 0 else scanned
            more = text.read(_CHUNK)
            buffer, position, start = buffer[kept:] + more, scanned - kept, min(start, 0)
    if start >= 0:
        log.reject(file.name, start_line, "not XML: the file ends in the middle of an item")


def _parsed(text: str) -> etree._Element:
    text = _FORBIDDEN.sub("", text)
    parts = _LITERAL.split(text)
    for at in range(0, len(parts), 2):
        markup = ENTITY.sub(lambda one: one[0] if one[0] in _OF_XML else _spelled(one[0]), parts[at])
        parts[at] = _VOID.sub(r"<\1\2/>", _BARE.sub(lambda one: html.escape(one[0]), markup))
    markup = "".join(parts[::2])
    prefixes = {prefix for prefix in _PREFIX.findall(markup) if not prefix.startswith("xml")}
    declared = "".join(f' xmlns:{prefix}="urn:{prefix}"' for prefix in sorted(prefixes))
    # The parser keeps no state but is not to be shared between threads.
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)
    whole = "<feed" + declared + ">{}</feed>"
    try:
        return etree.fromstring(whole.format("".join(part or "" for part in parts)), parser)[0]
    except etree.XMLSyntaxError:
        parts[::2] = [_UNQUOTED.sub(r'\1"\2"', part) for part in parts[::2]]
        return etree.fromstring(whole.format("".join(part or "" for part in parts)), parser)[0]


def _spelled(entity: str) -> str:
    """An entity of HTML as the letter it stands for; another one as it is written."""
    return html.escape(html.unescape(entity), quote=False)


def _fields(item: etree._Element) -> Fields:
    own: Fields = {}
    plain: Fields = {}
    for element in item.iterchildren(etree.Element):
        name = etree.QName(element).localname.lower().removeprefix("structured_")
        # <structured_title> says how it was written, too.
        content = element.find("{*}content")
        element = element if content is None else content
        if len(element) and name not in _WITH_MARKUP:
            continue
        text = "".join([element.text or "", *(etree.tostring(one, encoding="unicode") for one in element)]).strip()
        if not text and element.get("href"):
            text = element.get("href", "")
        if text:
            (own if element.prefix else plain).setdefault(name, []).append(text)
    return {**plain, **own}
