"""Writes a model card from result files, and reads one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData, hf_hub_download
from huggingface_hub.constants import REPOCARD_NAME
from jinja2.meta import find_undeclared_variables

from mmfusion.evaluation import METRICS
from mmfusion.evaluation.comparison import Ablation
from mmfusion.evaluation.tables import (
    Cell,
    ablation_table,
    markdown_table,
    metric_title,
    perturbed_table,
    template_environment,
)
from mmfusion.files import HUB_ID, is_hub_id, replace_text
from mmfusion.hub.card_facts import (
    ModelFacts,
    catalogues_of,
    compute_table,
    encoders_of,
    fingerprint_of,
    languages_of,
    read_facts,
    read_runs,
    training_table,
    weights_tag,
)
from mmfusion.hub.card_results import Measured, Result, read_ablations, read_results, sort_results
from mmfusion.hub.private import CardError, check_no_secret, public_text
from mmfusion.model.errors import explained
from mmfusion.pages import escape_cell

WRITTEN = "Written by recipes/card.py"
DEFAULT_REPO = "org/mm-ecom"
TEMPLATE = Path(__file__).with_name("card.md")
_REVISION = re.compile(r"[\w][\w./-]*")
_MADE_BY_PROGRAM = ("synthetic", "generated", "derived", "no human")
_EXAMPLES = (("Red floral summer dress", 'Image.new("RGB", (192, 256), "red")'), ("Blue denim jacket", "None"))
# Fields of the metadata: what the Hub takes, and the remedy.
_FIELDS = {
    "base_model": (HUB_ID, "give Hub ids (org/name) with --base_model; a folder says nothing to others"),
    "datasets": (HUB_ID, "give Hub ids (org/name) with --datasets"),
    "language": (re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*|multilingual"), "give ISO 639 codes such as en"),
    "license": (re.compile(r"[a-z0-9][a-z0-9.+-]*"), "give an identifier of the Hub such as apache-2.0"),
    "repo": (HUB_ID, "give a Hub id (org/name) with --repo"),
    "revision": (_REVISION, "give a branch, a tag or a commit"),
}


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
        results: Files or folders that `mmfusion evaluate` wrote. Those of this model, known by its fingerprint, are its
            results; the others are shown next to them.
        ablation: Output folder of `mmfusion ablation`. Without `results`, those of this model in it are taken.
        output: The file; default: README.md in the folder. Only a card that was written here is replaced.
        repo: Hub id for the snippets.
        revision: Branch, tag or commit for the snippets; default: the tag that publishing puts on these weights.
        notes: Markdown file of the author, put into its place as it is.
        dataset: Name of the catalogue of results that do not say.
        base_model: Hub ids of the encoders; default: those that the recipes name.
        datasets: Hub ids of the training data; default: those that the recipes name.
        language: ISO 639 codes of queries and titles; default: what catalogues note that were imported with a locale.
        license: Of the weights, as the Hub writes it.
        template: Another Jinja2 template, with the places of mmfusion/hub/card.md.

    Returns:
        The file written.

    Raises:
        CardError: A file is missing or damaged, a field is out of range, no result is of this model, the card would
            hold an access token, or the file is there and was written by hand.
    """
    output = Path(folder) / REPOCARD_NAME if output is None else Path(output)
    if output.is_file() and WRITTEN not in output.read_text("utf-8", errors="replace"):
        problem = "this file was not written by mmfusion card"
        remedy = "give another --output, or delete it (and put what you wrote into --notes)"
        raise CardError(problem, str(output), remedy)
    facts, runs, fingerprint = read_facts(folder), read_runs(folder), fingerprint_of(folder)
    revision = weights_tag(fingerprint) if revision is None else revision
    catalogues = catalogues_of(runs)
    stated = {
        "base_model": list(base_model) or encoders_of(runs),
        "datasets": list(datasets) or [name for name in catalogues if is_hub_id(name)],
        "language": list(language) or languages_of(runs),
    }
    for name, values in {**stated, "license": [license], "repo": [repo], "revision": [revision]}.items():
        pattern, remedy = _FIELDS[name]
        for value in values:
            if not pattern.fullmatch(value):
                raise CardError(f"the value is {value!r}", f"field {name!r}", remedy)
    ablations = read_ablations(ablation) if ablation is not None else []
    own = sorted({found["file"] for one in ablations for found in one.results if found["model"] == fingerprint})
    given = list(results) or [Path(ablation or "") / file for file in own]
    measured, left_out = sort_results(read_results(given, dataset=dataset), fingerprint, facts.vector_bytes)
    data = _metadata(facts, measured, PurePosixPath(repo).name, license, stated)
    places = {
        "card_data": data.to_yaml(),
        "title": repo.split("/")[-1],
        "repo": repo,
        "revision": revision,
        "data": data,
        "facts": facts,
        "fingerprint": fingerprint,
        "examples": _EXAMPLES,
        "languages": stated["language"],
        "sources": _sources(measured, ablations),
        "measured": measured,
        "left_out": left_out,
        "ablations": ablations,
        "notes": _notes(notes),
        "runs": runs,
        "trained": [run for run in runs if run.minutes is not None],
        "seeds": list(dict.fromkeys(run.arguments["seed"] for run in runs if "seed" in run.arguments)),
        "catalogues": catalogues,
    }
    text = _fill(TEMPLATE if template is None else Path(template), places)
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
        values: dict[tuple[str, str], dict[str, Cell]] = {}
        for result in self.metrics:
            share = isinstance(result.metric_value, float) and 0 <= result.metric_value <= 1
            row = values.setdefault((str(result.dataset_name), str(result.dataset_split or "–")), {})
            row[result.metric_name or result.metric_type] = result.metric_value if share else str(result.metric_value)
        names = list(dict.fromkeys(name for row in values.values() for name in row))
        rows = [[*key, *map(row.get, names)] for key, row in values.items()]
        return markdown_table([["data set", "split", *names], *rows]) if rows else "Not measured."


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
    if is_hub_id(source) and not str(source).endswith(".md"):
        with explained(str(source), revision):
            path = Path(hf_hub_download(str(source), REPOCARD_NAME, revision=revision, token=token))
    else:
        path = Path(source) / REPOCARD_NAME if Path(source).is_dir() else Path(source)
        if not path.is_file():
            remedy = "give a Hub id (org/name), or write one with `mmfusion card`"
            raise CardError("there is no such card", str(path), remedy)
    try:
        return LoadedCard(str(source), ModelCard(path.read_text("utf-8-sig")))
    except Exception as error:
        # YAML has an error class of its own, of a package that is not ours to import.
        reason = " ".join(str(error).split())
        raise CardError(
            f"the metadata cannot be read ({reason})", f"{source}, {path.name}", "write the card again"
        ) from error


