"""Give embedded products to another engine: OpenSearch, or PostgreSQL with pgvector."""

import os
from dataclasses import dataclass
from functools import partial
from typing import Literal
from urllib.parse import urlsplit

from tqdm.auto import tqdm

from mmfusion.commands.index import metadata_of
from mmfusion.data.catalogue import Catalogue
from mmfusion.embedding import EmbeddedCatalogue
from mmfusion.embedding.opensearch import write_opensearch
from mmfusion.embedding.pgvector import load_pgvector
from mmfusion.retrieval.query_tower import check_base
from mmfusion.training.catalogue_cache import load_shared
from mmfusion.training.full_disk import full_disk_ends
from mmfusion.training.run import finished_record, open_run


@dataclass
class Config:
    """Settings of `mmfusion export-vectors`.

    Attributes:
        embeddings: Folder that `mmfusion embed` wrote.
        to: opensearch, which writes files for its bulk interface, or pgvector, which loads a table of PostgreSQL
            (needs `pip install 'mmfusion[pgvector]'`).
        catalogue: Folder, fsspec URL or Hub id that titles and metadata are taken from; default: the one that was
            embedded.
        output: Folder for working files, and for the files of OpenSearch.
        name: Name of the index, or of the table.
        connection: PostgreSQL, as libpq takes it, e.g. postgresql://user@host/shop; the password is in the environment
            variable PGPASSWORD or in ~/.pgpass. Default: what PGHOST, PGDATABASE … say.
        file_mib: Size of a bulk file of OpenSearch in MiB, which is sent as one request.
        overwrite: Whether the table may replace one of that name that this command did not write.
        cache_dir: Folder in which all commands share the catalogue as they map it into memory; default: the environment
            variable MMFUSION_CACHE, or else the output folder, with hard links to what folders beside it have.
    """

    embeddings: str = "outputs/embeddings"
    to: Literal["opensearch", "pgvector"] = "opensearch"
    catalogue: str | None = None
    output: str = "outputs/vectors"
    name: str = "products"
    connection: str = ""
    file_mib: int = 10
    overwrite: bool = False
    cache_dir: str | None = None


def main(config: Config) -> None:
    """Exports vectors with ids, titles and metadata; run again to go on, or to follow embeddings that have changed."""
    record = finished_record(config.embeddings, "embeddings", "embed")
    if config.file_mib < 1:
        raise ValueError(f"file_mib is {config.file_mib}; give at least 1.")
    if "://" in config.connection and urlsplit(config.connection).password:
        raise ValueError("connection holds a password, which would be seen by others; put it into PGPASSWORD.")
    check_base(record["base"])
    embedded = EmbeddedCatalogue.open(config.embeddings)
    embedded.check()
    run = open_run(config.output, "export-vectors", {"to": config.to, "name": config.name})
    with full_disk_ends(run.folder, "export the vectors"):
        load = partial(Catalogue.load_products, photos=False)
        products = load_shared(load, config.catalogue or record["catalogue"], run.folder, config.cache_dir)
        metadata = metadata_of(products, embedded)
        if config.to == "opensearch":
            files = write_opensearch(run.folder / "bulk", embedded, metadata, config.name, config.file_mib << 20)
            place = f"{len(files)} files in {run.folder / 'bulk'}"
            follows = f"send index.json and bulk-*.ndjson to OpenSearch, see docs/opensearch.md (index {config.name})"
        else:
            with tqdm(total=len(embedded), desc=f"loading {config.name}", unit="product", leave=False) as bar:
                load_pgvector(
                    config.connection,
                    embedded,
                    metadata,
                    config.name,
                    overwrite=config.overwrite,
                    progress=bar.update,
                )
            place = f"the table {config.name} of {config.connection or os.environ.get('PGDATABASE') or 'PostgreSQL'}"
            follows = "search it with the vectors of queries, see docs/pgvector.md"
    run.finish(base=record["base"], products=len(embedded))
    print(f"{len(embedded):,} products in {place}; next: {follows}")
