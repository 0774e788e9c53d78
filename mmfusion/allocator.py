"""What the C library does with memory that a layer frees."""

import ctypes
import sys
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_BYTES, _MAPPED_BYTES = 1 << 30, 1 << 20


@cache
def keep_freed_memory() -> None:
    """Has glibc keep freed memory for the next layer instead of handing it back to the system.

    On a CPU, feature maps of more than a few photos exceed what malloc keeps by itself. Fresh pages for each layer then
    cost more than its convolutions: MobileNetV2 embeds 32 photos at a third of the speed. Rankings of many queries are
    as large. Other systems are left alone.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_MMAP_THRESHOLD, _BYTES)
        libc.mallopt(_TRIM_THRESHOLD, _BYTES)


def return_freed_memory() -> None:
    """Has glibc hand large tensors back to the system when they are freed, so that no holes are left between others.

    That costs time, see [`keep_freed_memory`], and is for steps of which most memory is activations.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_MMAP_THRESHOLD, _MAPPED_BYTES)
