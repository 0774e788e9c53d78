"""A name for what a catalogue holds, to tell whether something was made with the same one."""

import hashlib

from mmfusion.data.catalogue import Catalogue


def contents_digest(catalogue: Catalogue) -> str:
    """SHA-256 (hex) of ids, splits and judgements, in their order; texts and photos are not read."""
    digest = hashlib.sha256()
    for table, ids in ((catalogue.products, catalogue.product_ids), (catalogue.queries, catalogue.query_ids)):
        digest.update("\0".join(map(str, ids)).encode())
        if "split" in table.column_names:
            digest.update("\0".join(map(str, table.select_columns(["split"])[:]["split"])).encode())
    for column in (catalogue.qrels.query, catalogue.qrels.product, catalogue.qrels.grade):
        digest.update(column.tobytes())
    return digest.hexdigest()
