"""Embedding a catalogue beside sentence-transformers, beside the bare forward pass and beside an older build; by hand:

    python tests/benchmarks/embedding_peers.py --output outputs/peers --rows 1 2 3 --catalogue data/fpi \
        --large data/fpi_44k --model outputs/gated --tokenizer weights/clip-bpe-tokenizer --today ../today

1. `mmfusion embed` from the start of Python to the manifest, beside a script that gives the same titles and photos to
   `SentenceTransformer.encode` of the same encoders (a CLIP of the shape `--shape`, random weights) and saves what
   comes out, and beside the forward passes alone over batches that are decoded already. All products are distinct. The
   vectors are compared with those of the build in `--today`.
2. The same job with `--model` on the catalogue `--large`, beside the forward passes alone, and beside the sum of
   decoding, processing, tokenising and forward passes, each by itself.
3. 1,200 distinct products, five rows each, beside the build in `--today`. Then, for the record, 1,200 photos of which
   each is that of five products with different titles, and 1,200 titles of which each is that of five photos.

All sides of a row are run in turns, in processes of their own with OMP_NUM_THREADS=`--threads`. A turn that is done
is not run again: results are in OUTPUT/row<N>.json after each. `--today` is a checkout (git worktree add) of the build
that counts as such.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from row_files import environment, interpreter

CHECKOUT = Path(__file__).resolve().parents[2]
# Width, layers and heads of the vision encoder, then of the text encoder.
SHAPES = {"small": ((384, 12, 6), (384, 12, 6)), "vit_b_32": ((768, 12, 12), (512, 12, 8))}
PACKAGES = ("torch", "transformers", "sentence-transformers", "lightning", "pillow", "numpy")

ENCODE = """
import io, sys, numpy as np, pyarrow.parquet as pq
from PIL import Image
from sentence_transformers import SentenceTransformer
catalogue, encoder, output, batch_size = sys.argv[1:]
model = SentenceTransformer(encoder, device="cpu")
titles, photos = [], []
for batch in pq.ParquetFile(catalogue + "/products.parquet").iter_batches(1024, columns=["title", "image"]):
    titles += batch.column("title").to_pylist()
    # Opened here and decoded by the processor, batch by batch, as otherwise all pixels would be in memory.
    photos += [Image.open(io.BytesIO(photo["bytes"])) for photo in batch.column("image").to_pylist()]
vectors = [model.encode(inputs, batch_size=int(batch_size), normalize_embeddings=True) for inputs in (titles, photos)]
np.save(output, np.stack(vectors))
"""

ASSEMBLE = """
import sys, torch
from mmfusion import MMFusionModel, MMFusionProcessor
encoder, output = sys.argv[1:]
torch.manual_seed(0)
pooling = {"text_pooling": "pooler", "image_pooling": "pooler"}
MMFusionModel.from_backbones(encoder, encoder, fusion="gated", **pooling).save_pretrained(output)
MMFusionProcessor.from_backbones(encoder, encoder).save_pretrained(output)
"""

Cost = dict[str, float]


def run(command: list[str], threads: int, tree: Path = CHECKOUT) -> Cost:
    """CPU seconds (user and system, children included) and seconds by the clock of a process."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(tree)}
    environment["TOKENIZERS_PARALLELISM"] = "false"
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, cwd=tree)
    assert process.stderr is not None
    errors = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{errors[-3000:]}")
    return {"cpu": usage.ru_utime + usage.ru_stime, "clock": time.perf_counter() - start}


def embed(catalogue: Path, model: str, output: Path, options: argparse.Namespace, tree: Path = CHECKOUT) -> Cost:
    """The command `embed` into a folder that is not there yet."""
    command = [interpreter(tree), str(tree / "recipes" / "embed.py"), "--catalogue", str(catalogue), "--base", model]
    command += ["--batch_size", str(options.batch_size), "--hardware.accelerator", "cpu"]
    command += ["--hardware.num_workers", str(options.num_workers), "--output", str(output)]
    shutil.rmtree(output, ignore_errors=True)
    return run(command, options.threads, tree)


def cell(name: str, catalogue: Path, model: str, options: argparse.Namespace) -> Any:
    """What a function of this file gives that runs in a process of its own, by [`CELLS`]."""
    arguments = [str(catalogue), model, str(options.batch_size), str(options.output / "work" / "cache" / "cell")]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "PYTHONPATH": str(CHECKOUT)}
    command = [sys.executable, __file__, "--cell", name, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, env=environment, check=True, text=True, cwd=CHECKOUT)
    return json.loads(done.stdout.splitlines()[-1])


