"""How fast a training step is: rows 6 and 7 of docs/benchmarks/peers.md; by hand, e.g.

    python tests/benchmarks/training_speed.py --before before --catalogue data/fpi --text all-MiniLM-L6-v2 \
        --vision mobilenetv2 --output outputs/peers --rows 6 7

Row 6: stage 2 over cached features of both encoders, 384 queries and 768 products a step, beside commit f4b0012
(`git worktree add --detach before f4b0012`). Row 7: gradient caching, 2,048 pairs of query and title a step in
micro-batches of 64, both sides by one text encoder that is trained, beside CachedMultipleNegativesRankingLoss in the
trainer of sentence-transformers: same encoder, pairs, dropout, clipping and AdamW. Row 6 can also be run for another
kind of fusion, and with or without states of lower blocks.

Each contender trains as a user would have it, in a process of its own with one thread, and stops between two steps
until it is its turn. A turn is some steps with all that belongs to them: loading, tokenising, logging, optimizer; not
checkpoints and validations. CPU seconds count, as they hardly depend on what else the machine does; seconds by the
clock stand beside them. Memory is the peak of the whole process. A row that has a file in the output folder is not run
again, and what a stopped row has cached serves the next try.
"""

import argparse
import json
import os
import resource
import runpy
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

from row_files import environment, interpreter, machine, write_row

HERE = Path(__file__).resolve()
CHECKOUT = HERE.parents[2]
PACKAGES = ("torch", "transformers", "lightning", "numpy", "sentence-transformers")
PAIRS, MICRO_BATCH = 2_048, 64
# Steps that no contender reaches.
ENDLESS = 1_000_000


class Turns:
    """Holds a training before each step that is not asked for yet, and answers with what the steps before it took."""

    def __init__(self, answer: Any) -> None:
        self.answer, self.left, self.started = answer, 0, (0.0, 0.0)

    def step(self) -> None:
        """To be called before each step."""
        if self.left:
            self.left -= 1
        if self.left:
            return
        spent = (process_time() - self.started[0], perf_counter() - self.started[1])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"cpu": spent[0], "seconds": spent[1], "peak_mib": peak}), file=self.answer, flush=True)
        line = sys.stdin.readline()
        if not line.strip():
            os._exit(0)
        self.left, self.started = int(line), (process_time(), perf_counter())


def train_ours(turns: Turns, checkout: str, recipe: str, arguments: list[str]) -> None:
    """A recipe of a checkout; each step asks `turns`."""
    import lightning as L

    class BeforeSteps(L.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            turns.step()

    fit = L.Trainer.fit

    def held_fit(trainer: L.Trainer, *args: Any, **options: Any) -> Any:
        trainer.callbacks.insert(0, BeforeSteps())  # type: ignore[attr-defined]
        return fit(trainer, *args, **options)

    L.Trainer.fit = held_fit  # type: ignore[method-assign]
    sys.argv = [recipe, *arguments]
    runpy.run_path(str(Path(checkout) / "recipes" / f"{recipe}.py"), run_name="__main__")


def train_theirs(turns: Turns, catalogue: str, text: str, folder: str) -> None:
    """Pairs of query and title by the trainer of sentence-transformers; each step asks `turns`."""
    import numpy as np
    import torch
    from datasets import Dataset, load_dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer import modules
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
    from transformers import TrainerCallback

    class BeforeSteps(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            turns.step()

    torch.set_num_threads(1)
    products, queries, qrels = (
        load_dataset("parquet", data_files=f"{catalogue}/{name}.parquet", split="train", cache_dir=f"{folder}/theirs")
        .select_columns(columns)
        .to_pandas()
        for name, columns in (
            ("products", ["product_id", "title"]),
            ("queries", ["query_id", "query", "split"]),
            ("qrels", ["query_id", "product_id", "grade"]),
        )
    )
    # One product of the highest grade for each query, as an epoch of ours has it.
    best = (
        qrels.sample(frac=1, random_state=0)
        .sort_values("grade", kind="stable")
        .drop_duplicates("query_id", keep="last")
    )
    pairs = best.merge(queries[queries.split == "train"], on="query_id").merge(products, on="product_id")
    transformer = modules.Transformer(text, model_args={"dtype": torch.float32}, max_seq_length=64)
    pooling = modules.Pooling(transformer.get_word_embedding_dimension(), "mean")
    model = SentenceTransformer(modules=[transformer, pooling, modules.Normalize()], device="cpu")
    settings = SentenceTransformerTrainingArguments(
        output_dir=f"{folder}/theirs",
        max_steps=ENDLESS,
        per_device_train_batch_size=PAIRS,
        dataloader_drop_last=True,
        learning_rate=1e-4,
        weight_decay=0.01,
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
    )
    np.random.seed(0)
    # Symmetric, as ours is.
    loss = CachedMultipleNegativesRankingLoss(
        model, mini_batch_size=MICRO_BATCH, directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction"
    )
    SentenceTransformerTrainer(
        model=model,
        args=settings,
        train_dataset=Dataset.from_dict({"anchor": pairs["query"].tolist(), "positive": pairs["title"].tolist()}),
        loss=loss,
        callbacks=[BeforeSteps()],
    ).train()


def contend(kind: str, *arguments: str) -> None:
    """A contender, which answers on standard output; whatever else is printed goes to standard error."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if kind == "theirs":
        train_theirs(Turns(answer), *arguments)
    else:
        checkout, recipe, *options = arguments
        train_ours(Turns(answer), checkout, recipe, options)


class Contender:
    """A training in a process of its own."""

    def __init__(self, checkout: Path, log: Path, *arguments: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.log = log
        self.process = subprocess.Popen(
            [interpreter(checkout), str(HERE), "--contend", *arguments],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
            bufsize=1,
        )
        self._answer()

    def steps(self, count: int) -> dict[str, float]:
        """What so many steps took: `cpu` and clock `seconds`, and the `peak_mib` so far."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{count}\n")
        return self._answer()

    def _answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"A contender ended with {self.process.wait()}; see {self.log}.")
        found: dict[str, float] = json.loads(line)
        return found


