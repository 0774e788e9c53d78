"""What the wheel holds and says."""

from __future__ import annotations

import ast
import re
import sys
import zipfile
from email import message_from_string
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

TEMPLATES = (
    "hub/card.md",
    "importers/import.css",
    "importers/import.html",
    "report/audit.html",
    "report/head.html",
    "report/neighbours.html",
    "report/page.css",
    "report/page.html",
    "report/tiles.html",
    "retrieval/hits.css",
    "retrieval/hits.html",
    "retrieval/sheet.css",
    "retrieval/sheet.html",
    "serving/static/icon.svg",
    "serving/static/index.html",
    "serving/static/page.css",
    "serving/static/page.js",
    "serving/static/photo.js",
    "serving/static/view.js",
)
CHECKOUT = Path(__file__).resolve().parents[2]


def core_requirements(wheel: Path) -> dict[str, SpecifierSet]:
    """The version ranges of what is installed without extras, by normalised name."""
    return {canonicalize_name(r.name): r.specifier for r in requirements(wheel) if r.marker is None}


def requirements(wheel: Path) -> list[Requirement]:
    """What is installed with all extras."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        message = message_from_string(archive.read(name).decode())
    return [Requirement(line) for line in message.get_all("Requires-Dist", [])]


def pinned_versions() -> dict[str, str]:
    """The versions that CI runs, by normalised name."""
    lines = (CHECKOUT / ".ci" / "tested.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pins}


def test_wheel_holds_the_package_and_nothing_else(built_wheel: Path) -> None:
    with zipfile.ZipFile(built_wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"mmfusion"}
    held = {name for name in names if ".dist-info/" not in name}
    package = CHECKOUT / "mmfusion"
    sources = {path.relative_to(CHECKOUT).as_posix() for path in package.rglob("*.py")}
    assert held == sources | {"mmfusion/py.typed", *(f"mmfusion/{name}" for name in TEMPLATES)}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_ranges_start_at_the_oldest_and_end_one_minor_above_the_newest_that_was_run(built_wheel: Path) -> None:
    core = core_requirements(built_wheel)
    rows = re.findall(
        r"\| (\w+) \| ([\d.]+) \| ([\d.]+) \| `(\S+)` \|", (CHECKOUT / "docs" / "versions.md").read_text()
    )
    assert [name for name, *_ in rows] == ["torch", "transformers", "huggingface_hub", "lightning"]
    for name, oldest, newest, said in rows:
        first, last = Version(oldest), Version(newest)
        policy = SpecifierSet(f">={first.major}.{first.minor},<{last.major}.{last.minor + 2}")
        assert core[canonicalize_name(name)] == policy == SpecifierSet(said)


def test_every_dependency_is_pinned_to_what_ci_runs_inside_our_ranges(built_wheel: Path) -> None:
    pins = pinned_versions()
    for one in requirements(built_wheel):
        if one.marker is None or one.marker.evaluate({"extra": "dev"}):
            name = canonicalize_name(one.name)
            if name != "mmfusion":
                assert name in pins, f"{name} is a dependency and not in .ci/tested.txt"
                assert one.specifier.contains(pins[name]), f".ci/tested.txt has {name} {pins[name]}, outside {one}"


def test_everything_that_a_pinned_version_needs_is_pinned() -> None:
    pins = pinned_versions()
    checked = 0
    for name, version in pins.items():
        assert Version(version).local is None, f"{name} {version} is a build of one machine"
        try:
            installed = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        # What torch needs depends on its build: with CUDA, a dozen more packages.
        if installed.version != version or name == "torch":
            continue
        checked += 1
        for needed in map(Requirement, installed.requires or []):
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                assert canonicalize_name(needed.name) in {*pins, "setuptools"}, f"{name} needs {needed}, not pinned"
    assert checked


def test_the_commands_of_the_readme_and_ci_install_what_is_pinned() -> None:
    for file, count in (("README.md", 2), (".ci/run", 1)):
        installs = [line for line in (CHECKOUT / file).read_text().splitlines() if "-e '.[dev]'" in line]
        assert len(installs) == count
        assert all("pip install" in line and "-c .ci/tested.txt" in line for line in installs)


def test_rare_things_are_extras(built_wheel: Path) -> None:
    assert (
        core_requirements(built_wheel)
        .keys()
        .isdisjoint(
            {"tensorboard", "wandb", "bm25s", "sentence-transformers", "pytest", "torchvision", "lightning-sdk"}
            | {"onnx", "onnxruntime", "onnxscript", "pymilvus", "ray"}
            | {"pydantic", "starlette", "uvicorn", "prometheus-client"}
        )
    )


def imported_packages(folder: Path) -> set[str]:
    """Top-level names of the third-party packages that the Python files below the folder import."""
    names = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"mmfusion", "recipes"}


def test_everything_that_is_imported_is_declared(built_wheel: Path) -> None:
    # These come with pymilvus, its embedded server, and pydantic.
    declared = {canonicalize_name(one.name) for one in requirements(built_wheel) if 'extra == "dev"' not in str(one)}
    declared |= {"grpcio", "milvus-lite", "pydantic-core"}
    distributions = metadata.packages_distributions()
    for folder in ("mmfusion", "recipes"):
        for name in sorted(imported_packages(CHECKOUT / folder)):
            owners = {canonicalize_name(owner) for owner in distributions.get(name, [name])}
            assert owners & declared, f"{folder}/ imports {name!r}: declare it in pyproject.toml, or an extra for it"