def parts_alone(catalogue: str, model_folder: str, batch_size: str, cache: str) -> dict[str, Cost]:
    """Costs of decoding, processing, tokenising and of the forward passes, each by itself, over the job's batches."""
    import torch

    from mmfusion.allocator import keep_freed_memory
    from mmfusion.data.catalogue import Catalogue
    from mmfusion.data.tables import ProductTable, text_lengths
    from mmfusion.training import load_base

    keep_freed_memory()
    model, processor = load_base(model_folder)
    model.eval()
    products = Catalogue.load_products(catalogue, cache_dir=cache)
    table, lengths = ProductTable(products, processor), text_lengths(products, processor.template_columns)
    parts = list(_by_length(products.product_rows(None), lengths, int(batch_size)))
    costs: dict[str, Cost] = {}

    def timed(name: str, function: Callable[[Any], Any], items: list[Any]) -> list[Any]:
        cpu, clock = time.process_time(), time.perf_counter()
        found = [function(item) for item in items]
        cost = costs.setdefault(name, {"cpu": 0.0, "clock": 0.0})
        cost["cpu"] += time.process_time() - cpu
        cost["clock"] += time.perf_counter() - clock
        return found

    with torch.inference_mode():
        model(**_inputs(table[parts[0]]))
        # A few batches at a time, as the pixels of a whole catalogue fill the memory.
        for start in range(0, len(parts), 16):
            some = parts[start : start + 16]
            texts = timed("tokenising", lambda rows: processor.process_product_texts(table.texts(rows)), some)
            photos = timed("decoding", table.decode, some)
            pixels = timed("processing", processor.process_photos, photos)
            batches = [
                {"product_input_ids": text["input_ids"], "product_attention_mask": text["attention_mask"], **own}
                for text, own in zip(texts, pixels, strict=True)
            ]
            timed("forward", lambda batch: model(**batch), batches)
    return costs


def _by_length(rows: Any, lengths: Any, batch_size: int) -> Iterator[Any]:
    """Batches within shards of 4,096, shortest texts first, as those of the job."""
    for start in range(0, len(rows), 4096):
        shard = rows[start : start + 4096]
        ordered = shard[np.argsort(lengths[shard], kind="stable")]
        yield from (ordered[at : at + batch_size] for at in range(0, len(ordered), batch_size))


def _inputs(batch: Any) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if name != "product_rows"}


CELLS: dict[str, Callable[..., Any]] = {"parts_alone": parts_alone}


def row1(options: argparse.Namespace, results: "Results") -> None:
    work = options.output / "work" / f"row1_{options.shape}"
    catalogue = distinct_products(options.catalogue, options.products, work / "catalogue")
    encoder, model = clip_shaped(options.shape, options.tokenizer, options.today, work)
    encode = [sys.executable, "-c", ENCODE, str(catalogue), str(encoder)]
    results.describe(
        what=f"embed {options.products:,} products, title and photo, CLIP of shape {options.shape}, start to manifest",
        beside="sentence-transformers encode, whole process",
        target=">= 1.5, or >= 0.95 of the bare forward pass",
        encoders=dict(zip(("vision", "text"), SHAPES[options.shape], strict=True)) | {"photo_size": 224, "patch": 32},
    )
    for turn in results.turns():
        ours = embed(catalogue, str(model), work / "embeddings", options)
        theirs = run([*encode, str(work / "st.npy"), str(options.batch_size)], options.threads)
        alone = cell("parts_alone", catalogue, str(model), options)
        results.add(turn, {"mmfusion": ours, "sentence-transformers": theirs, **alone})
    results.ratios("ratios", lambda turn: (turn["sentence-transformers"], turn["mmfusion"]))
    results.ratios("of_the_forward", lambda turn: (turn["forward"], turn["mmfusion"]))
    results.ratios("peer_of_the_forward", lambda turn: (turn["forward"], turn["sentence-transformers"]))
    # 1.5 times a peer that is close to its forward pass would be more than that pass.
    results.set(limits={"ratios": round(min(1.5, 0.95 / results.found["peer_of_the_forward_median"]), 3)})
    if options.today and "least_cosine" not in results.found:
        cost = embed(catalogue, str(model), work / "today", options, options.today)
        results.set(today=cost, **compare(work / "embeddings", work / "today"))


