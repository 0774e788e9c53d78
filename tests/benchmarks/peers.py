"""How fast mmfusion is beside what a user would pick instead: the rows of docs/benchmarks/peers.md; by hand, e.g.

    pip install ranx && pip download --no-deps open_clip_torch==3.3.0
    git worktree add --detach before f4b0012
    python -m venv before/.venv && before/.venv/bin/pip install torch==2.13.0 before/
    python tests/benchmarks/peers.py --catalogue data/fpi --large data/fpi_44k --text all-MiniLM-L6-v2 \
        --vision mobilenetv2 --tokenizer clip-bpe-tokenizer --wheel open_clip_torch-3.3.0-py3-none-any.whl \
        --before before --output outputs/peers

Each row is a script of its own that writes OUTPUT/row<N>.json, and a row whose file is there is not measured again. The
page is written from all files there are after each row; with `--rows` and no number, that is all that happens.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from embedding import first_products
from row_files import interpreter, machine, write_row

from mmfusion.evaluation.tables import markdown_table

CHECKOUT = Path(__file__).resolve().parents[2]
PAGE = CHECKOUT / "docs/benchmarks/peers.md"
BEFORE = "f4b0012"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
NOT_MEASURED = "not measured"
Options = argparse.Namespace


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        what: What is measured.
        beside: Beside what.
        before: Its ratio at commit f4b0012, as issue I says.
        target: As issue I says.
        speed: In parts with this in their name, a ratio is of speeds and should be high; None: everywhere of costs.
        command: Arguments of the script that measures it, from the options.
        needs: Options that the script cannot do without.
        fields: Where the parts are not in `ratios` and `target` of the file: by field name, target and whether more is
            better.
    """

    what: str
    beside: str
    before: str
    target: str
    speed: str | None
    command: Callable[[Options], list[str]]
    needs: tuple[str, ...] = ()
    fields: Mapping[str, tuple[str, float | None, bool]] = field(default_factory=dict)


def _script(name: str, *arguments: Any) -> list[str]:
    return [str(CHECKOUT / "tests/benchmarks" / name), *map(str, arguments)]


def _turns(options: Options) -> list[str]:
    return [] if options.turns is None else ["--turns", str(options.turns)]


def _embedding(row: int) -> Callable[[Options], list[str]]:
    def command(options: Options) -> list[str]:
        model = [] if row == 1 else ["--model", small_models(options) / "gated"]
        given = {"today": options.before, "large": options.large, "tokenizer": options.tokenizer}
        more = [word for name, value in given.items() if value is not None for word in (f"--{name}", value)]
        places = ["--catalogue", options.catalogue, "--output", options.output]
        return _script("embedding_peers.py", "--rows", row, *places, *more, *model, *_turns(options))

    return command


def _losses(options: Options) -> list[str]:
    sizes = ["--items", "512", "2048", "8192", "32768", "--repetitions", "40", "12", "5", "2"]
    before = ["--before", str(options.before), "--before_up_to", "8192"] if options.before else []
    return _script("losses.py", "--wheel", options.wheel, *before, *sizes, "--output", options.output)


def _device_reads(options: Options) -> list[str]:
    tests = str(CHECKOUT / "tests/losses/test_chunked_losses.py")
    return ["-m", "pytest", "-q", "-n", "0", tests, "-k", "reads_no_data or makes_nothing_on_the_host"]


def _training(row: int) -> Callable[[Options], list[str]]:
    def command(options: Options) -> list[str]:
        before = ["--before", options.before] if options.before else []
        encoders = ["--text", options.text, "--vision", options.vision]
        places = ["--catalogue", options.catalogue, "--output", options.output]
        return _script("training_speed.py", "--rows", row, *before, *encoders, *places, *_turns(options))

    return command


def _start(options: Options) -> list[str]:
    made = small_models(options)
    places = ["--index", made / "index", "--embeddings", made / "embeddings", "--work", made / "plain"]
    return _script("start.py", *places, "--output", options.output, *_turns(options))


def _online(options: Options) -> list[str]:
    made = small_models(options)
    models = ["--text_only", made / "text_only", "--fused", made / "gated", "--catalogue", options.catalogue]
    return _script("online.py", *models, "--batch_sizes", 1, "--output", options.output)


