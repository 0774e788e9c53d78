"""How much memory there is for this process, the most that it has taken, and what lack of it looks like."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from mmfusion.control_groups import NO_LIMIT, memory_limits

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_STATUS, _MEMINFO = Path("/proc/self/status"), Path("/proc/meminfo")
# Messages of torch's allocator, of oneDNN and of C++; Python raises a MemoryError.
_SIGNS = ("can't allocate memory", "Cannot allocate memory", "bad_alloc", "could not create a primitive")


class HostMemory:
    """Main memory, in bytes that are this process's own: pages of mapped files can be dropped, and do not count."""

    def used(self) -> int:
        """Bytes in use."""
        return _status()["RssAnon"]

    def left(self) -> tuple[int, str]:
        """Bytes that the process could use beyond those it has, and which limit leaves no more."""
        status, left = _status(), {"available on this machine": NO_LIMIT}
        if _MEMINFO.exists() and (found := re.search(r"^MemAvailable:\s+(\d+) kB", _MEMINFO.read_text(), re.M)):
            left = {"available on this machine": int(found[1]) * 1024}
        for folder, limit, usage in memory_limits():
            left[f"left by the memory limit of the control group {folder.name or 'of the container'}"] = limit - usage
        for name, used in (("RLIMIT_DATA", "VmData"), ("RLIMIT_AS", "VmSize")) if resource is not None else ():
            soft, _ = resource.getrlimit(getattr(resource, name))
            if soft != resource.RLIM_INFINITY:
                left[f"left by the limit {name}"] = soft - status[used]
        name = min(left, key=lambda name: left[name])
        return max(0, left[name]), name

    def peak(self) -> int:
        """Most bytes that were in use since the process started."""
        status = _status()
        return max(status["RssAnon"], status["VmHWM"] - status["RssFile"])

    @contextmanager
    def limited(self, capacity: int) -> Iterator[None]:
        """Makes an allocation beyond `capacity` bytes in all an error, where the kernel would kill the process."""
        data = _status()["VmData"]
        if resource is None or not data:
            yield
            return
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        wanted = data + max(0, capacity - self.used())
        resource.setrlimit(resource.RLIMIT_DATA, (min(wanted, *(n for n in (soft, hard) if n >= 0), NO_LIMIT), hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


class CudaMemory:
    """Memory of the current CUDA device, in bytes of tensors as torch's allocator counts them."""

    def left(self) -> tuple[int, str]:
        return torch.cuda.mem_get_info()[0], f"free on {torch.cuda.get_device_name()}"

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated()

    @contextmanager
    def limited(self, capacity: int) -> Iterator[None]:
        # Until the process ends: only a separate process for one step comes here.
        torch.cuda.set_per_process_memory_fraction(max(0.0, min(1.0, capacity / torch.cuda.mem_get_info()[1])))
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


def _status() -> dict[str, int]:
    """Sizes of this process in bytes, as Linux names them; where it does not tell all of them, only the peak."""
    names = ("VmHWM", "RssAnon", "RssFile", "VmData", "VmSize")
    found = dict(re.findall(r"^(\w+):\s+(\d+) kB", _STATUS.read_text(), re.M)) if _STATUS.exists() else {}
    if found.keys() >= set(names):
        return {name: int(found[name]) * 1024 for name in names}
    unit = 1 if sys.platform == "darwin" else 1024
    peak = 0 if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {**dict.fromkeys(names, 0), "VmHWM": peak, "RssAnon": peak}
