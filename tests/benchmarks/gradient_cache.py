"""Peak memory and step time with and without gradient caching; by hand: python tests/benchmarks/gradient_cache.py

Each cell trains the tiny toy encoders by stage 1, on photos and titles of the toy catalogue, in a process of
its own, whose memory is limited. The peak covers everything, loading too. Times are those of the last step without
loading, on one thread: CPU seconds, and beside them those of the clock, which other jobs make longer.
"""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

GIB = 2**30
# How the limit shows itself: in torch's allocator, in Python, in C++.
OUT_OF_MEMORY = ("can't allocate memory", "MemoryError", "bad_alloc", "Cannot allocate memory")


def cell(catalogue: Path, folder: Path, batch: int, micro_batch: int, steps: int, limit: float, seed: int) -> Any:
    """Trains a few steps and returns peak GiB, CPU and clock seconds and loss of the last step, and GiB of a batch."""
    resource.setrlimit(resource.RLIMIT_DATA, (int(limit * GIB), int(limit * GIB)))
    # After the limit, so that all of the process is under it.
    import lightning as L
    import torch

    from mmfusion.data.catalogue import Catalogue
    from mmfusion.data.datamodule import MMFusionDataModule
    from mmfusion.stages import Stage1
    from mmfusion.training import load_base, starting_base

    class Clock(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, stage: L.LightningModule, batch: Any, index: int) -> None:
            self.bytes = sum(value.nbytes for value in batch.values() if isinstance(value, torch.Tensor))
            self.start, self.cpu_start = perf_counter(), process_time()

        def on_train_batch_end(self, *_: Any) -> None:
            self.seconds, self.cpu = perf_counter() - self.start, process_time() - self.cpu_start

    torch.set_num_threads(1)
    L.seed_everything(seed, verbose=False)
    model, processor = load_base(starting_base(None, folder))
    data = MMFusionDataModule(Catalogue.load(catalogue, cache_dir=folder / "cache"), processor, batch_size=batch)
    clock = Clock()
    trainer = L.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_steps=steps,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[clock],
    )
    trainer.fit(Stage1(model, micro_batch=micro_batch), datamodule=data)
    return {
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB,
        "cpu": clock.cpu,
        "seconds": clock.seconds,
        "batch": clock.bytes / GIB,
        "loss": float(trainer.callback_metrics["train/loss"]),
    }


def run(*arguments: object) -> Any:
    """A cell in a process of its own; None if it ran out of memory."""
    command = [sys.executable, __file__, "--cell", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and any(sign in done.stderr for sign in OUT_OF_MEMORY):
        return None
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[256, 2_048, 8_192], help="pairs")
    parser.add_argument("--micro_batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=2, help="of which the last is timed")
    parser.add_argument("--limit", type=float, default=6.0, help="GiB of data that a process may hold")
    parser.add_argument("--num_products", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder", help="where catalogue and encoders are made, or found again; default: a temporary one"
    )
    arguments = parser.parse_args()
    with TemporaryDirectory() as temporary:
        folder = Path(arguments.folder or temporary)
        from mmfusion.data.toy_catalogue import write_toy_catalogue

        catalogue = write_toy_catalogue(folder / "catalogue", num_products=arguments.num_products)
        print("| pairs in a batch | `--micro_batch` | peak RSS | step, CPU | clock | tensors of a batch | loss |")
        print("|---|---|---|---|---|---|---|", flush=True)
        for batch in arguments.batch_sizes:
            for micro_batch in (0, arguments.micro_batch):
                settings = (batch, micro_batch, arguments.steps, arguments.limit, arguments.seed)
                found = run(catalogue, folder, *settings)
                row = (
                    "out of memory | | | |"
                    if found is None
                    else "{peak:.2f} GiB | {cpu:.1f} s | {seconds:.1f} s | {batch:.2f} GiB | {loss:.4f}".format(**found)
                )
                print(f"| {batch:,} | {micro_batch or 'off'} | {row} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--cell"]:
        places, numbers = [Path(value) for value in sys.argv[2:4]], [*map(int, sys.argv[4:7])]
        print(json.dumps(cell(*places, *numbers, float(sys.argv[7]), int(sys.argv[8]))))
    else:
        main()
