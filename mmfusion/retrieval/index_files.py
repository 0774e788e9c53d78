"""The files of an index: what is written and read back, with checksums that make a damaged byte an error."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tokenize import TokenError
from typing import Any

import faiss
import numpy as np
import pyarrow as pa

from mmfusion.files import link_or_copy, sha256_of
from mmfusion.lexical import WordCounts
from mmfusion.retrieval.calibration import Calibration
from mmfusion.retrieval.products import BLOCK
from mmfusion.retrieval.segment import Segment

# Since 2 there are checksums, since 3 words.
SCHEMA_VERSION = 3
DESCRIPTION, DELETED = "index.json", "deleted.npy"
# FAISS index and products of each segment: the base, which never changes, and what was added since.
SEGMENTS = (("index.faiss", "products.arrow"), ("delta.faiss", "delta.arrow"))
# Words of the products of each segment, where they are searched.
WORDS = ("words.arrow", "delta_words.arrow")
FILES = frozenset({DESCRIPTION, DELETED, *WORDS, *(name for names in SEGMENTS for name in names)})
_BASE = (*SEGMENTS[0], WORDS[0])
# Files up to this size are read whole when an index is opened: that takes about 0.1 s.
WHOLE_BELOW = 64 * 2**20
# Both ends of a longer file are read: FAISS describes an index at the beginning, Arrow a table at the end.
_END = 64 * 2**10
_SEAL, _CLOSE = b',\n  "sha256": "', b'"\n}\n'


@dataclass(frozen=True)
class IndexDescription:
    """What `index.json` says.

    Attributes:
        schema_version: version of the folder's layout.
        dimension: of the embeddings.
        count: number of products that can be found.
        factory: FAISS factory string.
        metric: always "inner_product".
        model_fingerprint: identifies the model that made the embeddings; queries must come from the same one.
        search_parameters: FAISS run-time parameters, for example "nprobe=16"; empty for FAISS's own.
        recall_at_100: share of the 100 exact neighbours of sampled products that the index finds among its first 100,
            measured when it was built; 1 for an exact index.
        rows: rows of each segment, deleted ones too.
        created_by: software that built the index.
        lexical: columns whose words are searched; empty if none are.
        calibration: the lowest score that was measured on judged queries; None if none was.
    """

    schema_version: int
    dimension: int
    count: int
    factory: str
    metric: str
    model_fingerprint: str
    search_parameters: str
    recall_at_100: float
    rows: tuple[int, ...]
    created_by: str
    lexical: tuple[str, ...] = ()
    calibration: Calibration | None = None


# Device, inode, time and size.
Stamp = tuple[int, int, int, int]
# Of each file: its size ("bytes") and the SHA-256 (hex) of all of it ("sha256") and of both of its ends ("ends").
Sums = Mapping[str, Mapping[str, Any]]


def stamp_of(path: Path) -> Stamp | None:
    """Tells a file or folder from another one that replaces it; None if there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


@dataclass(frozen=True)
class Origin:
    """Where the base of a loaded index is, as long as nothing else has taken its place.

    Attributes:
        folder: the folder.
        stamps: of the files of the base, by name.
        sums: checksums of the files of the index, by name; none of an index that was saved before there were any.
    """

    folder: Path
    stamps: Mapping[str, Stamp | None]
    sums: Sums

    def is_there(self) -> bool:
        """Whether the files are those that were read."""
        return all(stamp is not None and stamp_of(self.folder / name) == stamp for name, stamp in self.stamps.items())

    def verify(self) -> None:
        """Compares all bytes of the base with its checksums, as far as its files are still there and have any.

        Raises:
            ValueError: a file is damaged.
        """
        for name, stamp in self.stamps.items():
            # The same file, even if it has been written to.
            now = stamp_of(self.folder / name)
            if name in self.sums and stamp is not None and now is not None and now[:2] == stamp[:2]:
                _check_sums(self.folder / name, self.sums[name], whole=True)


def write_files(
    folder: Path, segments: tuple[Segment, ...], description: IndexDescription, origin: Origin | None
) -> None:
    """Writes an index into an empty folder.

    Args:
        folder: the folder.
        segments: base and, if there is one, delta.
        description: what `index.json` will say.
        origin: where the base was loaded from. If its files are still there, they get a second name instead of being
            written again, and keep their checksums.
    """
    sums: dict[str, Mapping[str, Any]] = {}
    if origin is not None and origin.is_there():
        for name in origin.stamps:
            link_or_copy(origin.folder / name, folder / name)
        sums.update((name, one) for name, one in origin.sums.items() if name in _BASE)
    for segment, (vectors, products), words in zip(segments, SEGMENTS, WORDS, strict=False):
        if not (folder / vectors).exists():
            segment.write_vectors(folder / vectors)
            _write_table(segment.products, folder / products)
            if segment.words is not None:
                _write_table(segment.words.table, folder / words)
    if not all(segment.live.all() for segment in segments):
        np.save(folder / DELETED, np.flatnonzero(~np.concatenate([segment.live for segment in segments])))
    sums = {path.name: sums.get(path.name) or _sums_of(path) for path in sorted(folder.iterdir())}
    fields = {**asdict(replace(description, schema_version=SCHEMA_VERSION)), "files": sums}
    body = json.dumps(fields, indent=2, ensure_ascii=False).encode().removesuffix(b"\n}")
    # The last field is the checksum of the text before it.
    (folder / DESCRIPTION).write_bytes(body + _SEAL + hashlib.sha256(body).hexdigest().encode() + _CLOSE)


