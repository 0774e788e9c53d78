"""A command in a process whose memory is limited; run by test_dry_run.py as a script.

Usage: limited_memory.py MIB COMMAND [FLAGS]: so many MiB beyond what the process has once everything is imported.
"""

import importlib
import re
import resource
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from mmfusion.commands import run_command

if __name__ == "__main__":
    mib, name, *flags = sys.argv[1:]
    main = importlib.import_module(f"mmfusion.commands.{name}").main
    torch.set_num_threads(1)
    found = re.search(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    limit = int(found[1]) * 1024 + int(mib) * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    sys.argv = [name, *flags]
    run_command(main)
