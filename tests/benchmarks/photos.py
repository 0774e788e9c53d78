"""Time of decoding and digesting photos beside another checkout: python tests/benchmarks/photos.py --today PATH

Each checkout has a process of its own; both go over the same photos in turn, and what counts is the processor time of a
pass. Without --photos, a few hundred drawn photos in JPEG, PNG and WebP, of which none has a profile, are read.
"""

import argparse
import hashlib
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CHECKOUT = Path(__file__).resolve().parents[2]


def drawn(path: Path, count: int = 200) -> None:
    """Writes photos of 168 x 224 as a table like that of a catalogue."""
    rng, photos = np.random.default_rng(0), []
    for kind in ("JPEG", "JPEG", "PNG", "WEBP"):
        for _ in range(count // 4):
            coarse = Image.fromarray(rng.integers(0, 256, (28, 21, 3), dtype=np.uint8))
            file = io.BytesIO()
            coarse.resize((168, 224), Image.Resampling.BICUBIC).save(file, kind, quality=90)
            photos.append({"bytes": file.getvalue(), "path": None})
    pq.write_table(pa.table({"image": photos}), path)


def work(photos: Path, limit: int) -> None:
    """Answers each line on the standard input, the name of a pass, with the seconds that it took the processor."""
    from mmfusion.data.photos import decode_photo
    from mmfusion.embedding import content

    rows = pq.read_table(photos, columns=["image"]).column("image").slice(0, limit).to_pylist()
    images = [photo for row in rows for photo in (row if isinstance(row, list) else [row]) if photo is not None]
    files = [photo["bytes"] for photo in images]
    passes: dict[str, Callable[[], Any]] = {
        "decode": lambda: [decode_photo(data) for data in files],
        "digest": lambda: [content._digest("", image, None) for image in images],
    }
    pixels = hashlib.sha256(b"".join(decode_photo(data).tobytes() for data in files)).hexdigest()
    print(json.dumps([len(files), pixels]), flush=True)
    for line in sys.stdin:
        start = time.process_time()
        passes[line.strip()]()
        print(time.process_time() - start, flush=True)


class Worker:
    """A checkout at work."""

    def __init__(self, checkout: Path, photos: Path, limit: int) -> None:
        command = [sys.executable, str(Path(__file__).resolve()), "--work", str(photos), "--limit", str(limit)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env={"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}, **pipes)
        self.photos, self.pixels = self._answer()

    def seconds(self, name: str) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{name}\n")
        self.process.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        self.process.communicate()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())


def main() -> None:
    """Prints, for each pass, the time of a photo and the ratio of the two checkouts, pair by pair."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--today", type=Path, help="another checkout to compare with")
    parser.add_argument("--photos", type=Path, help="Parquet file with a column image")
    parser.add_argument("--limit", type=int, default=400, help="photos of it to read")
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work is not None:
        work(options.work, options.limit)
        return
    with tempfile.TemporaryDirectory() as folder:
        photos = options.photos or Path(folder) / "photos.parquet"
        if options.photos is None:
            drawn(photos)
        workers = [Worker(checkout, photos, options.limit) for checkout in (CHECKOUT, options.today or CHECKOUT)]
        print(
            f"{workers[0].photos} photos; pixels are {'equal' if len({w.pixels for w in workers}) == 1 else 'OTHERS'}"
        )
        for name in ("decode", "digest"):
            report(name, workers, options.pairs)
        for worker in workers:
            worker.close()


def report(name: str, workers: list[Worker], pairs: int) -> None:
    """Takes turns, the first of a pair being now this one and now the other."""
    times: list[list[float]] = [[], []]
    for turn in range(pairs):
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            times[which].append(workers[which].seconds(name))
    ratios = [here / there for here, there in zip(*times, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    each = [statistics.median(own) / workers[0].photos * 1e6 for own in times]
    print(
        f"{name}: {each[0]:.1f} us a photo here, {each[1]:.1f} there; ratio of {pairs} pairs: median {middle:.3f}, "
        f"middle half {low:.3f} to {high:.3f}, of the least times {min(times[0]) / min(times[1]):.3f}"
    )


if __name__ == "__main__":
    main()