def _growth(options: Options) -> list[str]:
    model = small_models(options) / "gated"
    places = ["--catalogue", options.catalogue, "--model", model, "--output", options.output]
    return _script("growth.py", *places, *_turns(options))


def _lora(options: Options) -> list[str]:
    places = ["--today", options.before, "--work", options.output / "lora", "--output", options.output]
    return _script("lora.py", *places, *_turns(options))


MODELS = ("catalogue", "text", "vision")
ROWS = {
    1: Row(
        "embed 6,000 products, titles and photos, CLIP-shaped encoders, from start to manifest",
        "sentence-transformers `encode`",
        "0.83 steady",
        "≥ 1.5, or ≥ 0.95 of the bare forward if that is lower",
        "",
        _embedding(1),
        ("catalogue", "tokenizer", "before"),
        {
            "ratios": ("beside `encode`", 1.5, True),
            "of_the_forward": ("beside the bare forward", 0.95, True),
            "peer_of_the_forward": ("`encode` beside the bare forward", None, True),
        },
    ),
    2: Row(
        "the same with MiniLM and MobileNetV2 at 39,000 products",
        "bare forward over decoded batches",
        "0.69 / 0.81",
        "≥ 0.9; CPU ≤ 1.08 × the parts",
        "",
        _embedding(2),
        ("large", *MODELS),
        {
            "ratios": ("beside the bare forward", 0.9, True),
            "of_the_parts": ("CPU over the sum of the parts", 1.08, False),
        },
    ),
    3: Row(
        "1,200 distinct texts and photos, five times each",
        BEFORE,
        "1",
        "≥ 4",
        "",
        _embedding(3),
        ("before", *MODELS),
        {
            "ratios": ("equal products", 4.0, True),
            "shared_photos": ("equal photos alone", None, True),
            "shared_texts": ("equal texts alone", None, True),
        },
    ),
    4: Row(
        "contrastive loss with gradients",
        "open_clip's `ClipLoss`",
        "5.3 (512 pairs) / 3.8 (2,048)",
        "≤ 1.2 (≤ 1.3 at 512 pairs), at the memory of before",
        None,
        _losses,
        ("wheel",),
    ),
    5: Row(
        "reads of the device and copies to it in the loss, by tests on devices without data",
        "–",
        "several per term",
        "0",
        None,
        _device_reads,
    ),
    6: Row(
        "stage 2 on cached features, steps/s",
        BEFORE,
        "1",
        "≥ 2",
        "",
        _training(6),
        ("before", *MODELS),
    ),
    7: Row(
        "training step with gradient caching, 2,048 pairs, samples/s",
        "sentence-transformers' CachedMultipleNegativesRankingLoss",
        NOT_MEASURED,
        "≥ 1.2",
        "",
        _training(7),
        MODELS,
    ),
    8: Row(
        "`mmfusion search` to the first hit; `mmfusion embed` with nothing to do",
        "a plain script; imports and hashing",
        "1.5 / 1.7 × bare imports",
        "≤ 1.15",
        None,
        _start,
        MODELS,
    ),
    9: Row(
        "evaluation of 10,000 queries × top-100; exact top-100 over 1 M × 256",
        "pytrec_eval, ranx, torchmetrics; FAISS Flat",
        "1.5 × pytrec_eval's speed",
        "≤ 1; FAISS ≤ 1.02",
        None,
        lambda options: _script("evaluation.py", "--output", options.output, *_turns(options)),
    ),
    10: Row(
        "query → top-100, fused / text only; ONNX / PyTorch, one query",
        "itself",
        "1.002 / 0.61",
        "≤ 1.02; ≤ 0.7",
        None,
        _online,
        MODELS,
    ),
    11: Row(
        "peak memory of stage 1 with `--lora`, ViT-B/16 and BERT-base shapes",
        f"full fine-tuning, {BEFORE}",
        "–",
        "≤ 0.6, ≤ 0.5 with checkpointing; samples/s ≥ 1.1",
        "samples/s",
        _lora,
        ("before",),
    ),
    12: Row("the cost of an item at four times the size", "the size", "–", "≤ 1.05", None, _growth, MODELS),
}