def in_turns(
    row: int, contenders: dict[str, Callable[[], Contender]], options: argparse.Namespace, steps: int
) -> dict[str, Any]:
    """Ratios of the second contender over the first one, and what they are of."""
    with ExitStack() as ended:
        running = {}
        for name, start in contenders.items():
            running[name] = start()
            ended.callback(running[name].process.kill)
        found: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
        # The first turn allocates, and reads the disk.
        for turn in range(options.turns + 1):
            # Who goes first changes, as what the other leaves behind may help or harm.
            for name in list(running)[:: -1 if turn % 2 else 1]:
                one = running[name].steps(steps)
                if turn:
                    found[name].append(one)
                    print(f"row {row}, turn {turn}, {name}: {one['cpu'] / steps:.3f} s of CPU a step", flush=True)
    ours, other = found.values()
    parts = {"CPU": "cpu", "clock": "seconds", "peak memory": "peak_mib"}
    ratios = {part: [b[key] / a[key] for a, b in zip(ours, other, strict=True)] for part, key in parts.items()}
    return {
        # A peak is of all turns so far.
        "ratios": {**ratios, "peak memory": ratios["peak memory"][-1:]},
        "seconds_a_step": {
            part: {name: [one[parts[part]] / steps for one in values] for name, values in found.items()}
            for part in ("CPU", "clock")
        },
        "peak_mib": {name: values[-1]["peak_mib"] for name, values in found.items()},
        "settings": {"turns": options.turns, "steps of a turn": steps, "threads": 1, "precision": "float32"},
    }


def row_6(options: argparse.Namespace) -> dict[str, Any]:
    layers = options.feature_layers
    folder, kind = options.output, "_".join(["states", *map(str, layers)])
    config = json.dumps({"vision_feature_layers": layers, "projection_hidden_size": 512})
    # By the build that is older, so that both can read it.
    base = made_base(
        options.before, folder / f"base_{kind}", options, "--image_size", "[192,144]", "--model_config", config
    )
    contenders = {}
    for name, checkout in (("now", CHECKOUT), ("before", options.before)):
        run = folder / "runs" / f"6_{name}_{os.getpid()}"
        arguments = training(options, base, run, text_rate=0.0)
        arguments += ["--batch_size", "384", "--extra_products", "384", "--fusion", options.fusion]
        arguments += ["--feature_cache", str(folder / f"features_{kind}_{name}")]
        arguments += ["--optimization.learning_rate", "2e-3", "--optimization.weight_decay", "0.3"]
        contenders[name] = starter(checkout, folder / f"6_{name}.log", "ours", str(checkout), "stage2", *arguments)
    return {
        "what": f"stage 2 ({options.fusion}, blocks {layers or 'none'}) on cached features, 384 x 768, steps/s",
        "beside": "commit f4b0012",
        "target": {"CPU": 2.0},
        **in_turns(6, contenders, options, options.steps),
    }


