"""What the header of a photo's file says, without a decoder: the parts of a JPEG or PNG in front of its pixels."""

from __future__ import annotations

from collections.abc import Iterator

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_TIFF = (b"II*\0", b"MM\0*")
_SCAN = 0xDA
# Bytes below which searching a file through is faster than going from segment to segment.
_SHORT = 32_768
_PROFILE_IN_JPEG, _PROFILE_IN_PNG, _KEY_IN_PNG = b"ICC_PROFILE\0", b"iCCP", b"tRNS"


def may_need_colours(data: bytes) -> bool:
    """Whether a file may hold a colour profile or other colours than most do; False is certain."""
    if data.startswith(_JPEG):
        if len(data) < _SHORT:
            return _PROFILE_IN_JPEG in data
        return any(data.startswith(_PROFILE_IN_JPEG, start + 4) for start, _ in _jpeg_segments(data))
    if data.startswith(_PNG):
        return any(data[start + 4 : start + 8] in (_PROFILE_IN_PNG, _KEY_IN_PNG) for start, _ in _png_chunks(data))
    # The signature of a profile, which no other format compresses. A TIFF may hold CIELAB instead of RGB.
    return data.startswith(_TIFF) or b"acsp" in data


def without_profile(data: bytes) -> bytes | None:
    """The file without the profile in it; None if it is neither JPEG nor PNG, or has none."""
    if data.startswith(_JPEG):
        found = [part for part in _jpeg_segments(data) if data.startswith(_PROFILE_IN_JPEG, part[0] + 4)]
    elif data.startswith(_PNG):
        found = [part for part in _png_chunks(data) if data[part[0] + 4 : part[0] + 8] == _PROFILE_IN_PNG]
    else:
        return None
    if not found:
        return None
    kept, at = [], 0
    for start, end in found:
        kept.append(data[at:start])
        at = end
    return b"".join([*kept, data[at:]])


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Start and end of the segments from behind the first marker to the first scan."""
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            # Between segments decoders skip what is no marker.
            at = data.find(b"\xff", at)
            if at < 0:
                return
        elif data[at + 1] in (0xFF, 0x00, 0x01) or 0xD0 <= data[at + 1] <= 0xD8:
            at += 1 if data[at + 1] == 0xFF else 2
        elif data[at + 1] == _SCAN:
            return
        else:
            end = at + 2 + max(int.from_bytes(data[at + 2 : at + 4], "big"), 2)
            yield at, end
            at = end


def _png_chunks(data: bytes) -> Iterator[tuple[int, int]]:
    """Start and end of the chunks in front of the pixels."""
    at = len(_PNG)
    while at + 8 <= len(data) and data[at + 4 : at + 8] != b"IDAT":
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        yield at, end
        at = end
