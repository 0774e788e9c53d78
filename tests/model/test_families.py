"""The matrix of encoder families: what each gives, and that the page about them is what was measured."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import pytest
import transformers
from commands import command
from families import FAMILIES
from families.checks import PARTNERS, SLOW, measure, problems
from families.page import AFTER, BEFORE, ROOT, page

PAGE = ROOT / "docs" / "encoders.md"
TAKEN = [name for name, family in FAMILIES.items() if not family.refused]
REFUSED = [name for name, family in FAMILIES.items() if family.refused]


def _check(name: str, folder: Path, slow: Collection[str] = ()) -> None:
    family = FAMILIES[name]
    result = measure(family, folder, slow=slow)
    if result["status"] == "not run here":
        pytest.skip(str(result["error"]))
    assert not problems(family, result)
    # Vectors that hardly differ would agree with any others.
    assert all(result[f"{view}_spread"] > 1e-3 for view in ("query", "title", "photo") if f"{view}_spread" in result)


@pytest.mark.parametrize("name", [name for name in TAKEN if FAMILIES[name].common])
def test_a_common_family_gives_its_own_features(name: str, tmp_path: Path) -> None:
    _check(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", TAKEN)
def test_a_family_gives_its_own_features_trains_and_is_exported(name: str, tmp_path: Path) -> None:
    _check(name, tmp_path, SLOW)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if FAMILIES[name].common else pytest.mark.slow) for name in REFUSED]
)
def test_what_cannot_be_used_is_refused_in_one_line_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    family, output = FAMILIES[name], tmp_path / "base"
    assert not problems(family, measure(family, tmp_path, slow=()))
    text = name if family.text else PARTNERS["text"]
    vision = name if family.photo else PARTNERS["photo"]
    with pytest.raises(Exception, match=family.refused):
        command("base")(str(tmp_path / text), str(tmp_path / vision), str(output))
    assert not output.exists()


def test_the_page_is_what_was_measured() -> None:
    after, before = (json.loads(path.read_text("utf-8")) for path in (AFTER, BEFORE))
    if set(FAMILIES) < set(after["families"]) and transformers.__version__.startswith("5.17."):
        pytest.skip("the oldest transformers lacks some of the families")
    assert set(after["families"]) == set(before["families"]) == set(FAMILIES), "python tests/families_page.py --help"
    assert page(after, before) == PAGE.read_text("utf-8")


def test_results_on_the_page_are_as_they_should_be() -> None:
    results = json.loads(AFTER.read_text("utf-8"))["families"]
    known = results.keys() & FAMILIES.keys()
    assert len(known) > 100
    wrong = {name: found for name in known if (found := problems(FAMILIES[name], results[name]))}
    assert not wrong
