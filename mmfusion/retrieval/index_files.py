"""The files of an index: what is written, read back, and found to be damaged."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tokenize import TokenError

import faiss
import numpy as np
import pyarrow as pa

from mmfusion.files import link_or_copy
from mmfusion.retrieval.checksums import REMEDY, WHOLE_BELOW, FileSum, check_seal, sealed_json
from mmfusion.retrieval.segment import BoolArray, Segment
from mmfusion.retrieval.table_rows import BLOCK

# Since 2 there are checksums.
SCHEMA_VERSION = 2
DESCRIPTION, DELETED = "index.json", "deleted.npy"
# FAISS index and products of each segment: the base, which never changes, and what was added since.
SEGMENTS = (("index.faiss", "products.arrow"), ("delta.faiss", "delta.arrow"))
FILES = frozenset({DESCRIPTION, DELETED, *(name for names in SEGMENTS for name in names)})


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


# Device, inode, time and size.
Stamp = tuple[int, int, int, int]


def stamp_of(path: Path) -> Stamp | None:
    """What tells a file from another one that takes its place; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


@dataclass(frozen=True)
class Origin:
    """Where the base of a loaded index lies, as long as nothing else has taken its place.

    Attributes:
        folder: the folder.
        stamps: of its files.
        sums: checksums of the files of the index, by name; none of an index that was saved before there were any.
    """

    folder: Path
    stamps: tuple[Stamp | None, ...]
    sums: Mapping[str, FileSum] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, folder: Path, sums: Mapping[str, FileSum]) -> "Origin":
        """The folder as it is."""
        return cls(folder, tuple(stamp_of(folder / name) for name in SEGMENTS[0]), sums)

    def is_there(self) -> bool:
        """Whether the files are those that were read."""
        return None not in self.stamps and self == Origin.of(self.folder, self.sums)

    def verify(self) -> None:
        """Compares all bytes of the base with its checksums, as far as its files are still there and have any.

        Raises:
            ValueError: a file is damaged.
        """
        for name, stamp in zip(SEGMENTS[0], self.stamps, strict=True):
            now = stamp_of(self.folder / name)
            # The same file, even if it has been written to.
            if name in self.sums and stamp is not None and now is not None and now[:2] == stamp[:2]:
                self.sums[name].check(self.folder / name, whole=True)


def created_by() -> str:
    """Names and versions of the software that makes vectors and indexes."""
    try:
        ours = version("mmfusion")
    except PackageNotFoundError:
        ours = "(not installed)"
    return f"mmfusion {ours}, faiss {faiss.__version__}"


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
    linked = origin is not None and origin.is_there()
    sums: dict[str, FileSum] = {}
    for place, (segment, names) in enumerate(zip(segments, SEGMENTS, strict=False)):
        if place == 0 and origin is not None and linked:
            for name in names:
                link_or_copy(origin.folder / name, folder / name)
                if name in origin.sums:
                    sums[name] = origin.sums[name]
        else:
            segment.write_vectors(folder / names[0])
            _write_products(segment.products, folder / names[1])
    if not all(segment.live.all() for segment in segments):
        np.save(folder / DELETED, np.flatnonzero(~np.concatenate([segment.live for segment in segments])))
    sums = {path.name: sums.get(path.name) or FileSum.of(path) for path in sorted(folder.iterdir())}
    fields = asdict(replace(description, schema_version=SCHEMA_VERSION))
    (folder / DESCRIPTION).write_bytes(sealed_json(fields, sums))


def read_files(
    folder: Path, memory_map: bool, verify: bool = False
) -> tuple[tuple[Segment, ...], IndexDescription, Origin]:
    """Reads an index; if another one takes its place meanwhile, that one.

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
        with _held(folder) as before:
            try:
                segments, description, sums = _read_files(folder, memory_map, verify)
                found = segments, description, Origin.of(folder, sums)
            except (OSError, ValueError):
                if _place(folder) == before:
                    raise
            else:
                if _place(folder) == before:
                    return found


@contextmanager
def _held(folder: Path) -> Iterator[tuple[int, int] | None]:
    """The place of a folder, which none that comes after it is given before the end of the block; None: no folder."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # On Windows, of every folder.
        yield _place(folder)
        return
    try:
        yield _place(descriptor)
    finally:
        os.close(descriptor)


