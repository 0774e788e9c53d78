"""Peak memory and speed of stage 1 with adapters, beside whole encoders: row 11 of docs/benchmarks/peers.md; by hand:

    git worktree add --detach /tmp/today f4b0012
    python tests/benchmarks/lora.py --today /tmp/today --work outputs/lora --output outputs/rows

Encoders have the shapes of ViT-B/16 and BERT-base and random weights, float32, on one thread. Each cell trains a few
steps and saves the model, in a process of its own, one at a time; what was measured stays in `--work`, and the same
command goes on. Peaks are those of the whole process; seconds are of the CPU, without reading, of the steps after the
first one, which makes the optimizer's states.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from shutil import rmtree
from statistics import median
from time import perf_counter, process_time
from typing import Any

from row_files import environment, interpreter, machine, write_row

GIB = 2**30
ATTENTION, CHECKPOINTED = "LoRA", "LoRA, activation checkpointing"
# Whether it runs in today's build, what is adapted, and whether activations are checkpointed.
ARMS: dict[str, tuple[bool, str | None, bool]] = {
    "today": (True, None, False),
    ATTENTION: (False, "attention", False),
    CHECKPOINTED: (False, "attention", True),
    # With --arms only.
    "LoRA, all linear layers": (False, "all-linear", False),
    "whole encoders": (False, None, False),
    "whole encoders, activation checkpointing": (False, None, True),
}


def make_data(folder: Path) -> None:
    """Writes a catalogue, a tokenizer and an image processor."""
    from mmfusion.data.toy_catalogue import write_toy_catalogue
    from mmfusion.data.toy_encoders import write_toy_encoders

    write_toy_catalogue(folder / "catalogue", num_products=2_000)
    write_toy_encoders(folder / "encoders")


def make_base(folder: Path, photo: int, tokens: int) -> None:
    """Writes the base model, whose product texts are longer than so many tokens."""
    import torch
    from transformers import BertConfig, BertModel, ViTConfig, ViTModel

    from mmfusion.model import MMFusionModel, MMFusionProcessor

    torch.manual_seed(0)
    text, vision = BertModel(BertConfig()), ViTModel(ViTConfig(image_size=photo))
    texts = {"product_template": " ".join(["{title} {description}"] * 6)}
    model = MMFusionModel.from_backbones(text, vision, text_pooling="mean", image_pooling="cls", **texts)
    encoders = (str(folder / "encoders" / name) for name in ("text", "vision"))
    sizes = {"image_size": (photo, photo), "max_product_length": tokens}
    processor = MMFusionProcessor.from_backbones(*encoders, **sizes, **texts)
    model.save_pretrained(folder / "base")
    processor.save_pretrained(folder / "base")


def status(name: str) -> int:
    """Bytes of this process, as Linux has them: VmHWM is the peak of what VmRSS is now."""
    return int(re.findall(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)[0]) * 1024


def cell(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Trains and saves; sizes in bytes, and seconds of each step."""
    import lightning as L
    import torch

    from mmfusion.data.catalogue import Catalogue
    from mmfusion.data.datamodule import MMFusionDataModule
    from mmfusion.stages import Stage1
    from mmfusion.training import load_base
    from mmfusion.training.hardware import Hardware
    from mmfusion.training.trainer import PrepareModel

    class Watch(L.Callback):
        def __init__(self) -> None:
            self.cpu: list[float] = []
            self.clock: list[float] = []

        def on_train_batch_start(self, trainer: L.Trainer, stage: L.LightningModule, batch: Any, index: int) -> None:
            self.shapes = {name: list(value.shape) for name, value in batch.items() if isinstance(value, torch.Tensor)}
            self.start, self.cpu_start = perf_counter(), process_time()

        def on_train_batch_end(self, *_: Any) -> None:
            self.clock.append(perf_counter() - self.start)
            self.cpu.append(process_time() - self.cpu_start)

    torch.set_num_threads(1)
    L.seed_everything(0, verbose=False)
    # Of all processes, the kernel should rather end this one if memory runs out.
    Path("/proc/self/oom_score_adj").write_text("1000")
    model, processor = load_base(str(folder / "base"))
    catalogue = Catalogue.load(folder / "catalogue", cache_dir=folder / "cache")
    data = MMFusionDataModule(catalogue, processor, batch_size=settings["batch"])
    stage, watch = Stage1(model), Watch()
    if settings["targets"]:
        from mmfusion.stages import Lora, add_adapters

        add_adapters(model, Lora(rank=settings["rank"], targets=settings["targets"]))
    trainer = L.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_steps=settings["steps"],
        limit_val_batches=0,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[PrepareModel(Hardware(activation_checkpointing=settings["checkpointing"])), watch],
    )
    before = status("VmRSS")
    trainer.fit(stage, datamodule=data)
    peak = status("VmHWM")
    if settings["targets"]:
        from mmfusion.stages import whole_model

        model = whole_model(model)
    model.save_pretrained(folder / "saved")
    states = [state for optimizer in trainer.optimizers for state in optimizer.state.values()]
    sizes = {
        "peak": status("VmHWM"),
        "peak before saving": peak,
        "before training": before,
        "weights": sum(value.nbytes for value in stage.parameters()),
        "gradients": sum(value.nbytes for value in stage.parameters() if value.requires_grad),
        "optimizer": sum(value.nbytes for state in states for value in state.values()),
    }
    # What is left of the peak, as gradients and states of a step are there while the next one goes forward.
    sizes["activations"] = peak - before - sizes["gradients"] - sizes["optimizer"]
    loss = float(trainer.callback_metrics["train/loss"])
    return {**sizes, "cpu": watch.cpu, "clock": watch.clock, "shapes": watch.shapes, "loss": loss}


