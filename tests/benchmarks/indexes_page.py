"""The page, table and chart of benchmark_indexes.py."""

import csv
import os
import platform
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from mmfusion.embedding import VectorType
from mmfusion.retrieval.choose import physical_memory
from mmfusion.retrieval.vectors import created_by

matplotlib.use("Agg")
MIB = 2**20


@dataclass(frozen=True)
class Kind:
    """A kind of index: its name here, FAISS factory string and run-time parameters, and what vectors are stored as."""

    name: str
    factory: str
    parameters: str
    stored: VectorType = "float32"


Results = list[tuple[Kind, dict[str, Any]]]


def write_page(output: Path, settings: dict[str, Any], results: Results, command: list[str]) -> None:
    """Writes index-benchmark.md, .csv and .png."""
    rows = [{**asdict(kind), **found} for kind, found in results]
    with (output / "index-benchmark.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (output / "index-benchmark.md").write_text(_page(settings, results, command), "utf-8")
    _draw(output / "index-benchmark.png", settings, results)


def _page(settings: dict[str, Any], results: Results, command: list[str]) -> str:
    count, exact = settings["vectors"], results[0][1]
    loads = [found["load_average"] for _, found in results]
    lines = [
        "# Kinds of index beside exact search",
        "",
        f"{count:,} vectors of {settings['dimension']} components, made of {settings['real']:,} real product vectors "
        f"by adding noise of length {settings['noise']:g} (seed {settings['seed']}) and scaling to length 1:",
        f"**perturbed, not real ones**. At most {settings['queries']:,} queries: {settings['asked']}.",
        f"Model {settings['model_fingerprint'][:12]}.",
        "",
        "```bash",
        f"python tests/benchmarks/indexes.py {_without_folders(command)}",
        "```",
        "",
        f"Measured on {_processor()}, {os.cpu_count()} cores, {physical_memory() / 2**30:.0f} GiB of memory, Python "
        f"{platform.python_version()}, numpy {np.__version__}, {created_by()}. Load average while searching: "
        f"{min(loads):.1f} to {max(loads):.1f}, of which this run is at most {os.cpu_count()}.",
        "",
        "| kind | FAISS | build | on disk | first stage in memory | of it anonymous | recall@100 | one by one "
        "| x exact | in a batch | x exact | vectors cold |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for kind, found in results:
        first = found["first_stage_anonymous_bytes"] + found["first_stage_mapped_bytes"]
        lines.append(
            f"| {kind.name} | `{kind.factory}` {kind.parameters} | {found['build_seconds']:,.0f} s "
            f"| {found['disk_bytes'] / MIB:,.0f} MiB | {first / MIB:,.0f} MiB "
            f"| {found['first_stage_anonymous_bytes'] / MIB:,.0f} MiB | {found['recall_at_100']:.4f} "
            f"| {found['single_qps']:,.0f}/s | {found['single_qps'] / exact['single_qps']:.1f} "
            f"| {found['batch_qps']:,.0f}/s | {found['batch_qps'] / exact['batch_qps']:.1f} "
            f"| {found['cold_qps']:,.0f}/s |"
        )
    return "\n".join([*lines, "", *_NOTES, ""])


_NOTES = [
    "- *recall@100*: share of the 100 neighbours that exact search over the float32 vectors finds, among the first",
    "  100. Queries are float32 throughout, also where the vectors are int8 or bits.",
    "- *build*: training, adding and, but for `Flat`, measuring recall on a sample of 256; all threads.",
    "- *on disk*: `index.faiss`. *first stage in memory*: pages of it that are resident after all queries went",
    "  through the first stage, and what the process holds beside them (ids, what FAISS takes for a batch), which is",
    "  *anonymous*: the system cannot drop it and read it again. What is scored again is not in it: it stays on disk,",
    "  and pages that are asked for are read.",
    "- *one by one*: queries per second, each by itself on one thread, warm. *in a batch*: all at once on all threads.",
    "  *x exact*: against `Flat` in this run. *vectors cold*: one by one, the first 100 queries after the file had",
    "  been taken out of the page cache and the first stage had been read; without rescoring nothing is cold then.",
    "- *embedded as* int8 (a scale per vector) or binary (signs): what `embed.py --vector_type` stores, indexed.",
    "- `index-benchmark.csv` has all figures; `index-benchmark.png` shows recall against speed, and sizes.",
]


def _without_folders(command: list[str]) -> str:
    return shlex.join(Path(word).name if "/" in word else word for word in command)


def _processor() -> str:
    names = [line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def _draw(path: Path, settings: dict[str, Any], results: Results) -> None:
    from matplotlib import pyplot

    figure, (speed, size) = pyplot.subplots(1, 2, figsize=(15, 7), width_ratios=[3, 2])
    colours = matplotlib.colormaps["tab20"].colors
    for place, (kind, found) in enumerate(results):
        speed.scatter(found["recall_at_100"], found["single_qps"], color=colours[place % 20], s=60, label=kind.name)
    speed.set(yscale="log", xlabel="recall@100", ylabel="queries per second, one by one on one thread")
    speed.grid(alpha=0.3)
    speed.legend(fontsize=8)
    names = [f"{kind.factory} ({kind.stored})" if kind.stored != "float32" else kind.factory for kind, _ in results]
    first = [found["first_stage_anonymous_bytes"] + found["first_stage_mapped_bytes"] for _, found in results]
    disk = [found["disk_bytes"] for _, found in results]
    places = np.arange(len(results))
    size.barh(places - 0.2, np.array(disk) / MIB, 0.4, label="on disk", color="lightgrey")
    size.barh(places + 0.2, np.array(first) / MIB, 0.4, label="first stage in memory", color="tab:blue")
    size.set_yticks(places, names, fontsize=8)
    size.invert_yaxis()
    size.set_xlabel("MiB")
    size.legend(fontsize=8)
    figure.suptitle(f"{settings['vectors']:,} perturbed vectors of {settings['dimension']} components")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
