"""What the header of a photo's file says, without a decoder: the parts of a JPEG or PNG in front of its pixels."""

from __future__ import annotations

from collections.abc import Iterator

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_TIFF = (b"II*\0", b"MM\0*")
_SCAN = 0xDA
# Bytes below which searching a file through is faster than going from segment to segment.
_SHORT = 32_768
# Labels of parts with a colour profile, in JPEG and PNG, and with the colour of a PNG that is transparent.
_PROFILES, _KEY = (b"ICC_PROFILE\0", b"iCCP"), b"tRNS"


def may_need_colours(data: bytes) -> bool:
    """Whether a file may hold a colour profile or other colours than most do; False is certain."""
    if data.startswith(_JPEG) and len(data) < _SHORT:
        return _PROFILES[0] in data
    if data.startswith((_JPEG, _PNG)):
        return any(label in (*_PROFILES, _KEY) for label, _, _ in _parts(data))
    # The signature of a profile, which no other format compresses. A TIFF may hold CIELAB instead of RGB.
    return data.startswith(_TIFF) or b"acsp" in data


def without_profile(data: bytes) -> bytes | None:
    """The file without the profile in it; None if it is neither JPEG nor PNG, or has none."""
    found = [(start, end) for label, start, end in _parts(data) if label in _PROFILES]
    starts, ends = [start for start, _ in found], [end for _, end in found]
    kept = [data[end:start] for end, start in zip([0, *ends], [*starts, len(data)], strict=True)]
    return b"".join(kept) if found else None


def _parts(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Label, start and end of the parts of a JPEG or PNG in front of the pixels; none of other files."""
    if data.startswith(_PNG):
        at = len(_PNG)
        while at + 8 <= len(data) and data[at + 4 : at + 8] != b"IDAT":
            end = at + 12 + int.from_bytes(data[at : at + 4], "big")
            yield data[at + 4 : at + 8], at, end
            at = end
    at = 2 if data.startswith(_JPEG) else len(data)
    while at + 4 <= len(data):
        marker = data[at + 1]
        if data[at] != 0xFF:
            # Between segments decoders skip what is not a marker.
            at = data.find(b"\xff", at)
            if at < 0:
                return
        elif marker in (0xFF, 0x00, 0x01) or 0xD0 <= marker <= 0xD8:
            at += 1 if marker == 0xFF else 2
        elif marker == _SCAN:
            return
        else:
            end = at + 2 + max(int.from_bytes(data[at + 2 : at + 4], "big"), 2)
            yield data[at + 4 : at + 16], at, end
            at = end
