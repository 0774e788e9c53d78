"""The metadata block of a README, read and checked by rules like the real Hub's."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import yaml

BLOCK = re.compile(r"^\s*---[ \t]*\r?\n(.*?)\r?\n?---[ \t]*(?:\r?\n|$)", re.DOTALL)
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z]{2,8})?|code|multilingual")
REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")
RELATIONS = ("adapter", "merge", "quantized", "finetune")
LICENSES_TEXT = """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
    lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl mpl-2.0 odc-by odbl openmdw-1.0
    openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
    fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma unknown other
"""
LICENSES = frozenset(LICENSES_TEXT.split())
TASKS_TEXT = """
    text-classification token-classification table-question-answering question-answering zero-shot-classification
    translation summarization feature-extraction text-generation fill-mask sentence-similarity text-to-speech
    text-to-audio automatic-speech-recognition audio-to-audio audio-classification audio-text-to-text
    voice-activity-detection depth-estimation image-classification object-detection image-segmentation text-to-image
    image-to-text image-to-image image-to-video unconditional-image-generation video-classification
    reinforcement-learning robotics tabular-classification tabular-regression tabular-to-text table-to-text
    multiple-choice text-ranking text-retrieval time-series-forecasting text-to-video image-text-to-text
    image-text-to-image image-text-to-video visual-question-answering document-question-answering
    zero-shot-image-classification graph-ml mask-generation zero-shot-object-detection text-to-3d image-to-3d
    image-feature-extraction video-text-to-text keypoint-detection visual-document-retrieval any-to-any video-to-video
    other
"""
TASKS = frozenset(TASKS_TEXT.split())


def card_metadata(readme: str) -> object:
    """The metadata of a README: what its first YAML block holds; None without one or if it is not YAML."""
    block = BLOCK.match(readme)
    if block is None:
        return None
    try:
        value: object = yaml.safe_load(block.group(1))
    except yaml.YAMLError:
        return None
    return value


def card_problems(readme: str) -> tuple[list[str], list[str]]:
    """Errors, for which a README is refused, and warnings."""
    block = BLOCK.match(readme)
    if block is None or not block.group(1).strip():
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        metadata = yaml.safe_load(block.group(1))
    except yaml.YAMLError as error:
        return [f"YAML parse error: {error}"], []
    if not isinstance(metadata, dict):
        return ["YAML metadata must be an object"], []
    errors = [problem for name, check in CHECKS.items() if name in metadata for problem in check(name, metadata[name])]
    warnings = []
    if metadata.get("license") == "other" and "license_name" not in metadata:
        warnings.append('"license_name" is recommended when "license" is "other"')
    return errors, warnings


def _texts(value: object) -> list[str] | None:
    values = value if isinstance(value, list) else [value]
    return [str(item) for item in values] if all(isinstance(item, str) for item in values) else None


def _text(name: str, value: object) -> list[str]:
    return [] if isinstance(value, str) else [f'"{name}" must be a string']


def _strings(name: str, value: object) -> list[str]:
    listed = isinstance(value, list) and _texts(value) is not None
    return [] if listed else [f'"{name}" must be an array of strings']


def _one_of(known: frozenset[str] | tuple[str, ...]) -> Callable[[str, object], list[str]]:
    def check(name: str, value: object) -> list[str]:
        texts = _texts(value)
        if texts is not None and all(text in known for text in texts):
            return []
        return [f'"{name}" must be one of [{", ".join(sorted(known))}]']

    return check


def _like(pattern: re.Pattern[str], wanted: str) -> Callable[[str, object], list[str]]:
    def check(name: str, value: object) -> list[str]:
        texts = _texts(value)
        if texts is not None and all(pattern.fullmatch(text) for text in texts):
            return []
        return [f'"{name}" must be {wanted}, not {value!r}']

    return check


def _model_index(name: str, value: object) -> list[str]:
    if not isinstance(value, list):
        return [f'"{name}" must be an array']
    problems = []
    for position, model in enumerate(value):
        here = f"{name}[{position}]"
        if not isinstance(model, dict) or not isinstance(model.get("name"), str):
            problems.append(f'"{here}.name" is required')
            continue
        results = model.get("results")
        if not isinstance(results, list):
            problems.append(f'"{here}.results" is required')
            continue
        for number, result in enumerate(results):
            problems += _result(f"{here}.results[{number}]", result)
    return problems


def _result(here: str, result: Any) -> list[str]:
    if not isinstance(result, dict):
        return [f'"{here}" must be an object']
    problems = []
    for group, names in (("task", ("type",)), ("dataset", ("type", "name"))):
        part = result.get(group)
        missing = [name for name in names if not isinstance(part, dict) or not part.get(name)]
        problems += [f'"{here}.{group}.{name}" is required' for name in missing]
    metrics = result.get("metrics")
    if not isinstance(metrics, list) or not metrics:
        return [*problems, f'"{here}.metrics" is required']
    for number, metric in enumerate(metrics):
        missing = [name for name in ("type", "value") if not isinstance(metric, dict) or metric.get(name) is None]
        problems += [f'"{here}.metrics[{number}].{name}" is required' for name in missing]
    return problems


CHECKS: dict[str, Callable[[str, object], list[str]]] = {
    "license": _one_of(LICENSES),
    "license_name": _text,
    "license_link": _text,
    "pipeline_tag": _one_of(TASKS),
    "library_name": _text,
    "language": _like(LANGUAGE, "an ISO 639-1, 639-2 or 639-3 code, or a list of them"),
    "tags": _strings,
    "datasets": _like(REPOSITORY, "a data set's name on the Hub, or a list of them"),
    "base_model": _like(REPOSITORY, "a model's name on the Hub, or a list of them"),
    "base_model_relation": _one_of(RELATIONS),
    "metrics": _strings,
    "model-index": _model_index,
}
