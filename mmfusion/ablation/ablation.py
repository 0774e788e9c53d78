"""One ablation from its settings to its numbers, its page and its picture."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch

from mmfusion.ablation.page import ablation_page
from mmfusion.ablation.plan import TOY_EMBEDDING_DIM, TOY_ENCODERS, AblationStep, plan_ablation
from mmfusion.ablation.settings import AblationSettings
from mmfusion.ablation.steps import StepFailedError, StepRecord, is_finished, run_steps
from mmfusion.ablation.variants import all_variants, reasons_not_run
from mmfusion.data.toy_catalogue import write_toy_catalogue
from mmfusion.data.toy_encoders import write_toy_encoders
from mmfusion.evaluation import Evaluation, write_evaluation
from mmfusion.evaluation.comparison import Ablation, Results, average, compare
from mmfusion.evaluation.pages import draw_ablation
from mmfusion.evaluation.tables import ablation_csv
from mmfusion.model import MMFusionConfig
from mmfusion.training.output_lock import take_lock
from mmfusion.training.sources import load_base


def with_bases(settings: AblationSettings) -> AblationSettings:
    """The settings with what the plan needs to know of the base models.

    Raises:
        RunError, OSError: There is no such model.
    """
    bases = settings.base, settings.larger_base
    blocks = [None if base is None else load_base(base)[0].num_vision_blocks for base in bases]
    known = TOY_EMBEDDING_DIM if settings.base is None else MMFusionConfig.from_pretrained(settings.base).embedding_dim
    return replace(settings, vision_blocks=blocks[0], larger_vision_blocks=blocks[1], embedding_dim=known)


def run_ablation(
    settings: AblationSettings, *, keep_working_files: bool = False, dry_run: bool = False, table_only: bool = False
) -> None:
    """Runs every step that is not finished, then writes the table; after a failure the table of what is finished.

    Args:
        settings: Of the ablation.
        keep_working_files: Keeps checkpoints and copies of the catalogue of finished trainings.
        dry_run: Prints the commands and does nothing.
        table_only: Writes the table of what is finished and runs nothing.

    Raises:
        SystemExit: With 1 and the end of the log, where a step failed.
        AblationError: A variant is unknown, or a model changed under a finished training.
    """
    steps = plan_ablation(settings)
    if dry_run:
        skipped = [f"# not run: {name} ({reason})" for name, reason in reasons_not_run(settings).items()]
        print("\n".join([*skipped, *(step.command() for step in steps), "# next: the same command without --dry_run"]))
        return
    settings.output.mkdir(parents=True, exist_ok=True)
    if table_only:
        write_ablation(settings, steps, [step for step in steps if is_finished(step)])
        return
    lock = take_lock(settings.output)
    if settings.catalogue is None:
        write_toy_catalogue(settings.catalogue_source, num_products=settings.num_products)
    if settings.base is None:
        write_toy_encoders(settings.output / TOY_ENCODERS)
    finished: list[AblationStep] = []
    failed: StepFailedError | None = None
    try:
        run_steps(steps, keep_working_files=keep_working_files, after=finished.append)
    except StepFailedError as error:
        failed = error
    write_ablation(settings, steps, finished, failed)
    lock.release()
    if failed is not None:
        raise SystemExit(f"StepFailedError: {failed}")


def write_ablation(
    settings: AblationSettings,
    steps: Sequence[AblationStep],
    finished: Iterable[AblationStep],
    failed: StepFailedError | None = None,
) -> Ablation:
    """Writes `ablation.<split>.md`, `.json`, `.csv` and `.png`, and prints the table.

    The evaluation of each variant, averaged over its seeds, goes to `<split>/mean`, where `mmfusion report` reads it.

    Args:
        settings: Of the ablation.
        steps: All steps.
        finished: Those whose results are there.
        failed: What stopped the ablation.
    """
    results = collect(finished)
    means = {key: average(by_seed, key[0]) for key, by_seed in results.items()}
    for (variant, perturbation), mean in means.items():
        name = variant if perturbation == "none" else f"{variant}.{perturbation}"
        write_evaluation(replace(mean, name=name), settings.results / "mean")
    not_run = {} if failed is None else {failed.step.variant: f"{failed.step.recipe} failed"}
    rows = compare(all_variants(settings), results, {**not_run, **reasons_not_run(settings)})
    first = next(iter(means.values()), None)
    conditions = ("pool", "num_products", "num_queries", "relevant_grade")
    numbers = Ablation(
        split=settings.split,
        rows=tuple(rows),
        perturbed=[
            {"variant": variant, "perturbation": perturbation, "means": mean.means}
            for (variant, perturbation), mean in means.items()
            if perturbation != "none"
        ],
        results=[
            {"variant": variant, "perturbation": perturbation, "seed": seed, "model": model, "file": file}
            for (variant, perturbation), by_seed in results.items()
            for seed, evaluation in by_seed.items()
            for model, file in [(evaluation.provenance.get("model"), f"{settings.split}/{evaluation.name}.json")]
            if model and evaluation.provenance.get("bytes_per_product") is not None
        ],
        conditions={} if first is None else {name: getattr(first, name) for name in conditions},
        label_source="" if first is None else first.label_source,
        measured_with=_measured_with(settings, steps),
    )
    stem = settings.output / f"ablation.{settings.split}"
    page, data, table, picture = (stem.with_name(f"{stem.name}{end}") for end in (".md", ".json", ".csv", ".png"))
    text = ablation_page(settings, numbers, results, means, steps)
    page.write_text(text, "utf-8")
    numbers.save(data)
    table.write_text(ablation_csv(rows, numbers.perturbed), "utf-8")
    draw_ablation(rows, picture)
    print(f"{text.split('## ')[0]}\nablation: {page}, {data}, {table}, {picture}", flush=True)
    print(f"next: mmfusion report --results {settings.results / 'mean'}", flush=True)
    return numbers


def collect(finished: Iterable[AblationStep]) -> Results:
    """Reads what finished evaluation steps wrote.

    Raises:
        FileNotFoundError: A result is gone.
    """
    results: Results = {}
    for step in finished:
        if step.name:
            found = results.setdefault((step.variant, step.perturbation), {})
            found[step.seed] = Evaluation.load(step.folder, step.name)
    return results


def _measured_with(settings: AblationSettings, steps: Sequence[AblationStep]) -> dict[str, str]:
    records = [record for step in steps if (record := StepRecord.load(step)) and record.complete]
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor() or platform.machine()
    devices = [torch.cuda.get_device_name(device) for device in range(torch.cuda.device_count())]
    hardware = [f"{processor}, {os.cpu_count()} cores, {torch.get_num_threads()} threads", *devices]
    packages = [f"{name} {version(name)}" for name in ("torch", "lightning", "transformers", "mmfusion")]
    return {
        "hardware": f"{'; '.join(hardware)} (where the table was written; steps of a resumed ablation may differ)",
        "versions": ", ".join([f"Python {platform.python_version()}", *packages]),
        "commit": ", ".join(sorted({record.commit for record in records})) or "no step has finished",
        "budget": (
            f"stage 1 {settings.stage1_steps} steps of {settings.batch_size} pairs, stage 2 {settings.stage2_steps} of "
            f"{settings.stage2_batch_size} with {settings.extra_products} extra products; naive_concat and "
            f"larger_generic {settings.all_steps} steps of stage 2's size, one_stage {settings.all_steps} of stage 1's"
        ),
        "vision blocks frozen where the vision encoder is trained": str(settings.freeze_vision_blocks),
    }