def row2(options: argparse.Namespace, results: "Results") -> None:
    work = options.output / "work" / "row2"
    catalogue = first_products(options.large, options.large_products, work / "catalogue")
    results.describe(
        what="embed a catalogue, MiniLM and MobileNetV2, start to manifest",
        beside="bare forward pass over decoded batches",
        target=">= 0.9 of the bare forward pass; CPU seconds <= 1.08 of the sum of the parts",
        products=len(pq.ParquetFile(catalogue / "products.parquet").read(columns=["product_id"])),
    )
    for turn in results.turns():
        ours = embed(catalogue, options.model, work / "embeddings", options)
        results.add(turn, {"mmfusion": ours, **cell("parts_alone", catalogue, options.model, options)})
    results.ratios("ratios", lambda turn: (turn["forward"], turn["mmfusion"]))
    names = ("decoding", "processing", "tokenising", "forward")
    results.ratios("of_the_parts", lambda turn: (turn["mmfusion"], {"cpu": sum(turn[n]["cpu"] for n in names)}), "cpu")


def row3(options: argparse.Namespace, results: "Results") -> None:
    work = options.output / "work" / "row3"
    kinds = {
        kind: repeated_products(options.catalogue, kind, options.distinct, work / kind)
        for kind in ("products", "photos", "texts")
    }
    results.describe(
        what=f"a catalogue of {options.distinct:,} distinct (text, photo) x 5 rows, start to manifest",
        beside="the same by the build in --today",
        target=">= 4",
    )
    for turn in results.turns():
        costs = {}
        for kind, catalogue in kinds.items():
            costs[kind] = embed(catalogue, options.model, work / f"{kind}_embeddings", options)
            if options.today:
                costs[f"{kind}, today"] = embed(
                    catalogue, options.model, work / f"{kind}_today", options, options.today
                )
        results.add(turn, costs)
    if options.today:
        for kind in kinds:
            name = "ratios" if kind == "products" else f"shared_{kind}"
            results.ratios(name, partial(_sides, f"{kind}, today", kind))
            if f"{kind}_least_cosine" not in results.found:
                found = compare(work / f"{kind}_embeddings", work / f"{kind}_today")
                results.set(**{f"{kind}_{name}": value for name, value in found.items()})


def _sides(one: str, other: str, turn: dict[str, Cost]) -> tuple[Cost, Cost]:
    return turn[one], turn[other]


ROWS = {1: row1, 2: row2, 3: row3}


class Results:
    """A row of the table in its file, which is written after each turn.

    Attributes:
        found: What the file holds.
    """

    def __init__(self, row: int, options: argparse.Namespace) -> None:
        self.path, self.by = options.output / f"row{row}.json", options.by
        settings = {name: str(value) for name, value in vars(options).items() if name != "rows"}
        settings |= environment(options.today, ("torch", "transformers", "lightning", "pillow", "numpy"))
        self.found: dict[str, Any] = {"row": row, "turns": [], "settings": settings}
        if self.path.is_file():
            self.found = json.loads(self.path.read_text()) | {"settings": settings}
        self._wanted = options.turns

    def describe(self, **fields: Any) -> None:
        """What the row is, and what it runs on."""
        versions = {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}
        self.set(**fields, versions=versions, machine={"cores": os.cpu_count(), "processor": _processor()})

    def turns(self) -> Iterator[int]:
        """Numbers of the turns that are still to be run."""
        for turn in range(len(self.found["turns"]), self._wanted):
            print(f"row {self.found['row']}: turn {turn + 1} of {self._wanted}", file=sys.stderr, flush=True)
            yield turn

    def add(self, turn: int, costs: dict[str, Cost]) -> None:
        """Adds a turn: costs by side."""
        assert turn == len(self.found["turns"])
        self.set(turns=[*self.found["turns"], {**costs, "load": os.getloadavg()[0]}])

    def ratios(self, name: str, sides: Callable[[Any], tuple[Cost, Cost]], by: str | None = None) -> None:
        """Sets the ratios of the turns under a name, with their median and spread."""
        by = by or self.by
        pairs = [sides(turn) for turn in self.found["turns"]]
        ratios = [round(one[by] / other[by], 3) for one, other in pairs]
        prefix = "" if name == "ratios" else f"{name}_"
        self.set(**{name: ratios, f"{prefix}median": median(ratios), f"{prefix}spread": [min(ratios), max(ratios)]})

    def set(self, **fields: Any) -> None:
        """Sets fields and writes the file."""
        self.found.update(fields)
        self.path.write_text(json.dumps(self.found, indent=1))


