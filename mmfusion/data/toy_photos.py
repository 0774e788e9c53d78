"""Draws one product photo with Pillow: a silhouette, filled with a colour and a pattern, on a tinted background.

Nothing is loaded from disk (no fonts, no textures). Shapes are polygons in a unit square, so that position, scale,
rotation and mirroring are one affine map of their points. The picture is drawn at twice its size and reduced.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

PHOTO_SIZE: Final = 64
_CANVAS: Final = 2 * PHOTO_SIZE

Point = tuple[float, float]
Polygon = tuple[Point, ...]
Rgb = tuple[int, int, int]

# (lowest, highest) hue in degrees, saturation and value in percent. Ranges of two colours never overlap, so that
# the name of a colour can always be seen in the photo.
COLOUR_RANGES: Final[dict[str, tuple[tuple[int, int], tuple[int, int], tuple[int, int]]]] = {
    "red": ((352, 363), (82, 95), (72, 86)),
    "orange": ((22, 30), (85, 100), (92, 100)),
    "yellow": ((50, 57), (75, 95), (92, 100)),
    "green": ((112, 138), (58, 80), (46, 62)),
    "turquoise": ((172, 181), (62, 80), (70, 82)),
    "blue": ((212, 226), (75, 90), (65, 88)),
    "purple": ((272, 285), (58, 75), (48, 64)),
    "pink": ((328, 342), (34, 48), (93, 100)),
    "brown": ((18, 26), (58, 72), (34, 44)),
    "black": ((0, 359), (0, 10), (5, 13)),
    "grey": ((0, 359), (0, 6), (48, 56)),
    "white": ((0, 359), (0, 4), (96, 100)),
}

_LIGHT_COLOURS: Final = frozenset({"yellow", "pink", "white"})


def _ellipse(x: float, y: float, width: float, height: float, start: int = 0, stop: int = 360) -> Polygon:
    """Corners of an ellipse centred at (x, y), or of its sector's rim from ``start`` to ``stop`` degrees."""
    angles = [math.radians(angle) for angle in range(start, stop + 1, 12)]
    return tuple((x + width / 2 * math.cos(a), y + height / 2 * math.sin(a)) for a in angles)


def _box(left: float, top: float, right: float, bottom: float) -> Polygon:
    return ((left, top), (right, top), (right, bottom), (left, bottom))


