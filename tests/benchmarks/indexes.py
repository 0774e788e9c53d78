"""Kinds of index beside exact search: bytes, recall and speed; by hand: python tests/benchmarks/indexes.py --help

Real vectors are perturbed to as many as wanted: row i is real vector i modulo their number, plus noise, at unit length.
Queries are those of a catalogue, embedded by a model, or real vectors that are held out and perturbed as well. Each
kind is built in one process and searched in another, so that what each holds in memory is its own. Kinds that are done
are not measured again: a run that was stopped goes on.
"""

import argparse
import dataclasses
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import faiss
import numpy as np
from indexes_page import Kind, write_page
from tqdm.auto import tqdm

from mmfusion.embedding import EmbeddedCatalogue
from mmfusion.embedding.shards import pack, unpack
from mmfusion.files import replace_text
from mmfusion.retrieval import ProductIndex
from mmfusion.retrieval.choose import number_of_clusters

PLACES, BLOCK = 100, 65_536


def kinds_for(count: int, dimension: int) -> list[Kind]:
    """What is compared: exact search first, which the others are measured by."""
    clusters = number_of_clusters(count)
    probes, size = f"nprobe={max(8, clusters // 16)}", next(n for n in (48, 32, 16, 8, 4) if dimension % n == 0)
    lists, rescored = f"IVF{clusters}", f"{probes},k_factor_rf=8"
    return [
        Kind("exact", "Flat", ""),
        Kind("graph", "HNSW32", "efSearch=256"),
        Kind("graph, looked at more widely", "HNSW32", "efSearch=1024"),
        Kind("int8", "SQ8", ""),
        Kind("binary", "RaBitQ", ""),
        Kind("binary, rescored by int8", "RaBitQ,Refine(SQ8)", "k_factor_rf=8"),
        Kind("binary, rescored by float32", "RaBitQ,RFlat", "k_factor_rf=8"),
        Kind("embedded as int8: int8", "SQ8", "", "int8"),
        Kind("embedded as int8: binary, rescored by int8", "RaBitQ,Refine(SQ8)", "k_factor_rf=8", "int8"),
        Kind("embedded as binary: exact", "Flat", "", "binary"),
        Kind("embedded as binary: binary", "RaBitQ", "", "binary"),
        Kind("clusters, int8", f"{lists},SQ8", probes),
        Kind("clusters, binary", f"{lists},RaBitQ", probes),
        Kind("clusters, binary, rescored by int8", f"{lists},RaBitQ,Refine(SQ8)", rescored),
        Kind("clusters, binary, rescored by float32", f"{lists},RaBitQ,RFlat", rescored),
        Kind(f"clusters, {size} bytes", f"{lists},PQ{size}", probes),
        Kind(f"clusters, {size} bytes, rescored by int8", f"{lists},PQ{size},Refine(SQ8)", rescored),
        Kind("clusters, 16 bytes, rescored by int8", f"{lists},PQ16,Refine(SQ8)", f"{probes},k_factor_rf=16"),
    ]


