"""What a start costs: the first hit of a search, and an embedding job that finds nothing to do; by hand, e.g.

    python tests/benchmarks/start.py --index outputs/index --embeddings outputs/embeddings --work /tmp/start

Each is run in turns with the plain script below that does no more than it has to: the search beside one that loads the
same text encoder with transformers and the same index with FAISS; the job beside bare imports and hashing the photos.
CPU seconds (user and system, of the process and of its children) are what counts, as they hardly depend on what else
the machine does; wall-clock seconds are printed, too. All processes get OMP_NUM_THREADS=1.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median

from row_files import machine, write_row

PLAIN_SEARCH = """
import sys, faiss, pyarrow as pa, torch
from transformers import AutoModel, AutoTokenizer
from safetensors.torch import load_file
tower, index, query = sys.argv[1:]
tokenizer, encoder = AutoTokenizer.from_pretrained(tower), AutoModel.from_pretrained(tower).eval()
weight = load_file(tower + "/projection.safetensors")["weight"]
found = faiss.read_index(index + "/index.faiss", faiss.IO_FLAG_MMAP_IFC)
products = pa.ipc.open_file(pa.memory_map(index + "/products.arrow")).read_all()
with torch.inference_mode():
    states = encoder(**tokenizer([query], return_tensors="pt")).last_hidden_state.mean(1) @ weight.T
scores, rows = found.search(torch.nn.functional.normalize(states).numpy(), 10)
print([products.column("product_id")[int(row)].as_py() for row in rows[0]], scores)
"""

PLAIN_EMBED = """
import sys, hashlib, datasets, numpy, torch, transformers
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer
import pyarrow.parquet as pq
for batch in pq.ParquetFile(sys.argv[1]).iter_batches(1024, columns=["title", "image"]):
    for row in batch.to_pylist():
        photos = row["image"] if isinstance(row["image"], list) else [row["image"]]
        for photo in photos:
            digest = hashlib.blake2b(str(row["title"]).encode(), digest_size=16)
            digest.update((photo or {}).get("bytes") or b"")
            digest.digest()
"""


def write_plain_tower(base: str, folder: Path) -> None:
    """The text encoder of a model as transformers saves it, with the projection of queries beside it."""
    from safetensors.torch import save_file

    from mmfusion.retrieval.query_tower import load_query_tower

    model, processor = load_query_tower(base)
    model.text_model.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    save_file({"weight": model.query_projection.weight.detach().contiguous()}, folder / "projection.safetensors")


def run(command: list[str]) -> tuple[float, float]:
    """CPU and wall-clock seconds of a process."""
    start = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return usage.ru_utime + usage.ru_stime, time.perf_counter() - start


def show(name: str, ours: list[tuple[float, float]], plain: list[tuple[float, float]]) -> list[float]:
    """Prints medians, ratios of turns and all repetitions; returns the ratios of CPU seconds."""
    for column, what in enumerate(("CPU", "wall-clock")):
        one, other = ([row[column] for row in rows] for rows in (ours, plain))
        ratios = sorted(a / b for a, b in zip(one, other, strict=True))
        repetitions = [[round(value, 2) for value in values] for values in (one, other)]
        print(
            f"{name}, {what} seconds: {median(one):.2f} beside {median(other):.2f}; ratio of a turn "
            f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}); all {repetitions}"
        )
    return [a[0] / b[0] for a, b in zip(ours, plain, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--index", required=True, help="folder that mmfusion index wrote, of a model with a BERT")
    parser.add_argument("--embeddings", required=True, help="folder that mmfusion embed wrote, of products.parquet")
    parser.add_argument("--work", type=Path, required=True, help="folder for the plain text encoder")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--output", type=Path, help="folder of row8.json; default: none is written")
    parser.add_argument("--parts", nargs="+", default=["search", "embed"], choices=["search", "embed"])
    options = parser.parse_args()
    measured_on = machine()
    record = json.loads((Path(options.embeddings) / "run.json").read_text())
    if not (options.work / "config.json").is_file():
        write_plain_tower(record["base"], options.work)
    ours, python = [sys.executable, "-m", "mmfusion"], sys.executable
    embed = ["embed", "--catalogue", record["catalogue"], "--base", record["base"], "--output", options.embeddings]
    pairs = {
        "search": (
            [*ours, "search", "red dress", "--index", options.index],
            [python, "-c", PLAIN_SEARCH, str(options.work), f"{options.index}/index", "red dress"],
        ),
        "embed": (
            [*ours, *embed, "--hardware.accelerator", "cpu"],
            [python, "-c", PLAIN_EMBED, f"{record['catalogue']}/products.parquet"],
        ),
    }
    packages = ("torch", "transformers", "faiss-cpu", "lightning", "datasets")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}, ", end="")
    print(", ".join(f"{name} {version(name)}" for name in packages))
    ratios = {}
    for name in options.parts:
        turns = [[run(command) for command in pairs[name]] for _ in range(options.turns + 1)]
        # The first turn fills the cache of the disk.
        ratios[name] = show(name, *([turn[side] for turn in turns[1:]] for side in (0, 1)))
    if options.output:
        write_row(
            options.output,
            8,
            what="`mmfusion search` to the first hit, and `mmfusion embed` with nothing to do",
            beside="a script with the same text encoder and index by transformers and FAISS; imports and hashing",
            target=1.15,
            ratios=ratios,
            packages=packages,
            measured_on=measured_on,
            settings={"turns": options.turns, "threads": 1},
        )


if __name__ == "__main__":
    main()
