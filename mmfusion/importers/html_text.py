"""Descriptions of shops as plain text: HTML, entities, shortcodes of WordPress."""

from __future__ import annotations

import html
import re

_INLINE = (
    "a|abbr|acronym|b|bdi|bdo|big|cite|code|data|del|dfn|em|font|i|ins|kbd|label|mark|"
    "meter|q|s|samp|small|span|strike|strong|sub|sup|tt|u|var|wbr"
)
_BLOCK = (
    "address|article|aside|audio|blockquote|body|br|button|canvas|caption|center|col|colgroup|"
    "dd|details|dialog|dir|div|dl|dt|embed|fieldset|figcaption|figure|footer|form|frame|h[1-6]|"
    "head|header|hr|html|iframe|img|input|li|link|main|map|menu|meta|nav|noscript|object|ol|"
    "optgroup|option|p|param|picture|pre|progress|section|select|source|summary|svg|table|tbody|"
    "td|template|textarea|tfoot|th|thead|time|title|tr|ul|video"
)
# A `>` may stand in the quotes of an attribute; where quotes do not match, the next `>` ends the tag.
_REST = r"""(?:(?:[\s/](?:"[^"<]*"|'[^'<]*'|[^'"<>])*)?|[\s/][^<>]*)>"""
_INLINE_TAG = re.compile(rf"</?(?:{_INLINE}){_REST}", re.IGNORECASE)
_TAG = re.compile(rf"</?(?:{_INLINE}|{_BLOCK}|[a-z]\w*[:-][\w:-]+){_REST}|<![a-z][^<>]*>", re.IGNORECASE)
_UNSEEN = re.compile(
    r"<!--.*?(?:-->|\Z)|<(style|script|head|title)\b[^>]*>.*?(?:</\1\s*>|\Z)", re.IGNORECASE | re.DOTALL
)
ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_ZERO_WIDTH = re.compile("[\u200b\u2060\ufeff\xad]")
_SHORTCODE = re.compile(r"\[(/?)([A-Za-z][\w-]*)(\s[^\[\]]*)?/?\]")
_NAMED_SHORTCODES = {"gallery", "products", "product", "embed", "playlist", "audio", "video", "caption", "more"}
_LITERAL_BREAK = re.compile(r"(?<!\\)(?:\\r)?\\n")


def html_to_text(text: str) -> str:
    """Text of a piece of HTML in one line; text without tags and entities stays as it is, but for blanks at its ends.

    Styles, scripts and comments are dropped. `a < b`, `R&D` and `<your name>` are no HTML and stay. HTML that was
    escaped once more is read, too.
    """
    if "<" not in text and "&" not in text:
        return text.strip()
    for _ in range(2):
        if "<" in text:
            text = _UNSEEN.sub(" ", text)
            text = _TAG.sub(" ", _INLINE_TAG.sub("", text))
        unescaped = ENTITY.sub(_unescape, text)
        if unescaped == text:
            break
        text = unescaped
    return " ".join(_ZERO_WIDTH.sub("", text).split())


def _unescape(entity: re.Match[str]) -> str:
    return html.unescape(entity.group())


def wordpress_to_text(text: str) -> str:
    r"""Text of a description of WordPress: HTML with shortcodes, and `\n` written as two characters.

    A shortcode goes if it has attributes, is closed, or has a known name; what it encloses stays. `[M]` is none.
    """
    if "\\n" in text:
        text = _LITERAL_BREAK.sub("\n", text)
    if "[" in text:
        closed = {name for slash, name, _ in _SHORTCODE.findall(text) if slash}

        def replace(found: re.Match[str]) -> str:
            name, rest = found[2], found[3] or ""
            return "" if name in closed | _NAMED_SHORTCODES or "_" in name or "=" in rest else found[0]

        text = _SHORTCODE.sub(replace, text)
    return " ".join(html_to_text(text).split())