def _metadata(
    facts: ModelFacts, measured: Sequence[Measured], name: str, license: str, stated: dict[str, list[str]]
) -> ModelCardData:
    """What the Hub filters by, and the results that it lists; a field that nobody stated is left out."""
    tags = ["mmfusion", "sentence-transformers", "retrieval", "e-commerce", "multimodal", "two-tower"]
    tags += ["matryoshka"] if facts.config.matryoshka_dims else []
    optional: dict[str, Any] = {}
    if stated["base_model"]:
        optional = {"base_model": stated["base_model"], "base_model_relation": "finetune"}
    if results := [result for part in measured for result in _eval_results(part.own)]:
        optional |= {"model_name": name, "eval_results": results}
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="feature-extraction",
        license=license,
        datasets=stated["datasets"] or None,
        language=stated["language"] or None,
        tags=[*tags, "custom_code"],
        **optional,
    )


def _eval_results(result: Result) -> list[EvalResult]:
    evaluation, name = result.evaluation, public_text(result.dataset)
    whole = evaluation.pool != "split"
    return [
        EvalResult(
            task_type="information-retrieval",
            task_name="Product retrieval",
            dataset_type=name,
            dataset_name=f"{name}, whole catalogue" if whole else name,
            # Results of one data set and split are distinguished by it: the larger pool is the harder task.
            dataset_config="whole_catalogue" if whole else None,
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


def _sources(measured: Sequence[Measured], ablations: Sequence[Ablation]) -> list[dict[str, Any]]:
    """Who made the labels of what; whether a program did."""
    found = [(part.own.title, part.own.evaluation.label_source) for part in measured]
    if not found:
        found = [(f"the ablation's {ablation.split} split", ablation.label_source) for ablation in ablations]
    public = [[public_text(escape_cell(text)) for text in pair] for pair in dict.fromkeys(found)]
    by_program = [any(word in labels.lower() for word in _MADE_BY_PROGRAM) for _, labels in public]
    return [
        {"of": of, "labels": labels, "by_program": made} for (of, labels), made in zip(public, by_program, strict=True)
    ]


def _notes(path: str | Path | None) -> str:
    if path is None:
        return ""
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CardError(f"cannot be read ({error})", str(path), "give a Markdown file in UTF-8 with --notes") from error
    check_no_secret(text, str(path))
    return text.strip()


def _fill(template: Path, places: dict[str, Any]) -> str:
    environment = template_environment(template.parent)
    environment.filters["public_text"] = public_text
    tables = (ablation_table, perturbed_table, training_table, compute_table)
    environment.globals.update({function.__name__: function for function in tables})
    try:
        text = template.read_text("utf-8")
        named = find_undeclared_variables(environment.parse(text)) - environment.globals.keys()
    except (OSError, UnicodeDecodeError, jinja2.TemplateSyntaxError) as error:
        raise CardError(f"cannot be read ({error})", str(template), "give a Jinja2 template with --template") from error
    unknown = sorted(named - places.keys())
    if unknown or "card_data" not in named:
        what = f"it names the place {unknown[0]!r}" if unknown else "it has no place 'card_data'"
        raise CardError(what, str(template), f"the places are {', '.join(places)}")
    return environment.from_string(text).render(places).rstrip() + "\n"