# Per silhouette: parts in drawing order. "trim" is plain and dark, "cloth" carries colour and pattern, "hole" shows
# the background again.
SHAPES: Final[dict[str, tuple[tuple[str, Polygon], ...]]] = {
    "dress": (
        (
            "cloth",
            (
                (0.34, 0.04),
                (0.42, 0.04),
                (0.5, 0.16),
                (0.58, 0.04),
                (0.66, 0.04),
                (0.7, 0.24),
                (0.62, 0.42),
                (0.9, 0.96),
                (0.1, 0.96),
                (0.38, 0.42),
                (0.3, 0.24),
            ),
        ),
    ),
    "t-shirt": (
        (
            "cloth",
            (
                (0.34, 0.1),
                (0.42, 0.17),
                (0.58, 0.17),
                (0.66, 0.1),
                (0.98, 0.28),
                (0.87, 0.47),
                (0.75, 0.4),
                (0.75, 0.92),
                (0.25, 0.92),
                (0.25, 0.4),
                (0.13, 0.47),
                (0.02, 0.28),
            ),
        ),
    ),
    "trousers": (
        ("cloth", ((0.24, 0.04), (0.76, 0.04), (0.86, 0.97), (0.59, 0.97), (0.5, 0.36), (0.41, 0.97), (0.14, 0.97))),
        ("trim", _box(0.24, 0.04, 0.76, 0.1)),
    ),
    "skirt": (
        ("cloth", ((0.3, 0.16), (0.7, 0.16), (0.97, 0.84), (0.5, 0.92), (0.03, 0.84))),
        ("trim", _box(0.3, 0.12, 0.7, 0.2)),
    ),
    "shoe": (
        (
            "cloth",
            (
                (0.06, 0.2),
                (0.42, 0.2),
                (0.5, 0.42),
                (0.82, 0.54),
                (0.96, 0.66),
                (0.97, 0.76),
                (0.05, 0.76),
            ),
        ),
        ("trim", ((0.03, 0.75), (0.98, 0.75), (0.96, 0.85), (0.04, 0.85))),
    ),
    "bag": (
        ("trim", _ellipse(0.5, 0.36, 0.52, 0.62, 180, 360)),
        ("hole", _ellipse(0.5, 0.37, 0.38, 0.46, 180, 360)),
        ("cloth", ((0.12, 0.36), (0.88, 0.36), (0.96, 0.94), (0.04, 0.94))),
    ),
    "hat": (
        ("cloth", (*_ellipse(0.5, 0.5, 0.58, 0.76, 180, 360), (0.79, 0.72), (0.21, 0.72))),
        ("cloth", _ellipse(0.5, 0.74, 1.0, 0.24)),
        ("trim", ((0.21, 0.56), (0.79, 0.56), (0.79, 0.66), (0.5, 0.69), (0.21, 0.66))),
    ),
    "mug": (
        ("trim", _ellipse(0.74, 0.5, 0.46, 0.5)),
        ("hole", _ellipse(0.74, 0.5, 0.28, 0.32)),
        ("cloth", ((0.06, 0.12), (0.72, 0.12), (0.7, 0.9), (0.08, 0.9))),
    ),
    "lamp": (
        ("trim", _box(0.46, 0.5, 0.54, 0.9)),
        ("trim", _ellipse(0.5, 0.91, 0.44, 0.12)),
        ("cloth", ((0.28, 0.03), (0.72, 0.03), (0.96, 0.62), (0.04, 0.62))),
    ),
    "chair": (
        ("trim", _box(0.16, 0.6, 0.24, 0.98)),
        ("trim", _box(0.76, 0.6, 0.84, 0.98)),
        ("cloth", _box(0.2, 0.03, 0.8, 0.5)),
        ("cloth", ((0.2, 0.5), (0.8, 0.5), (0.93, 0.74), (0.07, 0.74))),
    ),
    "umbrella": (
        ("trim", _box(0.475, 0.5, 0.525, 0.92)),
        ("trim", _box(0.475, 0.89, 0.63, 0.94)),
        ("trim", _box(0.59, 0.84, 0.63, 0.94)),
        (
            "cloth",
            (
                *_ellipse(0.5, 0.56, 1.0, 1.0, 180, 360),
                (0.83, 0.5),
                (0.66, 0.56),
                (0.5, 0.5),
                (0.34, 0.56),
                (0.17, 0.5),
            ),
        ),
    ),
    "cushion": (
        (
            "cloth",
            (
                (0.04, 0.06),
                (0.5, 0.14),
                (0.96, 0.06),
                (0.89, 0.5),
                (0.96, 0.94),
                (0.5, 0.87),
                (0.04, 0.94),
                (0.11, 0.5),
            ),
        ),
    ),
}


def draw_photo(
    rng: np.random.Generator, silhouette: str, colour: str, pattern: str, *, second: bool = False
) -> Image.Image:
    """Draws one product.

    Args:
        rng: Source of the nuisance: position, scale, rotation (up to 9 degrees), shade of the colour, phase and
            period of the pattern, tint of the background.
        silhouette: A key of `SHAPES`.
        colour: A key of `COLOUR_RANGES`.
        pattern: A key of `PAINTERS`.
        second: Whether this is the second photo: mirrored and smaller.

    Returns:
        RGB image of `PHOTO_SIZE` x `PHOTO_SIZE` pixels.
    """
    base = _shade(rng, colour)
    place = _placement(rng, second=second)
    background = _background(rng)
    cloth = Image.new("RGB", (_CANVAS, _CANVAS), base)
    PAINTERS[pattern](rng, ImageDraw.Draw(cloth), _contrast(base, colour))
    trim = Image.new("RGB", (_CANVAS, _CANVAS), _mix(base, (40, 36, 34), 0.72))
    fills = {"cloth": cloth, "trim": trim, "hole": background}
    outline = _mix(base, (20, 20, 20), 0.6)
    picture = background.copy()
    for part, polygon in SHAPES[silhouette]:
        corners = [place(point) for point in polygon]
        mask = Image.new("L", (_CANVAS, _CANVAS), 0)
        ImageDraw.Draw(mask).polygon(corners, fill=255)
        picture.paste(fills[part], (0, 0), mask)
        # White products would melt into the background without an outline.
        ImageDraw.Draw(picture).line([*corners, corners[0]], fill=outline, width=2)
    return picture.resize((PHOTO_SIZE, PHOTO_SIZE), Image.Resampling.BOX)


def _contrast(base: Rgb, colour: str) -> Rgb:
    """The pattern's second tone: a tint of a dark base or a shade of a light one, so that the hue stays the base's."""
    if colour in _LIGHT_COLOURS:
        return _mix(base, (30, 26, 40), 0.72)
    return _mix(base, (255, 255, 255), 0.82)