def run(*arguments: str, checkout: Path = CHECKOUT) -> None:
    """Runs Python with one thread and a checkout."""
    command = [interpreter(checkout), *arguments]
    subprocess.run(command, env=ENVIRONMENT | {"PYTHONPATH": str(checkout)}, check=True)


def small_models(options: Options) -> Path:
    """A folder with a gated and a text-only model of one step, and embeddings and index of a thousand products."""
    made: Path = options.output / "models"
    if (made / "ready").is_file():
        return made
    base, cpu = ["--base", str(made / "base")], ["--hardware.accelerator", "cpu"]
    # By the older build, where there is one: a newer one reads what it writes. Its commands are recipes alone.
    older = options.before or CHECKOUT
    encoders = ["--text", options.text, "--vision", options.vision, "--output", str(made / "base")]
    run(str(older / "recipes/base.py"), *encoders, checkout=older)
    for fusion in ("gated", "text_only"):
        training = ["--catalogue", str(options.catalogue), "--output", str(made / fusion), "--fusion", fusion]
        small = ["--steps", "1", "--batch_size", "16"]
        run(str(older / "recipes/stage2.py"), *base, *training, *cpu, *small, checkout=older)
    products, embeddings = made / "products", str(made / "embeddings")
    if not products.is_dir():
        first_products(options.catalogue, 1_000, products)
    job = ["--catalogue", str(products), "--base", str(made / "gated"), "--output", embeddings]
    run("-m", "mmfusion", "embed", *job, *cpu)
    run("-m", "mmfusion", "index", "--embeddings", embeddings, "--output", str(made / "index"))
    (made / "ready").touch()
    return made


def measure(number: int, options: Options) -> None:
    """Runs the script of a row."""
    row, place = ROWS[number], options.output / f"row{number}.json"
    # Some scripts write after each turn, and the median at the end.
    if place.is_file() and "median" in json.loads(place.read_text("utf-8")):
        print(f"row {number}: {place} is there; remove it to measure again")
        return
    if lacking := [f"--{name}" for name in row.needs if getattr(options, name) is None]:
        print(f"row {number}: {NOT_MEASURED}, as it needs {', '.join(lacking)}")
        return
    measured_on, start = machine(), time.perf_counter()
    command = row.command(options)
    if not Path(command[0]).is_file() and command[0] != "-m":
        raise SystemExit(f"{command[0]} is not in this checkout")
    run(*command)
    if row.command is _device_reads:  # tests, which write no file
        write_row(
            options.output,
            number,
            what=row.what,
            beside=row.beside,
            target=0.0,
            ratios={"reads and copies": [0.0]},
            packages=("torch",),
            measured_on=measured_on,
            settings={},
        )
    print(f"row {number}: {(time.perf_counter() - start) / 60:.1f} minutes", flush=True)


def parts(row: Row, found: dict[str, Any]) -> Iterator[tuple[str, list[float], float | None, bool]]:
    """Name, ratios, target, if any, and whether more is better, of each part of a result."""
    for name, (part, limit, more_is_better) in row.fields.items():
        if name in found:
            yield part, found[name], found.get("limits", {}).get(name, limit), more_is_better
    if not row.fields:
        ratios, target = found["ratios"], found["target"]
        for name, values in ratios.items() if isinstance(ratios, dict) else [("", ratios)]:
            limit = target.get(name) if isinstance(target, dict) else target
            yield name, values, limit, row.speed is not None and row.speed in name


def lines(number: int, folder: Path) -> Iterator[list[str]]:
    """Cells of the table for one row, a line for each part."""
    row, place = ROWS[number], folder / f"row{number}.json"
    head = [str(number), row.what, row.beside, row.before, row.target]
    if not place.is_file():
        yield [*head, "", NOT_MEASURED, ""]
        return
    for name, values, target, more_is_better in parts(row, json.loads(place.read_text("utf-8"))):
        least, middle, most = np.quantile(values, [0, 0.5, 1])
        # What the table says decides.
        shown = round(float(middle), 3)
        met = target is not None and (shown >= target if more_is_better else shown <= target)
        answer = "–" if target is None else "yes" if met else "**no**"
        yield [*head, name, f"{middle:.3f} ({least:.3f}–{most:.3f}), {len(values)}", answer]
        head = [""] * len(head)


