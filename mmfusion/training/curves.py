"""Loss and metric curves from the CSV logs of a run, as a picture."""

import csv
from pathlib import Path

# Parts of the names of what else training logs: shares, and the logit scale.
_NO_LOSSES = ("logit_scale", "weight", "expert_load", "accuracy")


def read_metrics(logs: Path) -> dict[str, dict[int, float]]:
    """Values by metric and step. A resumed run has several files; where they overlap, the later one counts."""
    values: dict[str, dict[int, float]] = {}
    for path in sorted(logs.glob("version_*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1])):
        # What follows the last line break was cut off by a kill.
        for row in csv.DictReader(path.read_text("utf-8").rpartition("\n")[0].splitlines()):
            for name, value in row.items():
                if value and name not in ("epoch", "step"):
                    values.setdefault(name, {})[int(row["step"])] = float(value)
    return values


def draw_curves(logs: Path, picture: Path) -> None:
    """Draws losses (left) and validation metrics in percent (right) over optimizer steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    values = read_metrics(logs)
    losses = {name: points for name, points in values.items() if name.startswith("train/") and _is_loss(name)}
    metrics = {name: points for name, points in values.items() if name.startswith("val/")}
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name, points in losses.items():
        left.plot(list(points), list(points.values()), label=name.removeprefix("train/"))
    for name, points in metrics.items():
        right.plot(
            list(points), [100 * value for value in points.values()], marker="o", label=name.removeprefix("val/")
        )
    left.set(title="training loss", xlabel="optimizer step", ylabel="loss (nats)")
    right.set(title="validation", xlabel="optimizer step", ylabel="percent")
    for axes, drawn in ((left, losses), (right, metrics)):
        if drawn:
            axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=120)
    plt.close(figure)


def _is_loss(name: str) -> bool:
    return not any(part in name for part in _NO_LOSSES)
