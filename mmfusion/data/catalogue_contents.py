"""A name for what a catalogue holds, to tell whether something was made with the same one."""

import hashlib
from collections.abc import Iterator
from typing import Any

from mmfusion.data.catalogue import Catalogue

_AT_ONCE = 65_536


def contents_digest(catalogue: Catalogue) -> str:
    """SHA-256 (hex) of ids, splits and judgements, in their order; texts and photos are not read."""
    digest = hashlib.sha256()
    for table, ids in ((catalogue.products, catalogue.product_ids), (catalogue.queries, catalogue.query_ids)):
        for block in _blocks(ids):
            digest.update(block)
        if "split" in table.column_names:
            for block in _blocks(table["split"]):
                digest.update(block)
    for column in (catalogue.qrels.query, catalogue.qrels.product, catalogue.qrels.grade):
        digest.update(column.tobytes())
    return digest.hexdigest()


def _blocks(values: Any) -> Iterator[bytes]:
    """The values, separated by zero bytes; a part at a time, as each is an object while it is written."""
    for start in range(0, len(values), _AT_ONCE):
        yield (b"\0" if start else b"") + "\0".join(map(str, values[start : start + _AT_ONCE])).encode()