def _mix(first: Rgb, second: Rgb, share: float) -> Rgb:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def _shade(rng: np.random.Generator, colour: str) -> Rgb:
    hue, saturation, value = (int(rng.integers(low, high + 1)) for low, high in COLOUR_RANGES[colour])
    red, green, blue = colorsys.hsv_to_rgb(hue % 360 / 360, saturation / 100, value / 100)
    return round(255 * red), round(255 * green), round(255 * blue)


def _background(rng: np.random.Generator) -> Image.Image:
    # Duller and darker than any white product, lighter than any grey one.
    top = [int(level) for level in rng.integers(188, 216, size=3)]
    fade = int(rng.integers(-14, 15))
    rows = np.linspace(0, fade, _CANVAS)[:, None, None] + np.array(top)[None, None, :]
    return Image.fromarray(np.repeat(np.round(rows).astype(np.uint8), _CANVAS, axis=1))


def _placement(rng: np.random.Generator, *, second: bool) -> Callable[[Point], Point]:
    """An affine map from the unit square to canvas pixels."""
    size = _CANVAS * int(rng.integers(78, 93)) / 100 * (0.85 if second else 1.0)
    angle = math.radians(int(rng.integers(-9, 10)))
    centre_x, centre_y = (_CANVAS / 2 + int(rng.integers(-7, 8)) for _ in range(2))
    mirror = -1 if second else 1
    cosine, sine = math.cos(angle), math.sin(angle)

    def place(point: Point) -> Point:
        x, y = mirror * (point[0] - 0.5) * size, (point[1] - 0.5) * size
        return centre_x + x * cosine - y * sine, centre_y + x * sine + y * cosine

    return place


def _plain(rng: np.random.Generator, draw: ImageDraw.ImageDraw, tone: Rgb) -> None:
    """One colour everywhere."""


def _striped(rng: np.random.Generator, draw: ImageDraw.ImageDraw, tone: Rgb) -> None:
    horizontal = bool(rng.integers(2))
    period = int(rng.integers(15, 20))
    for offset in range(int(rng.integers(period)) - period, _CANVAS, period):
        near, far = offset, offset + period * 2 // 5
        draw.rectangle((0, near, _CANVAS, far) if horizontal else (near, 0, far, _CANVAS), fill=tone)


def _checked(rng: np.random.Generator, draw: ImageDraw.ImageDraw, tone: Rgb) -> None:
    # Crossing lines and no chessboard: half of a chessboard is the other tone, so a grey one looks like a white one.
    period = int(rng.integers(16, 21))
    start_x, start_y = (int(rng.integers(period)) - period for _ in range(2))
    for x in range(start_x, _CANVAS, period):
        draw.rectangle((x, 0, x + period // 4, _CANVAS), fill=tone)
    for y in range(start_y, _CANVAS, period):
        draw.rectangle((0, y, _CANVAS, y + period // 4), fill=tone)


def _lattice(rng: np.random.Generator, spacing: int) -> Iterator[Point]:
    """Points on rows that are shifted by half a spacing in turn."""
    start_x, start_y = (int(rng.integers(spacing)) - spacing for _ in range(2))
    for row, y in enumerate(range(start_y, _CANVAS + spacing, spacing)):
        for x in range(start_x, _CANVAS + spacing, spacing):
            yield x + (row % 2) * spacing / 2, y


def _dotted(rng: np.random.Generator, draw: ImageDraw.ImageDraw, tone: Rgb) -> None:
    spacing = int(rng.integers(16, 21))
    radius = spacing * 0.27
    for x, y in _lattice(rng, spacing):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tone)


def _floral(rng: np.random.Generator, draw: ImageDraw.ImageDraw, tone: Rgb) -> None:
    spacing = int(rng.integers(28, 34))
    petal = spacing * 0.15
    for x, y in _lattice(rng, spacing):
        turn = int(rng.integers(72))
        for angle in range(turn, turn + 360, 72):
            petal_x = x + petal * 1.75 * math.cos(math.radians(angle))
            petal_y = y + petal * 1.75 * math.sin(math.radians(angle))
            draw.ellipse((petal_x - petal, petal_y - petal, petal_x + petal, petal_y + petal), fill=tone)
        heart = petal * 0.8
        draw.ellipse((x - heart, y - heart, x + heart, y + heart), fill=(238, 186, 48))


PAINTERS: Final[dict[str, Callable[[np.random.Generator, ImageDraw.ImageDraw, Rgb], None]]] = {
    "plain": _plain,
    "striped": _striped,
    "dotted": _dotted,
    "checked": _checked,
    "floral": _floral,
}