def _place(folder: Path | int) -> tuple[int, int] | None:
    try:
        found = os.stat(folder)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _read_files(
    folder: Path, memory_map: bool, verify: bool
) -> tuple[tuple[Segment, ...], IndexDescription, dict[str, FileSum]]:
    _check_there(folder, DESCRIPTION)
    description, sums = _read_description(folder / DESCRIPTION)
    files = SEGMENTS[: len(description.rows)]
    for name in dict.fromkeys([*(name for names in files for name in names), *sums]):
        _check_there(folder, name)
        if description.schema_version > 1 and name not in sums:
            raise ValueError(f"{folder / DESCRIPTION} has no checksum of {name}; {REMEDY}")
    for name, expected in sums.items():
        mapped = memory_map and name in SEGMENTS[0] and expected.bytes > WHOLE_BELOW
        expected.check(folder / name, whole=verify or not mapped)
    parts = []
    for names in files:
        parts.append((_read_faiss(folder / names[0], memory_map), _read_products(folder / names[1], memory_map)))
    live = _read_live(folder, sum(description.rows))
    found = tuple((index.d, index.ntotal, len(products)) for index, products in parts)
    stated = tuple((description.dimension, rows, rows) for rows in description.rows)
    if found != stated or live.sum() != description.count:
        raise ValueError(
            f"the files of {folder} do not belong together: {DESCRIPTION} says (dimension, vectors, products) "
            f"{stated} and {description.count} to be found, the files hold {found} and {live.sum()}; "
            f"{REMEDY}"
        )
    cuts = np.split(live, np.cumsum(description.rows)[:-1])
    segments = tuple(Segment(index, products, cut) for (index, products), cut in zip(parts, cuts, strict=True))
    return segments, description, sums


def _write_products(products: pa.Table, path: Path) -> None:
    # Not Parquet: what is mapped needs no memory of the process, of which text takes more than vectors do.
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, products.schema) as writer:
        writer.write_table(products, max_chunksize=BLOCK)


def _check_there(folder: Path, name: str) -> None:
    if not (folder / name).is_file():
        raise FileNotFoundError(f"{folder} is no product index: {name} is missing; build one with index.py")


def _read_description(path: Path) -> tuple[IndexDescription, dict[str, FileSum]]:
    text = path.read_bytes()
    try:
        fields = json.loads(text)
        schema_version = int(fields["schema_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); {REMEDY}") from error
    if not 1 <= schema_version <= SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema version {schema_version}, this mmfusion reads up to {SCHEMA_VERSION}; update mmfusion "
            "or build the index again"
        )
    if schema_version > 1:
        check_seal(path, text)
    try:
        sums = {}
        if schema_version > 1:
            del fields["sha256"]
            sums = {name: FileSum(**one) for name, one in fields.pop("files").items()}
        return IndexDescription(**{**fields, "rows": tuple(fields["rows"])}), sums
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}); {REMEDY}") from error


def _read_live(folder: Path, count: int) -> BoolArray:
    live, path = np.ones(count, dtype=bool), folder / DELETED
    if path.is_file():
        try:
            live[np.load(path)] = False
        except (ValueError, EOFError, IndexError, OSError, TokenError) as error:
            raise ValueError(f"{path} is damaged ({error}); {REMEDY}") from error
    return live


def _read_faiss(path: Path, memory_map: bool) -> faiss.Index:
    try:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if memory_map else 0)
    except RuntimeError as error:
        raise ValueError(f"{path} is damaged and FAISS cannot read it; {REMEDY}") from error


def _read_products(path: Path, memory_map: bool) -> pa.Table:
    try:
        with pa.memory_map(str(path)) if memory_map else pa.OSFile(str(path)) as source:
            return pa.ipc.open_file(source).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); {REMEDY}") from error
