"""How much memory there is for this process, how much a piece of work takes of it, and what lack of it looks like."""

import ctypes
import gc
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from mmfusion.control_groups import NO_LIMIT, memory_limits

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# How it shows itself in torch's allocator, in oneDNN and in C++; in Python it is a MemoryError.
_SIGNS = ("can't allocate memory", "Cannot allocate memory", "bad_alloc", "could not create a primitive")
# Of glibc: a parameter of mallopt, and the size up to which it keeps freed blocks in the end.
_M_MMAP_THRESHOLD, _MOST_KEPT = -3, 32 * 2**20


class HostMemory:
    """Main memory, in bytes that are this process's own: pages of mapped files can be dropped, and do not count."""

    device = "cpu"

    def __init__(self) -> None:
        self.source = "peak resident memory of the process"
        self.exact = _can_reset()
        if not self.exact:
            self.source = "peak resident memory since the process began, as it cannot be reset here"

    def used(self) -> int:
        """Bytes in use."""
        return _status()["RssAnon"]

    def capacity(self) -> int:
        """Bytes that the process could use in all: those it has, and what machine, container and limits leave."""
        return self.used() + min(_left().values())

    def bound_by(self) -> str:
        """What leaves least."""
        left = _left()
        return min(left, key=lambda name: left[name])

    def start(self) -> None:
        """Begins to look for a peak."""
        with suppress(OSError):
            _CLEAR.write_text("5")

    def peak(self) -> int:
        """Most bytes in use since `start`."""
        found = _status()
        return max(found["RssAnon"], found["VmHWM"] - found["RssFile"])

    @contextmanager
    def limited(self, capacity: int) -> Iterator[None]:
        """Makes an allocation beyond `capacity` bytes an error, where the kernel would kill the process instead."""
        if resource is None or not _STATUS.exists():
            yield
            return
        before = resource.getrlimit(resource.RLIMIT_DATA)
        wanted = _status()["VmData"] + max(0, capacity - self.used())
        resource.setrlimit(resource.RLIMIT_DATA, (min(wanted, *(n for n in before if n >= 0), NO_LIMIT), before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, before)


class CudaMemory:
    """Memory of the current CUDA device, in bytes of tensors as torch's allocator counts them."""

    device = "cuda"
    exact = True
    source = "peak of torch's allocator"

    def used(self) -> int:
        return torch.cuda.memory_allocated()

    def capacity(self) -> int:
        # What the allocator has reserved and does not use is this process's to use.
        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()

    def bound_by(self) -> str:
        return f"free on {torch.cuda.get_device_name()}"

    def start(self) -> None:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated()

    @contextmanager
    def limited(self, capacity: int) -> Iterator[None]:
        yield


Memory = HostMemory | CudaMemory


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on a GPU or in main memory."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def in_words(size: float) -> str:
    """Bytes as GiB, MiB or KiB."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size / 2**10:.1f} KiB"


def free() -> None:
    """Gives back what work has left, so that other work can follow."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def nothing_kept() -> Iterator[None]:
    """Has glibc give back every large block that is freed, so that a step is not counted that is over."""
    _keep_blocks(2**20)
    try:
        yield
    finally:
        _keep_blocks(_MOST_KEPT)


def _keep_blocks(size: int) -> None:
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, size)


def _left() -> dict[str, int]:
    """Bytes that each of those who have a say leave to this process."""
    status = _status()
    left = {"available on this machine": _machine_left()}
    for folder, limit, usage in memory_limits():
        left[f"left by the memory limit of the control group {folder.name or 'of the container'}"] = limit - usage
    if resource is not None:
        for name, used in (("RLIMIT_DATA", "VmData"), ("RLIMIT_AS", "VmSize")):
            soft, _ = resource.getrlimit(getattr(resource, name))
            if soft != resource.RLIM_INFINITY:
                left[f"left by the limit {name}"] = soft - status[used]
    return {name: max(0, value) for name, value in left.items()}


def _machine_left() -> int:
    with suppress(OSError):
        found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.M)
        if found:
            return int(found[1]) * 1024
    return NO_LIMIT


def _status() -> dict[str, int]:
    """Sizes of this process in bytes, as Linux names them."""
    names = ("VmHWM", "RssAnon", "RssFile", "VmData", "VmSize")
    with suppress(OSError):
        found = re.findall(r"^(\w+):\s+(\d+) kB", _STATUS.read_text(), re.M)
        sizes = {name: int(value) * 1024 for name, value in found if name in names}
        if len(sizes) == len(names):
            return sizes
    peak = 0 if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _maxrss_unit()
    return {**dict.fromkeys(names, 0), "VmHWM": peak, "RssAnon": peak}


def _maxrss_unit() -> int:
    return 1 if sys.platform == "darwin" else 1024


def _can_reset() -> bool:
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return _STATUS.exists()
