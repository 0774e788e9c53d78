"""Time and peak memory of the losses over pairs, beside open_clip's `ClipLoss`; by hand:

    pip download --no-deps open_clip_torch==3.3.0
    git worktree add /tmp/before f4b0012
    python tests/benchmarks/losses.py --wheel open_clip_torch-3.3.0-py3-none-any.whl --before /tmp/before

Each contender is a process of its own, with one thread, in which the embeddings and grades are; all of a size take
turns. What is measured is the value with all gradients: CPU seconds of the process, and seconds by the clock. The extra
peak is that of the first repetition, less what the process held before it. Every left item has three positives: one of
grade 3 and two of grade 1, which `ClipLoss` knows nothing of.
"""

import argparse
import importlib.util
import json
import platform
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch
from row_files import environment, interpreter, machine, write_row
from torch import Tensor
from torch.nn import functional as F

CHECKOUT = Path(__file__).parents[2]
LEVELS, MIB, GIB, CLIP = (1, 3), 2**20, 2**30, "ClipLoss"
CLIP_BYTES = 17  # of a pair, at the peak
SMALL = 512  # pairs, up to which 1.3 times the time will do
CONTENDERS = {CLIP: "open_clip's `ClipLoss`", "contrastive": "contrastive", "sigmoid": "sigmoid", "before": "before"}
Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]


def judgements(items: int) -> Pairs:
    """Left items, right items and grades: a match and two near misses for each left item."""
    rng, rows = np.random.default_rng(0), np.arange(items)
    near = 1 + rng.permutation(items - 1)[:2]
    right = [(rows + shift) % items for shift in (0, *near)]
    return np.tile(rows, 3), np.concatenate(right), np.repeat([3, 1, 1], items)


