"""From a shop's own files to a trained, searchable catalogue, in one command that goes on where it was stopped."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from huggingface_hub import hf_hub_download

from mmfusion.commands.fit_steps import (
    DEFAULT_TEXT,
    DEFAULT_VISION,
    Facts,
    Step,
    final_stage,
    plan_for,
    read_facts,
    steps_of,
)
from mmfusion.data.hub_ids import check_readable
from mmfusion.evaluation import Evaluation, format_comparison
from mmfusion.evaluation.tables import percent
from mmfusion.files import is_hub_id
from mmfusion.importers.importing import import_catalogue
from mmfusion.importers.settings import ImportSettings
from mmfusion.model.errors import HubError, MMFusionError, explain
from mmfusion.progress import JobProgress
from mmfusion.stages import Lora, Optimization
from mmfusion.training import Hardware, Run, open_run, recorded_arguments
from mmfusion.training.quiet import Log, quietly
from mmfusion.training.run import read_record

# What a model depends on; the files may be others tomorrow.
_OF_THE_MODEL = (
    *("text", "vision", "base", "image_size", "product_template", "model_config", "fusion", "batch_size", "patience"),
    *("optimization", "lora", "seed"),
)


class FitError(MMFusionError):
    """There is nothing to fit, or not with these settings."""


@dataclass(kw_only=True)
class Config(ImportSettings):
    """Settings of `mmfusion fit`.

    Attributes:
        sources: Files, folders, globs, URLs or ids of data sets, as for `mmfusion import`; or a folder with a
            catalogue.
        output: Folder for everything.
        text: Folder or Hub id of the text encoder.
        vision: Folder or Hub id of the vision encoder.
        base: Folder or Hub id of an mmfusion model to start from, instead of encoders.
        image_size: Height and width in pixels to which whole photos are resized; default: as the image processor does.
        product_template: Product text over product columns; default: what the import recommends.
        model_config: Further fields of MMFusionConfig as JSON; default: those that suit the default encoders.
        trust_remote_code: Whether code that comes with an encoder is run.
        fusion: Kind of fusion network; default: gated.
        steps: Optimizer steps of stage 1; default: by the number of queries. More steps extend a finished run.
        stage2_steps: Optimizer steps of stage 2; default: by the number of queries.
        batch_size: Pairs of query and product in a batch; default: by the number of queries, at most 128.
        patience: Validations in a row without a better score after which a stage stops; default: never.
        optimization: Learning rates and schedule of stage 1; an encoder whose rate is 0 is frozen and its features are
            cached, which takes minutes instead of hours on a CPU.
        lora: Low-rank adapters that stage 1 trains in place of the encoders' weights, for less memory.
        hardware: Device, precision and workers; one device.
    """

    several: ClassVar[str] = "sources"

    sources: list[str]
    output: str = "outputs/shop"
    text: str = DEFAULT_TEXT
    vision: str = DEFAULT_VISION
    base: str | None = None
    image_size: tuple[int, int] | None = None
    product_template: str | None = None
    model_config: dict[str, Any] | None = None
    trust_remote_code: bool = False
    fusion: str | None = None
    steps: int | None = None
    stage2_steps: int | None = None
    batch_size: int | None = None
    patience: int | None = None
    optimization: Optimization = field(default_factory=lambda: Optimization(1e-3, 1e-4, 3e-4))
    lora: Lora = field(default_factory=Lora)
    hardware: Hardware = field(default_factory=Hardware)


def main(config: Config) -> None:
    """Imports, trains both stages, evaluates beside BM25 and text only, embeds, indexes, and writes a report.

    Without queries it trains stage 1 on products alone. Typed again, it goes on where it was stopped; on tomorrow's
    files it keeps the model and does what has changed.
    """
    folder = Path(config.output).absolute()
    encoders = f"text encoder {config.text}, vision encoder {config.vision} (others: --text, --vision)"
    print(encoders if config.base is None else f"base model {config.base}", flush=True)
    run = begin(config, folder)
    catalogue = _catalogue(config, folder, run)
    with quietly(folder / "fit.log") as log:
        facts = read_facts(catalogue, folder)
        _check(config, facts)
        print(facts, flush=True)
        steps = steps_of(config, folder, facts, _plan(config, run, facts))
        todo = _to_do(run, steps, folder, facts)
        if todo:
            run.note(complete=False)
            _run(run, todo, folder, facts, log)
    if todo:
        run.finish(steps=run.record["plan"]["stage1"]["steps"])
    else:
        print(f"{folder} is complete, and nothing has changed")
    print("\n".join(_closing(folder, facts, steps)))


def begin(config: Config, folder: Path) -> Run:
    """The run of the output folder, which may belong to the same model only."""
    if config.hardware.devices != 1 or config.hardware.num_nodes != 1:
        raise FitError("fit trains on one device; on several run the stages themselves, see docs/scale.md.")
    arguments = {name: value for name, value in recorded_arguments(config).items() if name in _OF_THE_MODEL}
    was = (read_record(folder) or {}).get("arguments", arguments)
    changed = [name for name in _OF_THE_MODEL if was.get(name) != arguments.get(name)]
    if changed and (read_record(folder) or {}).get("recipe") == "fit":
        differences = ", ".join(f"{name} was {was.get(name)!r}, now {arguments.get(name)!r}" for name in changed)
        raise FitError(
            f"The output folder {folder} was begun with other arguments ({differences}); repeat them to go on, or give "
            "another --output."
        )
    _check_encoders(config, folder)
    return open_run(folder, "fit", arguments)


def _check_encoders(config: Config, folder: Path) -> None:
    """Fetches the configs of encoders, so that what cannot be loaded is known before anything is imported."""
    if config.base is not None or (folder / "base" / "config.json").is_file():
        return
    for flag in ("text", "vision"):
        name = getattr(config, flag)
        if Path(name).is_dir():
            continue
        reason = "there is no such folder, and it is not the id of a model on the Hub"
        if is_hub_id(name):
            try:
                check_readable(name, "model")
                hf_hub_download(name, "config.json")
                continue
            except Exception as error:
                reason = str(explain(error, name))
        raise HubError(
            f"The {flag} encoder {name!r} cannot be loaded: {reason.rstrip('.')}. Pass folders of encoders that are "
            "here: --text FOLDER --vision FOLDER."
        )


def _catalogue(config: Config, folder: Path, run: Run) -> str:
    """Folder of the catalogue, which is imported where the sources are files that have changed since."""
    source = Path(config.sources[0])
    tables = ("products.parquet", "products-*.parquet", "products/*.parquet")
    if len(config.sources) == 1 and source.is_dir() and any(any(source.glob(name)) for name in tables):
        if config.clicks is not None or config.judgements is not None:
            raise FitError(
                f"{source} is a catalogue, whose judgements are in its table qrels; give the files that it was "
                "imported from together with --clicks or --judgements."
            )
        return str(source.absolute())
    settings = ImportSettings(**{name: getattr(config, name) for name in ImportSettings.__dataclass_fields__})
    state = json.loads(json.dumps([config.sources, sorted(_files(config)), recorded_arguments(settings)]))
    if run.record.get("imported") != state:
        result = import_catalogue(config.sources, folder / "catalogue", settings)
        print("\n".join(result.lines()), flush=True)
        run.note(imported=state)
    return str(folder / "catalogue")


def _files(config: Config) -> Iterator[tuple[str, int, int]]:
    """Name, size and time of each file of this machine that is read."""
    extra = [one if isinstance(one, list) else [one] for one in (config.clicks, config.judgements) if one is not None]
    for name in [*config.sources, *(name for names in extra for name in names)]:
        place = Path(name)
        found = place.rglob("*") if place.is_dir() else Path().glob(name) if not place.is_absolute() else [place]
        for path in found:
            if path.is_file():
                yield str(path), path.stat().st_size, path.stat().st_mtime_ns


def _check(config: Config, facts: Facts) -> None:
    given = config.clicks if config.clicks is not None else config.judgements
    if facts.train < 2 and (facts.train or given is not None):
        raise FitError(
            f"{facts.train} train queries have a relevant product, and training compares at least 2. Give more clicks "
            "or judgements (--min_impressions lowers what counts), or none at all to train on products alone."
        )
    if not facts.photos and not facts.train:
        raise FitError(
            "No product has a photo, and there are no queries: there is nothing to learn from. Name photos, or give "
            "--clicks or --judgements."
        )


def _plan(config: Config, run: Run, facts: Facts) -> dict[str, dict[str, Any]]:
    """Sizes of batches and numbers of steps, which are kept when a run begins; more steps extend it."""
    plan: dict[str, dict[str, Any]] = run.record.get("plan") or plan_for(config, facts)
    if plan["stage1"]["pseudo_queries"] != (not facts.train):
        raise FitError(
            f"The model in {run.folder} was trained {'without' if facts.train else 'with'} queries, and now there "
            f"are {facts.train:,}; give another --output to train again."
        )
    for name, flag in (("stage1", "steps"), ("stage2", "stage2_steps")):
        given, own = getattr(config, flag), plan[name]
        if given is not None and given < own["steps"]:
            raise FitError(f"--{flag} is {given}, and was {own['steps']}; a run is extended by more steps alone.")
        own["steps"] = given or own["steps"]
    run.note(plan=plan)
    return plan


def _to_do(run: Run, steps: list[Step], folder: Path, facts: Facts) -> list[Step]:
    """Steps that are not done, or that depend on one that is not."""
    todo: list[Step] = []
    for step in steps:
        if not _is_done(run, step, folder, facts) or {one.name for one in todo} & set(step.made_of):
            todo.append(step)
    return todo


def _is_done(run: Run, step: Step, folder: Path, facts: Facts) -> bool:
    made = run.record.get("made", {}).get(step.name)
    if made is None or made != step.digests(folder, facts) or not step.output.exists():
        return False
    record = read_record(step.output)
    return record is None or (bool(record["complete"]) and record["arguments"].get("steps") == step.steps)


def _run(run: Run, todo: list[Step], folder: Path, facts: Facts, log: Log) -> None:
    job = JobProgress({step.title: (step.bar, step.seconds) for step in todo})
    log.say = job.say
    try:
        for step in todo:
            digests = step.digests(folder, facts)
            begun = run.record.get("begun", {})
            # A changed catalogue changes no model, and its vectors are brought up to date.
            models = {name: begun.get(step.name, digests).get(name) for name in step.made_of if name != "catalogue"}
            if step.starts_anew and not models.items() <= digests.items():
                shutil.rmtree(step.output, ignore_errors=True)
            run.note(begun={**begun, step.name: digests})
            log.file.write(f"\n=== {step.title}\n")
            with job.step(step.title), log.printing():
                step.main(step.config)
            run.note(made={**run.record.get("made", {}), step.name: digests})
            if (line := step.says()) is not None:
                job.say(line)
    finally:
        job.close()


def _closing(folder: Path, facts: Facts, steps: list[Step]) -> Iterator[str]:
    names = [step.output.stem for step in steps if step.output.parent.name == "evaluation"]
    if names:
        yield format_comparison([Evaluation.load(folder / "evaluation", name) for name in names], slice_by="")
    if not facts.train:
        record = read_record(folder / final_stage(facts)) or {}
        value = percent(record.get("best", {}).get("value"))
        yield (
            f"trained on products alone: for {value} % of {record['held_out_products']:,} held-out products, the "
            "title finds the photo among the first ten; how well queries are answered is not known, as there were none"
        )
    yield f"report: {folder / 'report' / 'report.html'}; what the steps said: {folder / 'fit.log'}"
    yield f"next: mmfusion serve --index {_relative(folder / 'index')}"


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
