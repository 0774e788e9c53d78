"""Measures the families of encoders and writes the page about them.

    python tests/families_page.py --measure docs/encoders.json   # every family, some minutes
    python tests/families_page.py --output docs/encoders.md      # the page, from the results

`--only` takes names of families to measure; the others keep their results.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import transformers
from families import FAMILIES
from families.checks import SLOW, measure, problems
from families.page import AFTER, BEFORE, write_page

import mmfusion

LIBRARIES = ("torch", "transformers", "sentence-transformers", "tokenizers", "onnxruntime")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", type=Path, help="JSON file for the results of the mmfusion that is imported")
    parser.add_argument("--only", nargs="+", choices=sorted(FAMILIES), help="measure these alone")
    parser.add_argument("--slow", nargs="*", default=SLOW, choices=SLOW, help="slow checks to make; none: --slow alone")
    parser.add_argument("--output", type=Path, help="Markdown file for the page")
    parser.add_argument("--before", type=Path, default=BEFORE, help="results of an earlier commit to stand beside")
    parser.add_argument("--results", type=Path, default=AFTER, help="results that the page is about")
    arguments = parser.parse_args()
    if arguments.measure:
        measure_all(arguments.measure, arguments.only, arguments.slow)
    if arguments.output:
        write_page(arguments.output, arguments.results, arguments.before)


def measure_all(path: Path, only: list[str] | None, slow: Sequence[str]) -> None:
    """Measures families and writes their results, with the versions that they hold for."""
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    data: dict[str, Any] = json.loads(path.read_text("utf-8")) if only and path.exists() else {"families": {}}
    commit = _commit()
    data["versions"] = {name: version(name) for name in LIBRARIES}
    for name in only or FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            result = measure(FAMILIES[name], Path(folder), slow=slow)
        # A message may name the folder, which is another one each time.
        result = json.loads(json.dumps(result).replace(f"{folder}/", ""))
        data["families"][name] = {"commit": commit, **result}
        _write(path, data)
        print(f"{name:24} {result['status']:12} {'; '.join(problems(FAMILIES[name], result))}", flush=True)


def _write(path: Path, data: dict[str, Any]) -> None:
    """One line for each family, so that changes show."""
    head = json.dumps({name: value for name, value in data.items() if name != "families"})[1:-1]
    results = data["families"]
    rows = [f"  {json.dumps(name)}: {json.dumps(results[name])}" for name in FAMILIES if name in results]
    path.write_text(f'{{{head}, "families": {{\n' + ",\n".join(rows) + "\n}}\n", "utf-8")


def _commit() -> str:
    """The last commit that changed the mmfusion that is imported."""
    where = Path(mmfusion.__file__).parent
    command = ["git", "-C", str(where), "log", "-1", "--format=%h", "--", "."]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
