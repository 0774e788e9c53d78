"""The plan of an embedding job as a file, which the first rank writes and all ranks read."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from mmfusion.data.catalogue import Catalogue
from mmfusion.data.tables import Rows
from mmfusion.embedding.content import Digests
from mmfusion.embedding.plan import NewShard, Products
from mmfusion.files import whole_file


def write_note(path: Path, products: Products, shards: list[NewShard]) -> None:
    """Writes products and new shards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        np.savez(
            file,
            rows=products.rows,
            contents=products.contents,
            places=np.concatenate([np.empty(0, dtype=np.int64), *(shard.places for shard in shards)]),
            sizes=np.array([len(shard.places) for shard in shards], dtype=np.int64),
            names=np.array([shard.name for shard in shards], dtype=np.str_),
        )


def read_note(path: Path, catalogue: Catalogue) -> tuple[Products, list[NewShard]]:
    """Reads products and new shards."""
    with np.load(path) as noted:
        cuts = np.split(noted["places"], np.cumsum(noted["sizes"])[:-1]) if len(noted["sizes"]) else []
        shards = [NewShard(str(name), cut) for name, cut in zip(noted["names"], cuts, strict=True)]
        return find_products(catalogue, noted["rows"], noted["contents"]), shards


def find_products(catalogue: Catalogue, rows: Rows, contents: Digests) -> Products:
    """Products of some rows, all different."""
    column = catalogue.products.data.column("product_id")
    # Arrow all the way, as an object for each id would take ten times its bytes.
    ids = column if len(rows) == len(column) else column.take(pa.array(rows))
    return Products(rows, ids.cast(pa.string()).combine_chunks(), contents)