def embeddings(items: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    """Left and right items, of which those with the same number are close, and the log of the scale."""
    torch.manual_seed(0)
    left = F.normalize(torch.randn(items, width, dtype=dtype), dim=-1)
    right = F.normalize(left + 0.1 * torch.randn(items, width, dtype=dtype), dim=-1)
    return [value.requires_grad_() for value in (left, right, torch.tensor(3.0, dtype=dtype))]


def loss_of(name: str, items: int, pairs: Pairs, source: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """What a contender computes of left items, right items and the log of the scale."""
    if name == CLIP:
        spec = importlib.util.spec_from_file_location("open_clip_loss", source)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        clip_loss = module.ClipLoss()
        return lambda left, right, scale: clip_loss(left, right, scale.exp())
    from mmfusion import losses

    if name == "before":
        from mmfusion.data.qrels import Qrels

        qrels, rows = Qrels(*pairs), torch.arange(items)
        kind: Any = losses.GradedContrastiveLoss
        before = kind(LEVELS)
        grades = lambda a, b: torch.from_numpy(qrels.grades(a.numpy(), b.numpy()))  # noqa: E731
        return lambda left, right, scale: before(left, right, rows, rows, grades, scale)
    loss, known = losses.LOSSES[name](), losses.graded(*pairs, items, LEVELS)
    return lambda left, right, scale: loss.to(left.dtype)(left, right, known, scale)


def contend(name: str, items: int, width: int, source: str) -> None:
    """Answers each line of standard input by one repetition, or with the path of a file, by values in float64."""
    torch.set_num_threads(1)
    pairs = judgements(items)
    loss = loss_of(name, items, pairs, source)
    # What the first backward pass of a process needs is no part of the loss.
    small = embeddings(16, width, torch.float32)
    loss_of(name, 16, judgements(16), source)(*small).backward()
    inputs = embeddings(items, width, torch.float32)
    for line in sys.stdin:
        if line.strip():
            precise = embeddings(items, width, torch.float64)
            value = loss(*precise)
            torch.save([value.detach(), *torch.autograd.grad(value, precise)], line.strip())
            print(flush=True)
            continue
        for leaf in inputs:
            leaf.grad = None
        before, start, cpu = peak(), perf_counter(), process_time()
        value = loss(*inputs)
        value.backward()
        found = {"cpu": process_time() - cpu, "seconds": perf_counter() - start, "peak": peak() - before}
        print(json.dumps(found), flush=True)


def peak() -> float:
    """Peak resident memory of this process in MiB; what `resource` says begins with that of the parent."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return next(int(line[1]) * 1024 for line in lines if line[0] == "VmHWM:") / MIB


def available() -> int:
    """Bytes of memory that a process may still take."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    return next(int(line[1]) * 1024 for line in lines if line[0] == "MemAvailable:")


class Contender(ExitStack):
    """A process that computes a loss of so many pairs when it is asked to."""

    def __init__(
        self, name: str, items: int, width: int = 256, source: str | Path = "", checkout: Path = CHECKOUT
    ) -> None:
        super().__init__()
        command = [interpreter(checkout), __file__, "--contend", name, str(items), str(width), str(source)]
        environment = {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
        self.process = self.enter_context(
            subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
            )
        )
        self.callback(self.process.kill)

    def repetition(self) -> dict[str, float]:
        """What value and gradients took: `cpu` and clock `seconds`, and the extra `peak` in MiB."""
        found: dict[str, float] = json.loads(self.ask())
        return found

    def ask(self, line: str = "") -> str:
        """The answer to a line."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"A contender ended with {self.process.wait()}: {self.process.args}")
        return answer


def measure(
    items: int, names: list[str], repetitions: int, arguments: argparse.Namespace, source: Path
) -> dict[str, Any]:
    """Prints a row for each contender; returns extra peaks in MiB, and all repetitions."""
    with ExitStack() as ended:
        contenders = {}
        for name in names:
            checkout = arguments.before if name == "before" else CHECKOUT
            contenders[name] = ended.enter_context(Contender(name, items, arguments.width, source, checkout))
        peaks = {name: contender.repetition()["peak"] for name, contender in contenders.items()}
        found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        for _ in range(repetitions):
            for name, contender in contenders.items():
                found[name].append(contender.repetition())
        for name, repeated in found.items():
            cells = [f"{items:,}", CONTENDERS[name]]
            for kind in ("cpu", "seconds"):
                own, clip = (np.array([one[kind] for one in values]) for values in (repeated, found.get(CLIP, [])))
                ratio = spread(own / clip, "{:.2f}") if len(clip) else "–"
                cells += [ratio, spread(1000 * own, "{:,.0f}")]
            print(f"| {' | '.join(cells)} | {peaks[name]:,.0f} MiB | {repetitions} |", flush=True)
        if "before" in names and items <= arguments.compare_up_to:
            paths = [source.parent / f"{name}.pt" for name in ("contrastive", "before")]
            for path in paths:
                contenders[path.stem].ask(str(path))
            differences = [
                ((own - other).abs().max() / other.abs().max()).item()
                for own, other in zip(*(torch.load(path, weights_only=True) for path in paths), strict=True)
            ]
            names_of = ("value", "left", "right", "scale")
            text = ", ".join(f"{name} {value:.0e}" for name, value in zip(names_of, differences, strict=True))
            print(f"<!-- {items:,} pairs in float64, largest difference to before over largest value: {text} -->")
    return {"peak_mib": peaks, "repetitions": found}


def write(arguments: argparse.Namespace, measured: dict[int, Any], measured_on: dict[str, Any]) -> None:
    """The contrastive loss beside `ClipLoss` in CPU seconds, and beside the one of before in memory."""
    ratios, target = {}, {}
    for items, found in measured.items():
        own, clip = (found["repetitions"].get(name, []) for name in ("contrastive", CLIP))
        if clip:
            part = f"{items:,} pairs, time"
            ratios[part] = [a["cpu"] / b["cpu"] for a, b in zip(own, clip, strict=True)]
            target[part] = 1.3 if items <= SMALL else 1.2
        if "before" in found["peak_mib"]:
            part = f"{items:,} pairs, memory (beside f4b0012)"
            ratios[part], target[part] = [found["peak_mib"]["contrastive"] / found["peak_mib"]["before"]], 1.0
    write_row(
        arguments.output,
        4,
        what=f"contrastive loss with gradients, {arguments.width} dimensions, three positives, levels {LEVELS}",
        beside=f"`ClipLoss` of {arguments.wheel.stem}",
        target=target,
        ratios=ratios,
        packages=("torch",),
        measured_on=measured_on,
        settings={
            "repetitions": dict(zip(arguments.items, arguments.repetitions, strict=True)),
            "threads": 1,
            **environment(arguments.before, ("torch",)),
        },
        measured=measured,
    )


def spread(values: Any, form: str) -> str:
    """Median, least and largest value."""
    least, median, largest = (form.format(value) for value in np.quantile(values, [0.0, 0.5, 1.0]))
    return f"{median} ({least}–{largest})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--wheel", type=Path, required=True, help="of open_clip_torch; only its loss.py is read")
    parser.add_argument("--before", type=Path, help="checkout of commit f4b0012, whose contrastive loss takes part")
    parser.add_argument("--before_up_to", type=int, default=2_048, help="pairs up to which it does")
    parser.add_argument("--compare_up_to", type=int, default=2_048, help="pairs up to which values are compared")
    parser.add_argument("--items", type=int, nargs="+", default=[512, 2_048, 8_192, 32_768], help="pairs")
    parser.add_argument("--repetitions", type=int, nargs="+", default=[40, 12, 5, 2], help="of each, by size")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--output", type=Path, help="folder of row4.json; default: none is written")
    arguments = parser.parse_args()
    measured_on, measured = machine(), {}
    load = Path("/proc/loadavg").read_text().split()[0] if Path("/proc/loadavg").exists() else "unknown"
    print(
        f"{arguments.wheel.stem}, torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}, "
    )
    print(f"{torch.backends.cpu.get_cpu_capability()}, one thread, load of the machine at the start: {load}\n")
    print("| pairs | loss | CPU, × ClipLoss | CPU, ms | clock, × | clock, ms | extra peak | repetitions |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    with TemporaryDirectory() as folder:
        source = Path(folder) / "loss.py"
        source.write_bytes(zipfile.ZipFile(arguments.wheel).read("open_clip/loss.py"))
        for items, repetitions in zip(arguments.items, arguments.repetitions, strict=True):
            names, wanted, free = [CLIP, "contrastive", "sigmoid"], CLIP_BYTES * items**2 / GIB, available() / GIB
            if wanted > free:
                names.remove(CLIP)
                text = f"not measured: it needs about {wanted:.0f} GiB, of which {free:.0f} were free"
                print(f"| {items:,} | {CONTENDERS[CLIP]} | {text} | | | | | |", flush=True)
            if arguments.before is not None and items <= arguments.before_up_to:
                names.append("before")
            measured[items] = measure(items, names, repetitions, arguments, source)
    if arguments.output:
        write(arguments, measured, measured_on)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--contend"]:
        contend(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
    else:
        main()