def perturbed(vectors: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    """Vectors (n, D) plus noise whose length is about `noise`, at unit length."""
    drawn = rng.standard_normal(vectors.shape, dtype=np.float32)
    return unit(vectors + drawn * np.float32(noise / vectors.shape[1] ** 0.5))


def unit(vectors: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


def prepare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Writes vectors.npy and queries.npy; returns what they were made with."""
    embedded = EmbeddedCatalogue.open(arguments.embeddings)
    settings = {
        "vectors": arguments.vectors,
        "real": len(embedded),
        "noise": arguments.noise,
        "seed": arguments.seed,
        "queries": arguments.queries,
        "dimension": arguments.dimension or embedded.manifest.provenance.dimension,
        "asked": "queries of the catalogue" if arguments.catalogue else "products that were held out and perturbed",
        "model_fingerprint": embedded.manifest.provenance.model_fingerprint,
    }
    noted = arguments.output / "settings.json"
    if noted.exists():
        if json.loads(noted.read_text("utf-8")) != settings:
            raise SystemExit(f"{noted} says other settings than {settings}; give another --output, or remove this one")
        return settings
    real = unit(np.concatenate(list(embedded.vectors()))[:, : settings["dimension"]])
    rng = np.random.default_rng(arguments.seed)
    if arguments.catalogue:
        queries = embedded_queries(arguments)[:, : settings["dimension"]]
        queries = unit(queries[rng.permutation(len(queries))[: arguments.queries]])
    else:
        order = rng.permutation(len(real))
        queries, real = (
            perturbed(real[order[: arguments.queries]], arguments.noise, rng),
            real[order[arguments.queries :]],
        )
    np.save(arguments.output / "queries.npy", queries)
    shape = (arguments.vectors, real.shape[1])
    written = np.lib.format.open_memmap(arguments.output / "vectors.npy", "w+", np.float32, shape)
    for start in tqdm(range(0, arguments.vectors, BLOCK), desc="perturbing", unit="block"):
        rows = np.arange(start, min(start + BLOCK, arguments.vectors)) % len(real)
        written[start : start + BLOCK] = perturbed(real[rows], arguments.noise, rng)
    written.flush()
    replace_text(noted, json.dumps(settings))
    return settings


def embedded_queries(arguments: argparse.Namespace) -> np.ndarray:
    """Vectors of the val and test queries of the catalogue."""
    from mmfusion.retrieval.embedding import embed_queries
    from mmfusion.training import load_base, load_catalogue

    model, processor = load_base(arguments.model)
    catalogue = load_catalogue(arguments.catalogue, arguments.model, arguments.output)
    rows = np.concatenate([catalogue.query_rows("val"), catalogue.query_rows("test")])
    return embed_queries(model.eval(), processor, catalogue, rows)


def build(kind: Kind, output: Path, _: float) -> dict[str, float]:
    """Builds and saves an index; in a process of its own."""
    vectors = np.load(output / "vectors.npy", mmap_mode="r")
    blocks: Any = vectors
    if kind.stored != "float32":
        blocks = np.concatenate(
            [unpack(pack(vectors[at : at + BLOCK], kind.stored), kind.stored) for at in range(0, len(vectors), BLOCK)]
        )
    start = perf_counter()
    index = ProductIndex.build(
        blocks,
        [f"p{row}" for row in range(len(vectors))],
        model_fingerprint="benchmark",
        factory=kind.factory,
        search_parameters=kind.parameters,
    )
    seconds = perf_counter() - start
    index.save(output / "index", overwrite=True)
    return {"build_seconds": seconds, "build_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def search(kind: Kind, output: Path, seconds: float) -> dict[str, float]:
    """Loads the index memory-mapped and searches it; in a process of its own."""
    queries, path = np.load(output / "queries.npy"), output / "index" / "index.faiss"
    # What FAISS sets up at its first search is none of the index's.
    faiss.knn(queries, queries, 1)
    forget(path)
    before, _ = memory(path)
    index = ProductIndex.load(output / "index")
    loaded, _ = memory(path)
    # What is scored again is left out first, to see what the first stage alone takes.
    first_stage = faiss.downcast_index(index._segments[0].index)
    if hasattr(first_stage, "base_index"):
        first_stage.base_index.search(queries, PLACES * 8)
    else:
        index.search_rows(queries, PLACES)
    first = memory(path)
    faiss.omp_set_num_threads(1)
    new = iter(queries)
    cold = rate(lambda: index.search_rows(next(new)[None], PLACES), 0, most=min(100, len(queries)))
    turn = iter(int(row) for row in np.resize(np.arange(len(queries)), 10**6))
    single = rate(lambda: index.search_rows(queries[[next(turn)]], PLACES), seconds)
    threads = os.cpu_count() or 1
    faiss.omp_set_num_threads(threads)
    _, rows = index.search_rows(queries, PLACES)
    batched = rate(lambda: index.search_rows(queries, PLACES), seconds) * len(queries)
    everything = memory(path)
    if kind.name == "exact":
        np.save(output / "exact.npy", rows)
    exact = np.load(output / "exact.npy")
    hits = sum(len(np.intersect1d(*pair)) for pair in zip(rows, exact, strict=True))
    return {
        "disk_bytes": path.stat().st_size,
        "loaded_anonymous_bytes": loaded - before,
        "first_stage_anonymous_bytes": first[0] - before,
        "first_stage_mapped_bytes": first[1],
        "searched_anonymous_bytes": everything[0] - before,
        "searched_mapped_bytes": everything[1],
        "recall_at_100": hits / exact.size,
        "cold_qps": cold,
        "single_qps": single,
        "batch_qps": batched,
        "load_average": os.getloadavg()[0],
    }


def forget(path: Path) -> None:
    """Takes a file out of the page cache, so that what is mapped is what was asked for."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def memory(path: Path) -> tuple[int, int]:
    """Resident bytes of this process: anonymous ones, and those of a file that is mapped."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    mapped, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, value = line.partition(":")
        if "-" in name.split(" ")[0]:
            # The kernel names the file itself, whatever links led to it.
            ours = line.endswith(str(path.resolve()))
        elif ours and name == "Rss":
            mapped += int(value.split()[0]) * 1024
    return int(status["RssAnon"].split()[0]) * 1024, mapped


def rate(act: Callable[[], Any], seconds: float, most: int = 10**6) -> float:
    """Calls per second, over some seconds, or over `most` calls where those are 0."""
    start, calls = perf_counter(), 0
    while calls < most and (not seconds or not calls or perf_counter() - start < seconds):
        act()
        calls += 1
    return calls / (perf_counter() - start)


def apart(step: str, kind: Kind, output: Path, seconds: float) -> Any:
    """A step in a process of its own."""
    described = json.dumps(dataclasses.asdict(kind))
    command = [sys.executable, __file__, "--step", step, described, str(output), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{step} of {kind.name} ({kind.factory}) ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(kind: Kind, output: Path, seconds: float) -> dict[str, Any]:
    """Figures of a kind, from an earlier run where it had got so far."""
    place = output / "results" / f"{kind.factory} {kind.parameters} {kind.stored}.json"
    if not place.exists():
        found = {**apart("build", kind, output, seconds), **apart("search", kind, output, seconds)}
        place.parent.mkdir(exist_ok=True)
        replace_text(place, json.dumps(found))
    return json.loads(place.read_text("utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--embeddings", required=True, type=Path, help="folder that embed.py wrote: the real vectors")
    parser.add_argument("--output", required=True, type=Path, help="folder of vectors, results and index-benchmark.*")
    parser.add_argument("--vectors", type=int, default=1_000_000, help="vectors to index")
    parser.add_argument("--queries", type=int, default=1_000, help="queries at most")
    parser.add_argument("--dimension", type=int, help="components to keep (Matryoshka); default: all")
    parser.add_argument("--noise", type=float, default=0.3, help="length of what is added to a vector of length 1")
    parser.add_argument("--catalogue", help="whose val and test queries are asked; needs --model")
    parser.add_argument("--model", help="folder or Hub id of the model that made the embeddings")
    parser.add_argument("--kinds", nargs="+", help="factory strings to measure beside Flat; default: all")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each speed is measured")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if bool(arguments.catalogue) != bool(arguments.model):
        parser.error("--catalogue and --model belong together")
    arguments.output.mkdir(parents=True, exist_ok=True)
    settings = prepare(arguments)
    kinds = kinds_for(settings["vectors"], settings["dimension"])
    known = {kind.factory for kind in kinds}
    if unknown := sorted(set(arguments.kinds or ()) - known):
        parser.error(f"--kinds {unknown[0]}: give some of {', '.join(sorted(known))}")
    if arguments.kinds:
        kinds = [kind for kind in kinds if kind.name == "exact" or kind.factory in arguments.kinds]
    results = []
    with tqdm(kinds, unit="kind") as bar:
        for kind in bar:
            bar.set_description(kind.factory)
            results.append((kind, measure(kind, arguments.output, arguments.seconds)))
            write_page(arguments.output, settings, results, sys.argv[1:])
    print((arguments.output / "index-benchmark.md").read_text("utf-8"))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--step"]:
        what, described, folder, seconds = sys.argv[2:6]
        step = {"build": build, "search": search}[what]
        print(json.dumps(step(Kind(**json.loads(described)), Path(folder), float(seconds))))
    else:
        main()
