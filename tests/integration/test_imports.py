"""Imports point one way: between packages in the order of docs/architecture.md, and in no circle between modules."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGE = CHECKOUT / "mmfusion"
# From the top: each imports from lines below it alone.
ORDER = [
    ["__main__", "__init__"],
    ["cli"],
    ["commands"],
    ["audit"],
    ["serving", "ablation", "embedding", "importers"],
    ["training", "onnx"],
    ["retriever", "report", "hub"],
    ["stages"],
    ["retrieval", "evaluation"],
    ["data", "extras", "lexical"],
    ["losses"],
    ["model", "distributed", "files", "allocator", "control_groups", "steps", "progress", "pages"],
]
LEVEL = {name: level for level, names in enumerate(reversed(ORDER)) for name in names}


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = ["mmfusion", *path.relative_to(PACKAGE).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)] = path
    return found


MODULES = modules()


def imported(name: str, path: Path) -> Iterator[str]:
    """Modules of ours that a module imports anywhere in it, but for types alone."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    tree = ast.parse(path.read_text("utf-8"))
    tree.body = [one for one in tree.body if not (isinstance(one, ast.If) and ast.unparse(one.test) == "TYPE_CHECKING")]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names if one.name.startswith("mmfusion."))
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            if base.split(".")[0] == "mmfusion":
                inside = [f"{base}.{one.name}" for one in node.names]
                yield from (one if one in MODULES else base for one in inside)


def room(module: str) -> str:
    return [*module.split("."), "__init__"][1]


def test_packages_import_from_below_alone() -> None:
    for name, path in MODULES.items():
        for other in imported(name, path):
            if room(other) not in (room(name), "__init__"):
                assert LEVEL[room(other)] < LEVEL[room(name)], f"{name} imports {other}, which is not below it"


def test_no_package_imports_the_whole() -> None:
    offenders = [name for name, path in MODULES.items() if "mmfusion" in imported(name, path)]
    assert not offenders, f"{offenders} import from mmfusion itself; name the module"


def test_no_modules_import_each_other() -> None:
    graph = {name: {one for one in imported(name, path) if one in MODULES} for name, path in MODULES.items()}
    # A package's own names come from its modules, which may not ask the package for them.
    list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("name", [name for name in MODULES if room(name) == "model"])
def test_the_model_needs_nothing_else_of_ours(name: str) -> None:
    # Its files are published with the weights.
    assert {room(one) for one in imported(name, MODULES[name])} <= {"model"}


def test_an_import_of_a_shop_waits_neither_for_torch_nor_for_pandas() -> None:
    code = """
import sys
sys.argv = ["mmfusion", "import"]
import mmfusion.importers, mmfusion.data.photos
found = {"torch", "transformers", "datasets", "pandas"} & set(sys.modules)
assert not found, found
from mmfusion.model import MMFusionModel
from transformers import AutoModel
from mmfusion.model import MMFusionConfig
assert AutoModel._model_mapping[MMFusionConfig] is MMFusionModel
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_search_and_a_job_with_nothing_to_do_wait_for_little() -> None:
    code = """
import sys
sys.argv[0] = "mmfusion"
import numpy as np
import mmfusion.commands.search
from mmfusion.retrieval import ProductIndex
index = ProductIndex.load(sys.argv.pop())
assert index.search(np.ones((1, index.description.dimension), np.float32), 1)[0]
found = {"datasets", "pandas", "lightning", "matplotlib"} & set(sys.modules)
assert not found, found
import mmfusion.commands.embed
found = {"lightning", "ray", "matplotlib", "torchmetrics"} & set(sys.modules)
assert not found, found
"""
    index = CHECKOUT / "tests" / "golden" / "index" / "index"
    subprocess.run([sys.executable, "-c", code, str(index)], check=True)
