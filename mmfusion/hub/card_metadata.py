"""The head of a card: what the Hub filters by, and the results that it lists."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from mmfusion.evaluation.numbers import metric_title
from mmfusion.files import HUB_ID
from mmfusion.hub.card_error import CardError
from mmfusion.hub.card_facts import ModelFacts
from mmfusion.hub.card_private import public_text
from mmfusion.hub.card_results import METRICS, Result
from mmfusion.hub.card_tables import Measured

_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*|multilingual")
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_TASK = ("information-retrieval", "Product retrieval")


def card_metadata(
    facts: ModelFacts,
    measured: Sequence[Measured],
    *,
    repo: str,
    base_model: Sequence[str],
    datasets: Sequence[str],
    language: Sequence[str],
    license: str,
) -> ModelCardData:
    """The metadata of a card; a field that nobody stated is left out rather than guessed.

    Args:
        facts: Of the model.
        measured: Its results, which become the model-index.
        repo: Hub id of the model.
        base_model: Hub ids of the encoders that it was trained from.
        datasets: Hub ids of its training data.
        language: ISO 639 codes.
        license: Identifier that the Hub knows, such as "apache-2.0".

    Raises:
        CardError: A value is none that the Hub takes.
    """
    for name, values, pattern in (
        ("base_model", base_model, HUB_ID),
        ("datasets", datasets, HUB_ID),
        ("language", language, _LANGUAGE),
        ("license", [license], _LICENSE),
        ("repo", [repo], HUB_ID),
    ):
        for value in values:
            if not pattern.fullmatch(value):
                raise CardError(f"the value is {value!r}", f"field {name!r}", _REMEDIES[name])
    optional: dict[str, Any] = {}
    if base_model:
        optional = {"base_model": list(base_model), "base_model_relation": "finetune"}
    results = [one for part in measured for one in _eval_results(part.own)]
    if results:
        optional["model_name"] = PurePosixPath(repo).name
        optional["eval_results"] = results
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="feature-extraction",
        license=license,
        datasets=list(datasets) or None,
        language=list(language) or None,
        tags=_tags(facts),
        **optional,
    )


_REMEDIES = {
    "base_model": "give Hub ids (org/name) with --base_model; a folder says nothing to others",
    "datasets": "give Hub ids (org/name) with --datasets",
    "language": "give ISO 639 codes such as en with --language",
    "license": "give an identifier of the Hub such as apache-2.0 with --license",
    "repo": "give a Hub id (org/name) with --repo",
}


def _tags(facts: ModelFacts) -> list[str]:
    tags = ["mmfusion", "sentence-transformers", "retrieval", "e-commerce", "multimodal", "two-tower"]
    tags += ["matryoshka"] if facts.config.matryoshka_dims else []
    return [*tags, "custom_code"]


def _eval_results(result: Result) -> list[EvalResult]:
    evaluation = result.evaluation
    name = public_text(result.dataset)
    return [
        EvalResult(
            task_type=_TASK[0],
            task_name=_TASK[1],
            dataset_type=name,
            dataset_name=name if evaluation.pool == "split" else f"{name}, whole catalogue",
            # Results of one data set and split are told apart by it: the larger pool is the harder task.
            dataset_config=None if evaluation.pool == "split" else "whole_catalogue",
            dataset_split=result.split,
            dataset_args={
                "products": evaluation.num_products,
                "queries": evaluation.num_queries,
                "relevant_grade": evaluation.relevant_grade,
                "labels": public_text(evaluation.label_source) or "not stated",
            },
            metric_type=metric,
            metric_name=metric_title(metric),
            metric_value=round(evaluation.means[metric] or 0.0, 4),
        )
        for metric in METRICS
    ]
