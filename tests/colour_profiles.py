"""ICC profiles that tests build themselves, and what their colours are in sRGB by the formulas."""

import struct
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
# Colorants of RGB spaces adapted to D50, rows red, green and blue, as their profiles have them.
SRGB = np.array([(0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410)])
DISPLAY_P3 = np.array([(0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)])
ADOBE_RGB = np.array([(0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)])
ADOBE_GAMMA = 2.19921875
_D50 = (0.9642, 1.0, 0.8249)


def srgb_to_light(values: Floats) -> Floats:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def light_to_srgb(light: Floats) -> Floats:
    light = light.clip(0, 1)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def in_srgb(colours: npt.ArrayLike, colorants: Floats, to_light: Callable[[Floats], Floats] = srgb_to_light) -> Floats:
    """Colours (…, 3) of 0 to 255 of an RGB space, in sRGB (…, 3), clipped and not rounded."""
    return light_to_srgb(to_light(np.asarray(colours) / 255) @ colorants @ np.linalg.inv(SRGB)) * 255


def lab_in_srgb(lab: tuple[float, float, float]) -> Floats:
    """A colour of CIELAB, D50, in sRGB (3,), clipped and not rounded."""
    y = (lab[0] + 16) / 116
    roots = np.array([y + lab[1] / 500, y, y - lab[2] / 200])
    xyz = np.where(roots > 6 / 29, roots**3, (roots - 4 / 29) * 3 * (6 / 29) ** 2) * _D50
    return light_to_srgb(xyz @ np.linalg.inv(SRGB)) * 255


def rgb_profile(colorants: Floats = DISPLAY_P3, gamma: float | None = None, points: int = 0) -> bytes:
    """The profile of an RGB space whose curve is that of sRGB, a power, or that of sRGB as a table of points."""
    curve = _table(points) if points else _curve(gamma)
    names = (b"rXYZ", b"gXYZ", b"bXYZ")
    colours = {name: _xyz(tuple(row)) for name, row in zip(names, colorants, strict=True)}
    return _profile(b"mntr", b"RGB ", b"XYZ ", {**colours, b"rTRC": curve, b"gTRC": curve, b"bTRC": curve})


def grey_profile(gamma: float) -> bytes:
    """The profile of greys whose light is a power of their value."""
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": _curve(gamma)})


def cmyk_profile(lab_of: Callable[[tuple[int, ...]], tuple[float, float, float]]) -> bytes:
    """The profile of a printing press, told by the CIELAB colours of its 16 mixes of full inks (C, M, Y, K: 0 or 1)."""
    mixes = [tuple(mix >> (3 - ink) & 1 for ink in range(4)) for mix in range(16)]
    colours = bytes(round(v) for mix in mixes for v in lab8(lab_of(mix)))
    ramp = bytes(range(256))
    identity = b"".join(_s15(value) for value in (1, 0, 0, 0, 1, 0, 0, 0, 1))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + ramp * 4 + colours + ramp * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": table, b"A2B1": table})


def lab8(lab: tuple[float, float, float]) -> tuple[float, float, float]:
    """CIELAB in bytes, not rounded."""
    return lab[0] * 2.55, lab[1] + 128, lab[2] + 128


def _profile(device: bytes, space: bytes, connection: bytes, tags: Mapping[bytes, bytes]) -> bytes:
    text = "test".encode("utf-16-be")
    name = b"mluc\0\0\0\0" + struct.pack(">II", 1, 12) + b"enUS" + struct.pack(">II", len(text), 28) + text
    tags = {b"desc": name, b"cprt": name, b"wtpt": _xyz(_D50), **tags}
    entries, data, start = b"", b"", 132 + 12 * len(tags)
    for key, value in tags.items():
        entries += key + struct.pack(">II", start + len(data), len(value))
        data += value + b"\0" * (-len(value) % 4)
    body = struct.pack(">I", len(tags)) + entries + data
    about = struct.pack(">I4xI", 128 + len(body), 0x04000000) + device + space + connection
    header = about + struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + b"".join(map(_s15, _D50))
    return header.ljust(128, b"\0") + body


def _curve(gamma: float | None) -> bytes:
    if gamma is not None:
        return b"para\0\0\0\0" + struct.pack(">HH", 0, 0) + _s15(gamma)
    srgb = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    return b"para\0\0\0\0" + struct.pack(">HH", 3, 0) + b"".join(map(_s15, srgb))


def _table(points: int) -> bytes:
    values = np.rint(srgb_to_light(np.linspace(0, 1, points)) * 65535).astype(int)
    return b"curv\0\0\0\0" + struct.pack(f">I{points}H", points, *values)


def _xyz(values: tuple[float, ...]) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(map(_s15, values))


def _s15(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))