def read_files(folder: Path, memory_map: bool, verify: bool) -> tuple[tuple[Segment, ...], IndexDescription, Origin]:
    """Reads an index; if another one replaces it meanwhile, reads that one.

    Args:
        folder: the folder.
        memory_map: leaves vectors and products on disk until they are needed, where FAISS can.
        verify: compares all bytes with the checksums; otherwise, of base files above `WHOLE_BELOW` that are
            memory-mapped, only the size and both ends.

    Raises:
        FileNotFoundError: a file of the index is missing.
        ValueError: a file is damaged, of a later layout or of another index.
    """
    while True:
        # Saving replaces the whole folder, so that the time of a folder never changes once it is there.
        before = stamp_of(folder)
        try:
            segments, description, sums = _read_files(folder, memory_map, verify)
            names = _BASE if description.lexical else SEGMENTS[0]
            stamps = {name: stamp_of(folder / name) for name in names}
            found = segments, description, Origin(folder, stamps, sums)
        except (OSError, ValueError):
            if stamp_of(folder) == before:
                raise
        else:
            if stamp_of(folder) == before:
                return found


def _read_files(folder: Path, memory_map: bool, verify: bool) -> tuple[tuple[Segment, ...], IndexDescription, Sums]:
    _check_there(folder, DESCRIPTION)
    description, sums = _read_description(folder / DESCRIPTION)
    files = SEGMENTS[: len(description.rows)]
    worded = WORDS[: len(files)] if description.lexical else ()
    for name in [*(name for names in files for name in names), *worded, *sums]:
        _check_there(folder, name)
    for name, expected in sums.items():
        mapped = memory_map and name in _BASE and expected["bytes"] > WHOLE_BELOW
        _check_sums(folder / name, expected, whole=verify or not mapped)
    parts = [(_read_faiss(folder / one, memory_map), _read_table(folder / two, memory_map)) for one, two in files]
    words: list[WordCounts | None] = [_read_words(folder / name, memory_map) for name in worded]
    words = words or [None] * len(parts)
    live = np.ones(sum(description.rows), dtype=bool)
    if (folder / DELETED).is_file():
        with _reading(folder / DELETED):
            live[np.load(folder / DELETED)] = False
    found = tuple(
        (index.d, index.ntotal, len(products), len(products) if counts is None else len(counts))
        for (index, products), counts in zip(parts, words, strict=True)
    )
    stated = tuple((description.dimension, rows, rows, rows) for rows in description.rows)
    if found != stated or live.sum() != description.count:
        raise _damaged(
            folder / DESCRIPTION,
            f"it says (dimension, vectors, products, texts) {stated} and {description.count} to be found, the files "
            f"hold {found} and {live.sum()}",
        )
    cuts = np.split(live, np.cumsum(description.rows)[:-1])
    segments = tuple(Segment(*part, cut, counts) for part, cut, counts in zip(parts, cuts, words, strict=True))
    return segments, description, sums


def _read_description(path: Path) -> tuple[IndexDescription, Sums]:
    text = path.read_bytes()
    with _reading(path):
        fields = json.loads(text)
        schema_version = int(fields["schema_version"])
    if not 1 <= schema_version <= SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema version {schema_version}, this mmfusion reads up to {SCHEMA_VERSION}; update mmfusion "
            "or build the index again"
        )
    body, seal, rest = text.rpartition(_SEAL)
    if schema_version > 1 and (not seal or rest != hashlib.sha256(body).hexdigest().encode() + _CLOSE):
        raise _damaged(path, "its text does not have the checksum at its end")
    with _reading(path):
        sums = fields.pop("files", {})
        fields.pop("sha256", None)
        lists = {name: tuple(fields.get(name, ())) for name in ("rows", "lexical")}
        measured = fields.get("calibration")
        calibration = None if measured is None else Calibration(**measured)
        return IndexDescription(**{**fields, **lists, "calibration": calibration}), sums


def _read_faiss(path: Path, memory_map: bool) -> Any:
    with _reading(path):
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if memory_map else 0)


def _read_table(path: Path, memory_map: bool) -> pa.Table:
    with _reading(path), pa.memory_map(str(path)) if memory_map else pa.OSFile(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def _read_words(path: Path, memory_map: bool) -> WordCounts:
    with _reading(path):
        return WordCounts(_read_table(path, memory_map))


def _write_table(table: pa.Table, path: Path) -> None:
    # Not Parquet: what is mapped needs no memory of the process, of which text takes more than vectors do.
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=BLOCK)


def _check_there(folder: Path, name: str) -> None:
    if not (folder / name).is_file():
        raise FileNotFoundError(f"{folder} is not a product index: {name} is missing; build one with mmfusion index")


def _sums_of(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path), "ends": _ends_of(path)}


def _check_sums(path: Path, expected: Mapping[str, Any], *, whole: bool) -> None:
    """Compares a file with its size and the checksum of all of it, or only that of its ends."""
    size = path.stat().st_size
    if size != expected["bytes"]:
        raise _damaged(path, f"it has {size:,} bytes, and {expected['bytes']:,} were written")
    found, written = (sha256_of(path), expected["sha256"]) if whole else (_ends_of(path), expected["ends"])
    if found != written:
        part = "it" if whole else "its beginning or end"
        raise _damaged(path, f"{part} has the checksum {found[:12]}…, and {written[:12]}… was written")


def _ends_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        digest.update(file.read(_END))
        file.seek(max(_END, path.stat().st_size - _END))
        digest.update(file.read(_END))
    return digest.hexdigest()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns any error that a damaged file causes into one."""
    try:
        yield
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError, EOFError, OSError, TokenError) as error:
        raise _damaged(path, repr(error)) from error


def _damaged(path: Path, reason: str) -> ValueError:
    return ValueError(
        f"{path} is damaged or of another index: {reason}; build the index again, or copy it again from where it is "
        "whole"
    )
