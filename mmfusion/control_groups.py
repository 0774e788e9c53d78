"""Limits that a container, or another control group of Linux, puts on the memory of this process."""

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

# A limit that is larger than any machine is none.
NO_LIMIT = 2**60


def memory_limits() -> Iterator[tuple[Path, int, int]]:
    """Folder, limit and use of each control group of this process that limits its memory; versions 1 and 2."""
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                yield from _limits(Path("/sys/fs/cgroup"), path, "memory.max", "memory.current")
            elif "memory" in controllers.split(","):
                yield from _limits(
                    Path("/sys/fs/cgroup/memory"), path, "memory.limit_in_bytes", "memory.usage_in_bytes"
                )


def _limits(root: Path, path: str, limit_name: str, usage_name: str) -> Iterator[tuple[Path, int, int]]:
    own = root / path.lstrip("/")
    # In a container the group's own path may lie outside what is mounted, and the root is the container's.
    for folder in dict.fromkeys([own, *own.parents, root]):
        if folder != root and root not in folder.parents:
            continue
        limit, usage = _number(folder / limit_name), _number(folder / usage_name)
        if limit is not None and usage is not None and limit < NO_LIMIT:
            yield folder, limit, usage - _droppable(folder)


def _number(path: Path) -> int | None:
    with suppress(OSError, ValueError):
        return int(path.read_text())
    return None


def _droppable(folder: Path) -> int:
    """Bytes of cached files in a group's use, which it drops before it runs out."""
    with suppress(OSError):
        found = re.search(r"^(?:total_)?inactive_file (\d+)", (folder / "memory.stat").read_text(), re.M)
        return int(found[1]) if found else 0
    return 0