def _shown(value: Any) -> str:
    """A value or a word of a command; the last part of a path says enough, and is the same on another machine."""
    return Path(str(value)).name if "/" in str(value) else str(value)


def details(number: int, folder: Path) -> str:
    """Versions, machine, settings and all ratios of a row."""
    row, place = ROWS[number], folder / f"row{number}.json"
    if not place.is_file():
        return ""
    found = json.loads(place.read_text("utf-8"))

    def listed(kind: str) -> str:
        return ", ".join(f"{name} {_shown(value)}" for name, value in found[kind].items()) or "none"

    repetitions = "; ".join(
        f"{name or 'all'}: {', '.join(f'{value:.3f}' for value in values)}" for name, values, *_ in parts(row, found)
    )
    return (
        f"**{number}.** {found['what']}; beside: {found['beside']}. Versions: {listed('versions')}. "
        f"Machine: {listed('machine')}. Settings: {listed('settings')}. Repetitions: {repetitions}."
    )


def page(options: Options) -> str:
    """The page of all rows, measured or not."""
    folder = options.output
    given = {name: value for name, value in vars(options).items() if value is not None and name not in ("rows", "page")}
    words = [word for name, value in given.items() for word in (f"--{name}", _shown(value))]
    head = ["#", "what", "beside", f"at {BEFORE}", "target", "part", "median (least–greatest), repetitions", "met"]
    table = markdown_table([head, *(line for number in ROWS for line in lines(number, folder))])
    faster = ", ".join(str(number) for number, row in ROWS.items() if row.speed == "")
    return "\n\n".join(
        [
            "# Beside its peers",
            f"`python tests/benchmarks/peers.py {shlex.join(words)}`",
            "Ratios of CPU seconds (user and system, with children) unless a part says otherwise, of processes that "
            f"took turns, with one thread each. Column 4 is what issue I says of commit {BEFORE}. In rows {faster} and "
            "parts that name samples/s, a ratio is our speed over the other's (of memory: the other's over ours); "
            "elsewhere it is our cost over the other's. The median decides whether a target is met; [speed](speed.md) "
            "says why one is not.",
            table,
            "## How each row was measured",
            *filter(None, (details(number, folder) for number in ROWS)),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows", type=int, nargs="*", default=[*ROWS], choices=[*ROWS], help="to measure; default: all"
    )
    parser.add_argument("--output", type=Path, default=Path("outputs/peers"), help="folder of the rows' files")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--catalogue", type=Path, help="folder of a catalogue with photos, such as fpi")
    parser.add_argument("--text", help="folder of a BERT, such as all-MiniLM-L6-v2")
    parser.add_argument("--vision", help="folder of a MobileNetV2")
    parser.add_argument("--large", type=Path, help="folder of a catalogue of 39,000 products, for row 2")
    parser.add_argument("--tokenizer", help="folder of a tokenizer of CLIP, for row 1")
    parser.add_argument("--wheel", type=Path, help="of open_clip_torch, for row 4")
    parser.add_argument("--before", type=Path, help=f"checkout of commit {BEFORE}, for rows 1, 3, 4, 6 and 11")
    parser.add_argument("--turns", type=int, help="of the rows that take turns; default: as their scripts say")
    options = parser.parse_args()
    # Some scripts run their contenders in other folders.
    for name in ("output", "catalogue", "large", "text", "vision", "tokenizer", "wheel", "before"):
        if (given := getattr(options, name)) is not None:
            setattr(options, name, Path(given).absolute())
    options.output.mkdir(parents=True, exist_ok=True)
    failed = []
    for number in options.rows:
        try:
            measure(number, options)
        except (subprocess.CalledProcessError, SystemExit) as error:
            failed.append(number)
            print(f"row {number}: {NOT_MEASURED}: {error}", file=sys.stderr)
        options.page.write_text(page(options) + "\n", "utf-8")
    options.page.write_text(page(options) + "\n", "utf-8")
    if failed:
        sys.exit(f"rows {', '.join(map(str, failed))} failed; the others are in {options.page}")


if __name__ == "__main__":
    main()
