"""Which encoding a text has: a byte order mark, UTF-8, then what its letters speak for, else Windows-1252."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from mmfusion.importers.source import SourceFile

_CHUNK = 1 << 20
_SAMPLE = 1 << 16
_ENOUGH = 6
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_NOT_LATIN = ["cp1251", "koi8_r", "cp1253", "cp1255", "cp1256", "cp932", "euc_jp", "gb18030", "big5", "cp949", "cp874"]
# The letters of languages beyond ASCII, by the encodings that Windows, the Mac and DOS wrote them in.
_WESTERN = ("äöüß", "àâæçéèêëîïôœùûüÿ", "áéíñóúü", "àáâãçéêíóôõú", "åäöé", "æøåé", "àèéìîòù", "áæðéíóöúýþ", "ëéèïöüó")
_LETTERS = {
    "cp1252": _WESTERN,
    "cp1250": ("ąćęłńóśźż", "áčďéěíňóřšťúůýž", "áäčďéíĺľňóôŕšťúýž", "áéíóöőúüű", "čćđšž", "ăâîşţ"),
    "cp1254": ("çğıiöşüâ",),
    "cp1257": ("āčēģīķļņšūž", "ąčęėįšųūž", "äõöšüž"),
    "mac_roman": _WESTERN,
    "cp850": _WESTERN,
}
_PUNCTUATION = set("–—‘’‚“”„…€£°®™©·•«»¿¡²½×\xa0")
_UTF8_SEQUENCE = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
_RUN = re.compile(rb"[\x80-\xff]{2,}")
STRAYS = "mmfusion.strays"


class Encoding(NamedTuple):
    """How the bytes of a file are read.

    Attributes:
        name: Of Python's codecs.
        errors: What becomes of bytes that do not belong.
        doubt: What the user should look at; "" where the encoding is certain.
        nuls: Whether the text may hold NUL characters.
    """

    name: str
    errors: str = "strict"
    doubt: str = ""
    nuls: bool = True


def encoding_of_head(file: SourceFile) -> Encoding:
    """The encoding that the start of a file speaks for."""
    return _find([file.head])


def encoding_of(file: SourceFile) -> Encoding:
    """The encoding of a whole file: a letter beyond ASCII may come late."""
    with file.open() as stream:
        return _find(iter(lambda: stream.read(_CHUNK), b""))


def _find(chunks: Iterable[bytes]) -> Encoding:
    chunks = iter(chunks)
    decoder = codecs.getincrementaldecoder("utf-8")()
    first, nuls = True, False
    for chunk in chunks:
        if first and (name := _marked(chunk)):
            return Encoding(name, "replace")
        first, nuls = False, nuls or b"\0" in chunk
        try:
            decoder.decode(chunk)
        except UnicodeDecodeError:
            return _guess(decoder.getstate()[0] + chunk + next(chunks, b""))
    # Bytes after the last of these that were read: a file cut in the middle of a letter.
    return Encoding("utf-8", STRAYS, "NUL bytes were removed" if nuls else "", nuls)


def _marked(head: bytes) -> str | None:
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    # UTF-16 without a mark: of ASCII, be it only delimiters and digits, every second byte is 0.
    even, odd = (head[start:4000:2].count(0) for start in (0, 1))
    if max(even, odd) > max(8, 5 * min(even, odd), 0.02 * len(head[:4000])):
        return "utf-16-le" if odd > even else "utf-16-be"
    return None


def _guess(sample: bytes) -> Encoding:
    lines = b"\n".join(line for line in sample.split(b"\n") if not line.isascii())[:_SAMPLE]
    count = sum(byte > 127 for byte in lines)
    if sum(map(len, _UTF8_SEQUENCE.findall(lines))) > count / 2:
        return Encoding("utf-8", STRAYS, "most of it is UTF-8, some bytes are Windows-1252")
    name = "cp1252"
    if count >= _ENOUGH:
        in_runs = sum(len(run) for run in _RUN.findall(lines))
        # Words of other scripts are runs of such letters; accents stand alone.
        name = _not_latin(lines) if in_runs > 0.7 * count else _latin(lines, count)
    example = re.search(r"\w*[^\x00-\x7f]\w*", lines.decode(name, STRAYS))
    shown = f", e.g. {example.group()[:40]!r}" if example else ""
    return Encoding(name, STRAYS if name == "cp1252" else "replace", f"it is not UTF-8 and was read as {name}{shown}")


def _not_latin(lines: bytes) -> str:
    # Loaded where it is needed: it takes a while.
    from charset_normalizer import from_bytes

    best = from_bytes(lines, cp_isolation=[*_NOT_LATIN, "cp1252"]).best()
    return best.encoding if best is not None else "cp1252"


def _latin(lines: bytes, count: int) -> str:
    """The encoding in which most letters beyond ASCII belong to one language; Windows-1252 unless another is better."""
    shares = {}
    for name, languages in _LETTERS.items():
        letters = [one for one in lines.decode(name, "replace").lower() if one > "\x7f" and one not in _PUNCTUATION]
        shares[name] = max(sum(one in language for one in letters) / (len(letters) or 1) for language in languages)
    best = max(shares, key=shares.__getitem__)
    # The fewer letters there are, the surer it must be.
    return best if shares[best] > shares["cp1252"] + max(0.1, 3 / count) else "cp1252"


def _read_strays(error: UnicodeError) -> tuple[str, int]:
    """Bytes that do not belong, as Windows-1252; the five that it leaves open, as Latin-1."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    bad = error.object[error.start : error.end]
    return "".join(_stray_letters(bad)), error.end


def _stray_letters(bad: bytes) -> Iterator[str]:
    for byte in bad:
        letter = bytes([byte]).decode("cp1252", "ignore")
        yield letter or chr(byte)


codecs.register_error(STRAYS, _read_strays)
