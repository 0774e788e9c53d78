"""The page of encoder families, written from results that were measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from families import FAMILIES
from families.checks import BATCH, LEAST_COSINE, ONNX, Result, problems
from families.family import Family

ROOT = Path(__file__).resolve().parents[2]
BEFORE = ROOT / "tests" / "golden" / "families_before.json"
AFTER = ROOT / "docs" / "encoders.json"

_KINDS = {
    (True, False): "Text encoders",
    (True, True): "Dual encoders",
    (False, True): "Vision encoders",
}

_INTRO = """# Encoders

<!-- Written by tests/families_page.py from docs/encoders.json; change those, not this. -->

What `MMFusionModel.from_backbones` and `recipes/base.py` make of each family of encoders by default. Each was tried as
a tiny checkpoint with random weights, laid out as its checkpoints are on the Hub: that shows that the code reads a
family right, and says nothing about how well its published weights search.

A family works if

- a query, a product text and a photo get the vectors that transformers or sentence-transformers themselves give
  (cosine of at least {cosine}; of a dual encoder also the same order of photos for each query),
- a vector is the same alone and next to others, to {float32} of cosine in single and {float64} in double precision,
- a saved model gives the same bits when it is loaded,
- in a training step each parameter that is read gets a gradient,
- its query tower in ONNX differs by at most {onnx} in each component, unless the table says otherwise.

A saved model keeps the pooling that its config names: these defaults act when a model is assembled. `text_pooling` and
`image_pooling` set another one.
"""

_OUTRO = """
## Before and after

The same checkpoints at {before} (without training steps and ONNX) and at {after}.

| family | before | after |
|---|---|---|
"""


def write_page(output: Path, results: Path, before: Path) -> None:
    """Writes the page from two files of results."""
    output.write_text(page(_read(results), _read(before)), "utf-8")


def page(after: dict[str, Any], before: dict[str, Any]) -> str:
    """The page in Markdown, from results as `families_page.py` measures them."""
    now, then = after["families"], before["families"]
    limits = {name: f"{value:.0e}" for name, value in BATCH.items()}
    lines = [_INTRO.format(cosine=LEAST_COSINE, onnx=f"{ONNX:.0e}", **limits)]
    lines.append(f"Measured at {_commits(after)} with {_versions(after)}.\n")
    for halves, title in _KINDS.items():
        lines += [f"## {title}\n", *_table(halves, now), ""]
    lines += ["## Refused, in one line\n", "| checkpoint | the line |", "|---|---|"]
    lines += [f"| {one.title} | {_cell(_refusal(one, now[one.name]))} |" for one in FAMILIES.values() if one.refused]
    lines.append(_OUTRO.format(before=_commits(before), after=_commits(after)).rstrip("\n"))
    lines += [f"| {one.title} | {_verdict(one, then)} | {_verdict(one, now)} |" for one in FAMILIES.values()]
    return "\n".join(lines) + "\n"


def _read(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return data


def _commits(data: dict[str, Any]) -> str:
    found = list(dict.fromkeys(result["commit"] for result in data["families"].values()))
    return f"commit {found[0]}" if len(found) == 1 else f"commits {', '.join(found[:-1])} and {found[-1]}"


def _versions(data: dict[str, Any]) -> str:
    return ", ".join(f"{name} {number}" for name, number in data["versions"].items())


def _table(halves: tuple[bool, bool], results: dict[str, Result]) -> Iterator[str]:
    text, photo = halves
    columns = ["family", *(["text"] if text else []), *(["photo"] if photo else []), "result"]
    yield f"| {' | '.join(columns)} |"
    yield "|" + "---|" * len(columns)
    for one in FAMILIES.values():
        if one.halves == halves and not one.refused:
            result = results[one.name]
            cells = [_how(one.text, result, "text")] if text else []
            cells += [_how(one.photo, result, "image")] if photo else []
            yield f"| {' | '.join([one.title, *cells, _result(one, result)])} |"


def _how(words: str, result: Result, half: str) -> str:
    """How a half is pooled, with the value that the config has for it."""
    pooling = result.get(f"{half}_pooling")
    return f"{words} (`{pooling}`)" if pooling else words


def _result(family: Family, result: Result) -> str:
    words = [_judged(family, result)]
    prompts = {"queries": result.get("query_prompt"), "products": result.get("product_prompt")}
    words += [f"prompt of {side} {_code(prompt)}" for side, prompt in prompts.items() if prompt]
    if family.text and result["status"] == "works" and not family.exports:
        words.append("PyTorch cannot export it to ONNX, so that its queries are embedded with PyTorch")
    elif family.text and result["status"] == "works" and "onnx" not in result:
        words.append("ONNX not tried")
    words += [family.note] if family.note else []
    return "; ".join(words)


def _judged(family: Family, result: Result) -> str:
    if result["status"] == "not run here":
        return f"not run here: {result['error']}"
    found = problems(family, result)
    return f"**fails**: {_cell('; '.join(found))}" if found else "works"


def _refusal(family: Family, result: Result) -> str:
    if problems(family, result):
        return f"**not yet**: {_verdict(family, {family.name: result})}"
    return str(result["error"]).partition(": ")[2]


def _verdict(family: Family, results: dict[str, Result]) -> str:
    """A few words for the table of before and after."""
    result = results[family.name]
    if result["status"] == "not run here":
        return "not run here"
    if family.refused:
        if not problems(family, result):
            return "refused"
        return "taken without a word" if result["status"] == "works" else "refused, but not clearly"
    if result["status"] != "works":
        return f"fails ({_cell(str(result['error']).partition(':')[0])})"
    least = [f"{name} {result[f'{name}_cosine']:.2f}" for name in ("query", "title", "photo") if _off(result, name)]
    least += [f"rank correlation {result['rank_correlation']:+.2f}"] if "rank_correlation" in result and least else []
    if least:
        return f"wrong vectors: {', '.join(least)}"
    return f"works, but {_cell('; '.join(problems(family, result)))}" if problems(family, result) else "works"


def _off(result: Result, name: str) -> bool:
    return f"{name}_cosine" in result and not result[f"{name}_cosine"] >= LEAST_COSINE


def _code(prompt: str) -> str:
    shown = prompt.replace("\n", "\\n").replace("|", "\\|")
    return f"`{shown}`"


def _cell(words: str) -> str:
    return " ".join(words.split()).replace("|", "\\|")
