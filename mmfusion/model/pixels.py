"""Pixels of photos as their image processor gives them, bit for bit, at a third of its time.

An image processor of transformers resizes in Pillow, in 8 bits, and then scales and normalises each photo in passes
over floats, one of them in float64. A pixel has 256 values, so that what these passes make of each is looked up here.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from transformers.image_utils import SizeDict

Array = npt.NDArray[Any]
Item = TypeVar("Item")
Result = TypeVar("Result")

_BILINEAR = Image.Resampling.BILINEAR
_SIZES = (("do_resize", "size"), ("do_center_crop", "crop_size"))

# Classes of transformers whose `_preprocess` resizes, crops, scales and normalises, in this order, and nothing else.
_IN_ORDER = ("PilBackend", "MobileNetV2ImageProcessorPil", "BeitImageProcessorPil")
# The same, with a way to resize of their own.
_OWN_RESIZE = ("ConvNextImageProcessorPil", "PoolFormerImageProcessorPil", "SegformerImageProcessorPil")


def looks_up(processor: Any) -> bool:
    """Whether [`resized`] and [`looked_up`] give the pixels of an image processor: not of one with steps of its own."""
    pixelwise = all(_of(processor, name) == "PilBackend" for name in ("rescale", "normalize", "convert_to_rgb"))
    known = type(processor).__module__.startswith("transformers.") and not getattr(processor, "do_pad", None)
    return known and pixelwise and _of(processor, "_preprocess") in _IN_ORDER + _OWN_RESIZE


def _of(processor: Any, method: str) -> str:
    """Name of the class that a method of the processor comes from."""
    return getattr(getattr(type(processor), method, None), "__qualname__", "").split(".")[0]


def resized(processor: Any, photos: Sequence[Image.Image]) -> list[Array]:
    """What the processor resizes and crops images of mode RGB to, each (3, height, width) uint8."""
    plain = all(_of(processor, name) == "PilBackend" for name in ("resize", "center_crop"))
    if plain and _of(processor, "_preprocess") in _IN_ORDER and isinstance(processor.resample, int | None):
        size, crop = (_sides(processor, switch, name) for switch, name in _SIZES)
        if size.keys() in ({"shortest_edge"}, {"height", "width"}, set()):
            return in_threads(partial(_resized, processor, size, crop), photos)
    made = processor(images=list(photos), do_rescale=False, do_normalize=False, return_tensors=None)
    return list(made["pixel_values"])


def looked_up(processor: Any, photos: Sequence[Array]) -> torch.Tensor:
    """(count, 3, height, width) float32 of photos that [`resized`] has given one shape, at least one."""
    table, out = _table(processor), np.empty((len(photos), *photos[0].shape), dtype=np.float32)

    def fill(place: int) -> None:
        for levels, values, found in zip(table, photos[place], out[place], strict=True):
            # Without `clip`, the result would go through a buffer.
            np.take(levels, values, out=found, mode="clip")

    in_threads(fill, range(len(photos)))
    return torch.from_numpy(out)


def in_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """What a function gives for each of the items, in their order, by as many threads as torch computes with.

    Pillow and NumPy let other threads run while they work. Where torch has one thread, as in workers of loaders, this
    is a loop.
    """
    threads = min(torch.get_num_threads(), len(items))
    if threads < 2:
        return [function(item) for item in items]
    return list(_pool(torch.get_num_threads()).map(function, items))


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="photos")


if hasattr(os, "register_at_fork"):
    # Its threads do not exist in the child, which would wait for them forever.
    os.register_at_fork(after_in_child=_pool.cache_clear)


def _sides(processor: Any, switch: str, name: str) -> dict[str, int]:
    """What a size of the processor names, which may be a plain dict; nothing where it is switched off."""
    given = getattr(processor, name, None) if getattr(processor, switch, None) else None
    return {side: value for side, value in dict(given or {}).items() if value}


def _resized(processor: Any, size: dict[str, int], crop: dict[str, int], photo: Image.Image) -> Array:
    """(3, height, width) uint8, as `PilBackend` does it, without its copies in between."""
    if size:
        resample = _BILINEAR if processor.resample is None else processor.resample
        photo = photo.resize(_target(size, photo.size), resample=resample)
    array = np.moveaxis(np.asarray(photo), -1, 0)
    return processor.center_crop(array, SizeDict(**crop)) if crop else array


def _target(size: dict[str, int], given: tuple[int, int]) -> tuple[int, int]:
    """(width, height) that a photo of these is resized to."""
    if "shortest_edge" not in size:
        return size["width"], size["height"]
    short, long = min(given), max(given)
    shorter, longer = size["shortest_edge"], int(size["shortest_edge"] * long / short)
    return (shorter, longer) if given[0] <= given[1] else (longer, shorter)


def _table(processor: Any) -> Array:
    """(3, 256) float32: what the processor's own methods make of each value of each channel."""
    levels = np.tile(np.arange(256, dtype=np.uint8), (3, 1))[:, None]
    if processor.do_rescale:
        levels = processor.rescale(levels, processor.rescale_factor)
    if processor.do_normalize:
        levels = processor.normalize(levels, processor.image_mean, processor.image_std)
    return np.ascontiguousarray(levels[:, 0], dtype=np.float32)
