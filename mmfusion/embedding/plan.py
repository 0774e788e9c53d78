"""Which products have to be embedded, given a catalogue and the shards that are there."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mmfusion.data.tables import Rows
from mmfusion.embedding.content import Digests
from mmfusion.embedding.manifest import MANIFEST
from mmfusion.embedding.shard import MadeOf, ShardError, keep_rows, read_contents, read_made_of, read_table, shard_name


@dataclass(frozen=True)
class Products:
    """The products that should be embedded.

    Attributes:
        rows: (P,) int64 catalogue rows, ascending.
        ids: Their P ids.
        contents: (P, 2) digests of what they show.
    """

    rows: Rows
    ids: pa.Array
    contents: Digests

    def names(self, places: npt.NDArray[np.int64]) -> list[str]:
        """Ids at some places."""
        names: list[str] = self.ids.take(pa.array(places)).to_pylist()
        return names


@dataclass(frozen=True)
class NewShard:
    """A shard to compute: its file `name`, and the (n,) int64 `places` of its products, ascending."""

    name: str
    places: npt.NDArray[np.int64]


@dataclass(frozen=True)
class OldShard:
    """A shard that is there: which of its rows are wanted, (n,) bool, and the first place of them in the catalogue."""

    path: Path
    keep: npt.NDArray[np.bool_]
    first: int


@dataclass(frozen=True)
class Plan:
    """`old` shards that hold something wanted, those with nothing (`useless`), and `new` ones to compute."""

    old: list[OldShard]
    useless: list[Path]
    new: list[NewShard]

    @property
    def missing(self) -> int:
        """Number of products to embed."""
        return sum(len(shard.places) for shard in self.new)

    @property
    def dropped(self) -> int:
        """Number of vectors of products that have changed or are no longer in the catalogue, as far as it is known."""
        return sum(int((~shard.keep).sum()) for shard in self.old)


def plan(folder: Path, products: Products, made_of: MadeOf, shard_size: int) -> Plan:
    """Compares the products with the shards in a folder, whether or not a manifest names these.

    A product is embedded anew if no shard has its id with its content. Those are cut into shards in the order of the
    catalogue: after a kill the cuts fall where they would have fallen, as finished shards leave no part of one behind.

    Raises:
        ShardError: A shard is damaged, or was made by another model, precision or type of vector.
    """
    taken = np.zeros(len(products.rows), dtype=bool)
    old, useless = [], []
    paths = _shards(folder, made_of)
    for path, (places, same) in zip(paths, _found_again(paths, products), strict=True):
        keep = same & ~taken[places]
        taken[places[keep]] = True
        if keep.any():
            old.append(OldShard(path, keep, int(places[keep].min())))
        else:
            useless.append(path)
    missing = np.flatnonzero(~taken)
    cuts = [missing[start : start + shard_size] for start in range(0, len(missing), shard_size)]
    new = [NewShard(shard_name(made_of, products.names(cut), products.contents[cut]), cut) for cut in cuts]
    return Plan(old, useless, new)


def settle(folder: Path, made_of: MadeOf, plan: Plan) -> list[Path]:
    """Rewrites shards that hold something unwanted, and returns all shards in the order of the catalogue."""
    settled = []
    for shard in sorted(plan.old, key=lambda shard: shard.first):
        path = shard.path
        if not shard.keep.all():
            table = read_table(path, ["product_id", "content"]).filter(pa.array(shard.keep))
            path = folder / shard_name(made_of, table.column("product_id").to_pylist(), read_contents(table))
            if not path.exists():
                keep_rows(shard.path, path, shard.keep)
        settled.append(path)
    return settled


def _shards(folder: Path, made_of: MadeOf) -> Sequence[Path]:
    found = sorted(folder.glob("shard-*.parquet"))
    for path in found:
        other = read_made_of(path)
        if other != made_of:
            changed = [
                f"{name} was {getattr(other, name)!r}, now {value!r}"
                for name, value in vars(made_of).items()
                if getattr(other, name) != value
            ]
            raise ShardError(
                f"{folder} holds vectors that were made otherwise ({', '.join(changed)}), and queries fit one model "
                f"only; give another --output, or remove {MANIFEST} and the shards"
            )
    return found


def _found_again(
    paths: Sequence[Path], products: Products
) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]]:
    """For each shard: place of each row's product in the catalogue, 0 for none; and whether it is there, unchanged."""
    if not paths:
        return []
    chunks, contents = [], []
    for path in paths:
        table = read_table(path, ["product_id", "content"])
        chunks += table.column("product_id").chunks
        contents.append(read_contents(table))
    # All shards at once, as looking up means hashing the ids of the whole catalogue.
    found = pc.index_in(pa.chunked_array(chunks, pa.string()), value_set=products.ids)
    cuts = np.cumsum([len(part) for part in contents])[:-1]
    there = np.split(found.is_valid().to_numpy(), cuts)
    places = np.split(found.fill_null(0).to_numpy().astype(np.int64), cuts)
    return [
        (place, known & (products.contents[place] == part).all(axis=1))
        for place, known, part in zip(places, there, contents, strict=True)
    ]