def child(source: Path, *arguments: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    command = [interpreter(source), __file__, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--today", type=Path, help="checkout of f4b0012; default: this one stands in for it")
    parser.add_argument("--work", type=Path, required=True, help="folder for what is measured, and to go on from")
    parser.add_argument("--output", type=Path, help="folder that gets row11.json; default: --work")
    parser.add_argument("--arms", nargs="+", default=list(ARMS)[:3], choices=list(ARMS))
    parser.add_argument("--turns", type=int, default=2, help="all arms, one after the other")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64, help="pairs")
    parser.add_argument("--photo", type=int, default=224, help="height and width in pixels")
    parser.add_argument("--tokens", type=int, default=32, help="of a product text, at most")
    parser.add_argument("--rank", type=int, default=8)
    given = parser.parse_args()
    here = Path(__file__).absolute().parents[2]
    today = here if given.today is None else given.today.absolute()
    folder = given.work / f"photo{given.photo}_tokens{given.tokens}"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "base" / "processor_config.json").exists():
        child(here, "--make_data", str(folder))
        # Older builds do not read what newer ones write.
        child(today, "--make_base", str(folder), str(given.photo), str(given.tokens))
    common = {"batch": given.batch, "steps": given.steps, "rank": given.rank}
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in given.arms}
    for turn in range(given.turns):
        for arm in given.arms:
            old, targets, checkpointing = ARMS[arm]
            name = re.sub(r"\W+", "_", arm)
            path = folder / f"{name}_batch{given.batch}_rank{given.rank}_{turn}.json"
            if not path.exists():
                new = path.with_suffix(".partial")
                measured_on = machine()
                settings = {**common, "targets": targets, "checkpointing": checkpointing}
                child(today if old else here, "--cell", str(folder), json.dumps(settings), str(new))
                rmtree(folder / "saved", ignore_errors=True)
                new.write_text(json.dumps({**json.loads(new.read_text()), "machine": measured_on}))
                new.rename(path)
            found[arm].append(json.loads(path.read_text()))
            report(arm, found[arm][-1], found.get("today", [])[-1:])
    print(json.loads(path.read_text())["shapes"])
    if {"today", ATTENTION, CHECKPOINTED} <= found.keys():
        shapes = found["today"][0]["shapes"]
        print(write(given, found, {**common, "shapes": shapes, "steps timed": given.steps - 1}))


def report(arm: str, one: dict[str, Any], today: list[dict[str, Any]]) -> None:
    parts = ("peak", "before training", "gradients", "optimizer", "activations")
    sizes = " | ".join(f"{one[name] / GIB:.2f}" for name in parts)
    beside = f"{ratio_of_memory(one, today[0]):.2f} | {ratio_of_speed(one, today[0]):.2f}" if today else " | "
    print(f"| {arm} | {sizes} | {seconds(one):.1f} | {beside} |", flush=True)


def seconds(one: dict[str, Any]) -> float:
    """CPU seconds of a step after the first one."""
    return median(one["cpu"][1:])


def ratio_of_memory(one: dict[str, Any], today: dict[str, Any]) -> float:
    return float(one["peak"] / today["peak"])


def ratio_of_speed(one: dict[str, Any], today: dict[str, Any]) -> float:
    """Of samples per CPU second."""
    return seconds(today) / seconds(one)


def write(given: argparse.Namespace, found: dict[str, list[dict[str, Any]]], settings: dict[str, Any]) -> Path:
    """Ratios of each turn to today's build in the same turn."""
    ratios = {}
    for arm, cells in found.items():
        if arm != "today":
            pairs = list(zip(cells, found["today"], strict=True))
            ratios[f"memory, {arm}"] = [ratio_of_memory(*pair) for pair in pairs]
            ratios[f"samples/s, {arm}"] = [ratio_of_speed(*pair) for pair in pairs]
    packages = ("torch", "transformers", "lightning", "peft")
    return write_row(
        given.output or given.work,
        11,
        what="peak memory and samples per CPU second of stage 1, encoders of the shapes of ViT-B/16 and BERT-base",
        beside="whole encoders, today's build (f4b0012)" if given.today else "whole encoders, this build",
        target={f"memory, {ATTENTION}": 0.6, f"memory, {CHECKPOINTED}": 0.5, f"samples/s, {ATTENTION}": 1.1},
        ratios=ratios,
        packages=packages,
        measured_on=found["today"][0]["machine"],
        settings={**settings, "threads": 1, "turns": given.turns, **environment(given.today, packages[:-1])},
        cells=found,
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--make_data"]:
        make_data(Path(sys.argv[2]))
    elif sys.argv[1:2] == ["--make_base"]:
        make_base(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    elif sys.argv[1:2] == ["--cell"]:
        Path(sys.argv[4]).write_text(json.dumps(cell(Path(sys.argv[2]), json.loads(sys.argv[3]))))
    else:
        main()