def compare(one: Path, other: Path) -> dict[str, float]:
    """The lowest cosine and the largest difference of vectors of two folders, and how many of the first differ."""
    first, second = (
        np.concatenate([_vectors(file) for file in sorted(folder.glob("shard-*.parquet"), key=_first_id)])
        for folder in (one, other)
    )
    cosines = (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    return {
        "least_cosine": float(cosines.min()),
        "largest_difference": float(np.abs(first - second).max()),
        "distinct_vectors": len(np.unique(first, axis=0)),
    }


def _vectors(file: Path) -> Any:
    return np.stack(pq.read_table(file).column("vector").to_numpy()).astype(np.float64)


def _first_id(file: Path) -> str:
    return str(pq.read_table(file, columns=["product_id"]).column(0)[0])


def first_products(source: Path, count: int, folder: Path) -> Path:
    """A catalogue of the first products of another one."""
    return written(folder, _products(source).slice(0, count).to_pylist())


def distinct_products(source: Path, count: int, folder: Path) -> Path:
    """A catalogue of products that share neither a title nor a photo."""
    found: list[dict[str, Any]] = []
    seen: set[Any] = set()
    for product in _products(source).to_pylist():
        photo = product["image"]["bytes"]
        if len(found) == count or photo in seen:
            continue
        title = product["title"] or "product"
        if title in seen:
            title = f"{title} {len(found)}"
        seen |= {photo, title}
        found.append({**product, "title": title})
    if len(found) < count:
        raise SystemExit(f"{source} has {len(found):,} products with different photos; give --products {len(found)}.")
    return written(folder, found)


def repeated_products(source: Path, kind: str, count: int, folder: Path) -> Path:
    """Five times as many products: distinct ones five times each (`products`), or their `photos` alone, or `texts`."""
    own = distinct_products(source, 5 * count, folder / "distinct")
    products = _products(own).to_pylist()
    found = []
    for row in range(5 * count):
        shown, different = products[row // 5], products[row]
        title = different["title"] if kind == "photos" else shown["title"]
        image = different["image"] if kind == "texts" else shown["image"]
        found.append({"product_id": f"{row:05}", "title": title, "image": image})
    return written(folder, found)


def _products(source: Path) -> Any:
    files = sorted(source.glob("products*.parquet"))
    return pa.concat_tables([pq.read_table(file, columns=["product_id", "title", "image"]) for file in files])


def written(folder: Path, products: list[dict[str, Any]]) -> Path:
    """Writes a catalogue, unless it is there."""
    if not (folder / "products.parquet").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(products), folder / "products.parquet")
    return folder


def clip_shaped(shape: str, tokenizer_folder: str, today: Path | None, folder: Path) -> tuple[Path, Path]:
    """A CLIP of random weights as transformers saves it, and the model of ours that holds the same encoders."""
    import torch
    from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel

    encoder, model_folder = folder / "clip", folder / "model"
    if (model_folder / "processor_config.json").is_file():
        return encoder, model_folder
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.model_max_length = 77
    special = {name: getattr(tokenizer, name) for name in ("eos_token_id", "bos_token_id", "pad_token_id")}
    vision, text = (
        {
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
        }
        for width, layers, heads in SHAPES[shape]
    )
    torch.manual_seed(0)
    clip = CLIPModel(CLIPConfig(text_config={**text, **special}, vision_config={**vision, "patch_size": 32}))
    clip.save_pretrained(encoder)
    tokenizer.save_pretrained(encoder)
    CLIPImageProcessorPil().save_pretrained(encoder)
    # By the older build, where there is one: a newer one reads what it writes.
    tree = today or CHECKOUT
    run([interpreter(tree), "-c", ASSEMBLE, str(encoder), str(model_folder)], 1, tree)
    return encoder, model_folder


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for everything that is written")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 3], choices=[1, 2, 3])
    parser.add_argument("--catalogue", type=Path, help="folder of a catalogue, for rows 1 and 3")
    parser.add_argument("--large", type=Path, help="folder of a catalogue, for row 2")
    parser.add_argument("--model", help="folder of a model, for rows 2 and 3")
    parser.add_argument("--tokenizer", help="folder of a tokenizer of CLIP, for row 1")
    parser.add_argument("--today", type=Path, help="checkout of the build that counts as today's")
    parser.add_argument("--shape", default="small", choices=SHAPES, help="of the encoders of row 1")
    parser.add_argument("--products", type=int, default=6000, help="of row 1")
    parser.add_argument("--distinct", type=int, default=1200, help="products of row 3, each in five rows")
    parser.add_argument("--large_products", type=int, default=1_000_000, help="of row 2, at most")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="OMP_NUM_THREADS of each process")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--num_workers", type=int, default=0, help="processes of ours that decode photos")
    parser.add_argument("--by", default="cpu", choices=["cpu", "clock"], help="seconds that ratios are made of")
    options = parser.parse_args()
    options.output = options.output.resolve()
    options.output.mkdir(parents=True, exist_ok=True)
    for row in options.rows:
        results = Results(row, options)
        ROWS[row](options, results)
        print(json.dumps({name: value for name, value in results.found.items() if name != "turns"}, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--cell"]:
        print(json.dumps(CELLS[sys.argv[2]](*sys.argv[3:])))
    else:
        main()
