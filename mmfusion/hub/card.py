"""Writes a model card from result files, and reads one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from huggingface_hub import EvalResult, ModelCard, ModelCardData, hf_hub_download
from huggingface_hub.constants import REPOCARD_NAME

from mmfusion.evaluation.numbers import percent
from mmfusion.files import is_hub_id, replace_text
from mmfusion.hub.card_ablation import Ablation, ablation_section, perturbed_variants, read_ablations
from mmfusion.hub.card_error import CardError
from mmfusion.hub.card_facts import ModelFacts, fingerprint_of, read_facts, weights_tag
from mmfusion.hub.card_metadata import card_metadata
from mmfusion.hub.card_private import check_no_secret
from mmfusion.hub.card_prose import data_section, label_notice, limits_section, summary
from mmfusion.hub.card_results import NOT_MEASURED, read_results
from mmfusion.hub.card_snippets import example_products
from mmfusion.hub.card_tables import (
    Measured,
    perturbed_section,
    results_section,
    slices_section,
    sort_results,
    weights_section,
)
from mmfusion.hub.card_training import (
    TrainingRun,
    catalogues_of,
    compute_section,
    encoders_of,
    read_runs,
    training_section,
)
from mmfusion.hub.errors import explain
from mmfusion.markdown import table

WRITTEN = "Written by recipes/card.py"
DEFAULT_REPO = "org/mm-ecom"
_PLACE = re.compile(r"\{\{\s*(\w+)\s*\}\}")
_REVISION = re.compile(r"[\w][\w./-]*")


def write_card(
    folder: str | Path,
    *,
    results: Sequence[str | Path] = (),
    ablation: str | Path | None = None,
    output: str | Path | None = None,
    repo: str = DEFAULT_REPO,
    revision: str | None = None,
    notes: str | Path | None = None,
    dataset: str | None = None,
    base_model: Sequence[str] = (),
    datasets: Sequence[str] = (),
    language: Sequence[str] = (),
    license: str = "apache-2.0",
    template: str | Path | None = None,
) -> Path:
    """Writes the card of a model. Every number in it comes from a result file; what was not measured says so.

    Args:
        folder: Model folder, with the `run.json` of its recipe if the training is to be described.
        results: Files or folders that recipes/evaluate.py wrote. Those of this model, known by its fingerprint, are its
            results; the others stand beside them.
        ablation: Output folder of recipes/ablation.py. Without `results`, those of this model in it are taken.
        output: The file; default: README.md in the folder. Only a card that was written here is replaced.
        repo: Hub id for the snippets.
        revision: Branch, tag or commit for the snippets; default: the tag that publishing puts on these weights.
        notes: Markdown file of the author, put into its place as it is.
        dataset: Name of the catalogue of results that do not say.
        base_model: Hub ids of the encoders; default: those that the recipes name.
        datasets: Hub ids of the training data; default: those that the recipes name.
        language: ISO 639 codes of queries and titles; default: not stated.
        license: Of the weights, as the Hub writes it.
        template: Another template, with the places of model_cards/TEMPLATE.md.

    Returns:
        The file written.

    Raises:
        CardError: A file is missing or damaged, a field is out of range, no result is of this model, the card would
            hold an access token, or the file is there and was written by hand.
    """
    output = Path(folder) / REPOCARD_NAME if output is None else Path(output)
    _check_replaceable(output)
    if revision is not None and not _REVISION.fullmatch(revision):
        raise CardError(f"the value is {revision!r}", "field 'revision'", "give a branch, a tag or a commit")
    facts, runs = read_facts(folder), read_runs(folder)
    ablations = read_ablations(ablation) if ablation is not None else []
    fingerprint = fingerprint_of(folder)
    given = list(results) or [file for found in ablations for file in found.files.get(fingerprint, [])]
    measured, left_out = sort_results(read_results(given, dataset=dataset), fingerprint, facts.vector_bytes)
    data = card_metadata(
        facts,
        measured,
        repo=repo,
        base_model=list(base_model) or encoders_of(runs),
        datasets=list(datasets) or [name for name in catalogues_of(runs) if is_hub_id(name)],
        language=language,
        license=license,
    )
    places = {
        "title": repo.split("/")[-1],
        "repo": repo,
        "revision": revision or weights_tag(fingerprint),
        "products": example_products(facts),
        "results": results_section(measured, left_out),
        "ablation": ablation_section(ablations, fingerprint),
        "slices": slices_section(measured),
        "perturbed": _perturbed(measured, ablations),
        "weights": weights_section(measured),
        "training": training_section(runs),
        "compute": compute_section(runs),
        "notes": _notes(notes),
        **_prose(facts, measured, ablations, runs, data),
    }
    text = _fill(Path(template) if template is not None else _template_path(), data, places)
    check_no_secret(text, str(output))
    output.parent.mkdir(parents=True, exist_ok=True)
    replace_text(output, text)
    return output


@dataclass(frozen=True)
class LoadedCard:
    """A card that was read.

    Attributes:
        source: Hub id or file.
        card: As huggingface_hub parses it.
    """

    source: str
    card: ModelCard

    @property
    def data(self) -> ModelCardData:
        """The metadata."""
        return cast(ModelCardData, self.card.data)

    @property
    def text(self) -> str:
        """The Markdown below the metadata."""
        return str(self.card.text)

    @property
    def metrics(self) -> list[EvalResult]:
        """The entries of the model-index; empty where nothing was measured."""
        return list(self.data.eval_results or [])

    def table(self) -> str:
        """The metrics as a Markdown table, shares in per cent."""
        if not self.metrics:
            return NOT_MEASURED
        names = list(dict.fromkeys(result.metric_name or result.metric_type for result in self.metrics))
        values: dict[tuple[str, str], dict[str, str]] = {}
        for result in self.metrics:
            key = (str(result.dataset_name), str(result.dataset_split or "–"))
            values.setdefault(key, {})[result.metric_name or result.metric_type] = _value(result.metric_value)
        rows = [["data set", "split", *names]]
        rows += [[*key, *(found.get(name, "–") for name in names)] for key, found in values.items()]
        return table(rows)


def load_card(source: str | Path, *, revision: str | None = None, token: str | bool | None = None) -> LoadedCard:
    """Reads a card from the Hub, a model folder or a file.

    Args:
        source: Hub id (`org/name`), folder with a README.md, or the file.
        revision: Branch, tag or commit on the Hub.
        token: Access token; None takes the stored one.

    Raises:
        HubError: The repository, the revision or the card is not there, or may not be read.
        CardError: The folder holds no card, or its metadata cannot be read.
    """
    path = _download(str(source), revision, token) if _is_on_hub(source) else _local_card(Path(source))
    try:
        return LoadedCard(str(source), ModelCard(path.read_text("utf-8-sig")))
    except Exception as error:
        # YAML has an error class of its own, of a package that is not ours to import.
        reason = " ".join(str(error).split())
        raise CardError(
            f"the metadata cannot be read ({reason})", f"{source}, {path.name}", "write the card again"
        ) from error


def _prose(
    facts: ModelFacts,
    measured: Sequence[Measured],
    ablations: Sequence[Ablation],
    runs: Sequence[TrainingRun],
    data: ModelCardData,
) -> dict[str, str]:
    return {
        "summary": summary(facts, data),
        "label_notice": label_notice(measured, ablations),
        "limits": limits_section(measured, ablations, runs, data),
        "data": data_section(measured, ablations, runs),
    }


def _perturbed(measured: Sequence[Measured], ablations: Sequence[Ablation]) -> str:
    parts = [perturbed_section(measured), perturbed_variants(ablations)]
    return "\n\n".join(part for part in parts if part) or NOT_MEASURED


def _notes(path: str | Path | None) -> str:
    if path is None:
        return "## Notes of the author\n\nNone."
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CardError(f"cannot be read ({error})", str(path), "give a Markdown file in UTF-8 with --notes") from error
    check_no_secret(text, str(path))
    return f"## Notes of the author\n\n{text.strip()}" if text.strip() else "## Notes of the author\n\nNone."


def _template_path() -> Path:
    # An installed package carries the template beside its code; a checkout has it in model_cards/ alone.
    beside, checkout = Path(__file__).parent, Path(__file__).parents[2]
    found = [path for path in (beside / "TEMPLATE.md", checkout / "model_cards" / "TEMPLATE.md") if path.is_file()]
    if not found:
        raise CardError("the template is missing", str(beside / "TEMPLATE.md"), "install mmfusion again")
    return found[0]


def _fill(template: Path, data: ModelCardData, places: dict[str, str]) -> str:
    try:
        text = template.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CardError(f"cannot be read ({error})", str(template), "give a Markdown file with --template") from error
    named = set(_PLACE.findall(text))
    unknown = sorted(named - places.keys() - {"card_data"})
    if unknown or "card_data" not in named:
        what = f"it names the place {unknown[0]!r}" if unknown else "it has no place 'card_data'"
        known = ", ".join(["card_data", *places])
        raise CardError(what, str(template), f"the places are {known}")
    return str(ModelCard.from_template(data, template_str=text, **places)).rstrip() + "\n"


def _check_replaceable(output: Path) -> None:
    if output.is_file() and WRITTEN not in output.read_text("utf-8", errors="replace"):
        raise CardError(
            "this file was not written by recipes/card.py",
            str(output),
            "give another --output, or delete it (and put what you wrote into --notes)",
        )


def _is_on_hub(source: str | Path) -> bool:
    return is_hub_id(source) and not str(source).endswith(".md")


def _local_card(path: Path) -> Path:
    card = path / REPOCARD_NAME if path.is_dir() else path
    if not card.is_file():
        raise CardError(
            "there is no such card", str(card), "give a Hub id (org/name), or write one with recipes/card.py"
        )
    return card


def _download(repo: str, revision: str | None, token: str | bool | None) -> Path:
    try:
        return Path(hf_hub_download(repo, REPOCARD_NAME, revision=revision, token=token))
    except Exception as error:
        raise explain(error, repo, revision) from error


def _value(value: object) -> str:
    is_share = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
    return percent(float(value)) if is_share else str(value)  # type: ignore[arg-type]
