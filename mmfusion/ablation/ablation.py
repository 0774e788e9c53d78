"""One ablation from its settings to its table."""

from __future__ import annotations

from pathlib import Path

from mmfusion.ablation.bases import write_toy_inputs
from mmfusion.ablation.collect import collect
from mmfusion.ablation.compare import compare
from mmfusion.ablation.page import markdown_page
from mmfusion.ablation.plan import AblationStep, plan_ablation
from mmfusion.ablation.record import is_finished
from mmfusion.ablation.run import StepFailedError, run_steps
from mmfusion.ablation.settings import AblationSettings
from mmfusion.ablation.variants import all_variants, reasons_not_run
from mmfusion.ablation.write import write_ablation
from mmfusion.training.output_lock import take_lock


def run_ablation(
    settings: AblationSettings,
    *,
    keep_working_files: bool = False,
    dry_run: bool = False,
    table_only: bool = False,
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
        return _print_plan(settings, steps)
    settings.output.mkdir(parents=True, exist_ok=True)
    if table_only:
        return _show(_write(settings, steps, [step for step in steps if is_finished(step)], None))
    lock = take_lock(settings.output)
    write_toy_inputs(settings)
    finished: list[AblationStep] = []
    failed: StepFailedError | None = None
    try:
        run_steps(steps, keep_working_files=keep_working_files, after=finished.append)
    except StepFailedError as error:
        failed = error
    _show(_write(settings, steps, finished, failed))
    lock.release()
    if failed is not None:
        raise SystemExit(f"StepFailedError: {failed}")


def _show(paths: list[Path]) -> None:
    print(f"{paths[0].read_text().split('## ')[0]}\nablation: {', '.join(str(path) for path in paths)}", flush=True)


def _write(
    settings: AblationSettings, steps: list[AblationStep], finished: list[AblationStep], failed: StepFailedError | None
) -> list[Path]:
    results = collect(finished)
    not_run = reasons_not_run(settings)
    if failed is not None:
        not_run.setdefault(failed.step.variant, f"{failed.step.recipe} failed")
    rows = compare(all_variants(settings), results, not_run)
    return write_ablation(settings.output, settings.split, rows, results, markdown_page(settings, rows, results, steps))


def _print_plan(settings: AblationSettings, steps: list[AblationStep]) -> None:
    for name, reason in reasons_not_run(settings).items():
        print(f"# not run: {name} ({reason})")
    for step in steps:
        print(step.command())