def row_7(options: argparse.Namespace) -> dict[str, Any]:
    folder = options.output
    arguments = training(
        options, made_base(CHECKOUT, folder / "base_7", options), folder / "runs" / f"7_{os.getpid()}", text_rate=1e-4
    )
    arguments += ["--batch_size", str(PAIRS), "--micro_batch", str(MICRO_BATCH)]
    arguments += ["--query_image_weight", "0", "--title_image_weight", "0"]
    contenders = {
        "ours": starter(CHECKOUT, folder / "7_ours.log", "ours", str(CHECKOUT), "stage1", *arguments),
        "theirs": starter(CHECKOUT, folder / "7_theirs.log", "theirs", options.catalogue, options.text, str(folder)),
    }
    return {
        "what": f"gradient caching, {PAIRS:,} pairs of texts a step, micro-batches of {MICRO_BATCH}, samples/s",
        "beside": "CachedMultipleNegativesRankingLoss in SentenceTransformerTrainer, both directions",
        "target": {"CPU": 1.2, "peak memory": 1.0},
        **in_turns(7, contenders, options, max(1, options.steps // 10)),
    }


def made_base(checkout: Path, folder: Path, options: argparse.Namespace, *more: str) -> str:
    """The folder of a model that nothing has trained."""
    if not (folder / "model.safetensors").is_file():
        arguments = ["--text", options.text, "--vision", options.vision, "--output", str(folder), *more]
        command = [interpreter(checkout), str(checkout / "recipes/base.py"), *arguments]
        subprocess.run(command, env={**os.environ, "PYTHONPATH": str(checkout)}, check=True)
    return str(folder)


def training(options: argparse.Namespace, base: str, run: Path, text_rate: float) -> list[str]:
    """Arguments of a training that ends with its process."""
    return [
        *("--catalogue", options.catalogue, "--base", base, "--output", str(run), "--hardware.accelerator", "cpu"),
        *("--steps", str(ENDLESS), "--checkpoint_every", str(ENDLESS), "--validate_every", str(ENDLESS)),
        *("--optimization.text_learning_rate", str(text_rate), "--optimization.vision_learning_rate", "0"),
    ]


def starter(checkout: Path, log: Path, *arguments: str) -> Callable[[], Contender]:
    """What starts a contender."""
    return lambda: Contender(checkout, log, *arguments)


ROWS = {6: row_6, 7: row_7}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, help="checkout of commit f4b0012, for row 6")
    parser.add_argument("--catalogue", required=True, help="folder of a catalogue with at least 2,048 train queries")
    parser.add_argument("--text", required=True, help="folder of a BERT, e.g. all-MiniLM-L6-v2")
    parser.add_argument("--vision", required=True, help="folder of a MobileNetV2")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder of the rows' files, and of all that they need"
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[*ROWS], choices=[*ROWS])
    parser.add_argument("--fusion", default="gated", help="kind of fusion in row 6")
    parser.add_argument("--feature_layers", type=int, nargs="*", default=[5, 11], help="blocks of states, in row 6")
    parser.add_argument("--turns", type=int, default=5, help="measured turns of each contender")
    parser.add_argument("--steps", type=int, default=10, help="steps of a turn; of row 7 a tenth")
    options = parser.parse_args()
    folder = options.output.resolve()
    options.before = options.before and options.before.resolve()
    for row in options.rows:
        if (folder / f"row{row}.json").is_file():
            print(f"{folder / f'row{row}.json'} is there; delete it to measure row {row} again")
            continue
        measured_on = machine()
        options.output = folder / "training_speed"
        options.output.mkdir(parents=True, exist_ok=True)
        found = ROWS[row](options)
        found["settings"] |= {"encoders": f"{Path(options.text).name}, {Path(options.vision).name}"}
        found["settings"] |= environment(options.before if row == 6 else None, PACKAGES[:-1])
        place = write_row(folder, row, **found, packages=PACKAGES, measured_on=measured_on)
        for part, median in json.loads(place.read_text())["median"].items():
            print(f"row {row}, {part}: {median:.2f}, target {found['target'].get(part, 'none')}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--contend"]:
        contend(*sys.argv[2:])
    else:
        main()
