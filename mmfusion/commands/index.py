"""Build an index of an embedded catalogue: with FAISS, or in Milvus."""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmfusion.data.catalogue import Catalogue
from mmfusion.embedding import EmbeddedCatalogue
from mmfusion.evaluation.evaluate import pool_rows
from mmfusion.files import absolute_place
from mmfusion.model import MMFusionProcessor
from mmfusion.retrieval import Choice, MilvusIndex, ProductIndex, Searcher, calibrate, choose_index
from mmfusion.retrieval.choose import physical_memory
from mmfusion.retrieval.products import take_rows
from mmfusion.retrieval.query_tower import check_base, load_query_tower
from mmfusion.retrieval.vectors import TRAIN_SIZE
from mmfusion.retriever import Retriever
from mmfusion.training.catalogue_cache import load_shared
from mmfusion.training.full_disk import full_disk_ends
from mmfusion.training.run import finished_record, open_run
from mmfusion.training.sources import forget_other_tables


@dataclass
class Config:
    """Settings of `mmfusion index`.

    Attributes:
        embeddings: Folder that `mmfusion embed` wrote.
        catalogue: Folder, fsspec URL or Hub id that titles and metadata are taken from; default: the one that was
            embedded.
        cache_dir: Folder in which all commands share the catalogue as they map it into memory; default: the environment
            variable MMFUSION_CACHE, or else the output folder, with hard links to what folders beside it have.
        output: Folder for working files; the index itself is its subfolder `index`.
        factory: FAISS factory string: Flat (exact), HNSW32 (fast), IVF1024,SQ8 (small), IVF1024,RaBitQ,Refine(SQ8)
            (smaller still in memory, as its candidates are scored again from disk) …; default: by the number of
            products, the type of their vectors and `memory_gib`, see `choose_index`.
        search_parameters: FAISS run-time parameters, e.g. nprobe=16,k_factor_rf=4; default: those that go with that
            choice.
        memory_gib: What the index may take of the memory of the machine that serves it, in GiB; default: half of what
            this machine has, or its container may use.
        lexical: Whether words are searched, too, by BM25 (search --mode words or hybrid).
        lexical_columns: Columns whose words are searched, e.g. [title,brand]; default: those that the model's product
            template names.
        calibrate: Precision that hits are to have on the judged val queries of the catalogue, from 0 to 1: the lowest
            score that has it is measured and kept, for search --min_score calibrated.
        milvus_uri: File that ends in .db (Milvus Lite, embedded), or address of a Milvus server, such as
            http://localhost:19530.
        collection: Its name in Milvus.
        index_type: Kind of index in Milvus, such as FLAT or HNSW; default: FLAT, which is exact, in a file, and the
            server's choice on a server.
        overwrite: Whether the collection may replace one of that name. A folder is replaced anyway.
    """

    embeddings: str = "outputs/embeddings"
    catalogue: str | None = None
    cache_dir: str | None = None
    output: str = "outputs/index"
    factory: str | None = None
    search_parameters: str | None = None
    memory_gib: float | None = None
    lexical: bool = False
    lexical_columns: list[str] | None = None
    calibrate: float | None = None
    milvus_uri: str | None = None
    collection: str = "products"
    index_type: str | None = None
    overwrite: bool = False


def main(config: Config) -> None:
    """Writes an index: vectors, product ids with titles, metadata and modality weights, and a description.

    It is a folder with a FAISS index, or, with `milvus_uri`, a collection in Milvus; an upload that was cut off
    continues when it is run again. The token of a server is taken from the environment variable MILVUS_TOKEN.
    """
    record = finished_record(config.embeddings, "embeddings", "embed")
    _check_flags(config)
    check_base(record["base"])
    embedded = EmbeddedCatalogue.open(config.embeddings)
    embedded.check()
    uri = config.milvus_uri
    if uri is not None and "://" not in uri:
        uri = str(Path(uri).absolute())
    if uri is None:
        arguments = {"embeddings": config.embeddings, "factory": config.factory}
        chosen = _choose(embedded, config)
    else:
        arguments = {"embeddings": config.embeddings, "milvus_uri": uri, "collection": config.collection}
    run = open_run(config.output, "index", arguments)
    with full_disk_ends(run.folder, "build the index; one that was there is left as it was"):
        source = config.catalogue or record["catalogue"]
        load: Any = Catalogue.load_products if config.calibrate is None else partial(Catalogue.load, unknown="drop")
        load = partial(load, photos=False)
        products = load_shared(load, source, run.folder, config.cache_dir)
        metadata = metadata_of(products, embedded)
        lexical = _lexical_columns(config, record["base"], metadata)
        if uri is None:
            index = _build_with_faiss(embedded, metadata, chosen, lexical)
            if config.calibrate is not None:
                index = _calibrated(index, products, record["base"], config.calibrate)
            index.save(run.folder / "index", overwrite=True)
            place = (
                f"{run.folder / 'index'} ({chosen.factory} {chosen.search_parameters}".rstrip()
                + f"; finds {index.description.recall_at_100:.1%} of the 100 products most like a product)"
            )
        else:
            place = _build_in_milvus(embedded, metadata, uri, config, lexical)
    forget_other_tables(products, run.folder)
    facts = {"milvus_uri": uri, "collection": config.collection, "catalogue": absolute_place(source)}
    run.finish(base=record["base"], products=len(embedded), **facts)
    print(
        f"{len(embedded):,} products in {place}; next: "
        f'mmfusion search "red floral summer dress" --index {config.output}'
    )


def _check_flags(config: Config) -> None:
    uri = config.milvus_uri
    if uri is not None and "://" in uri and "@" in uri:
        raise ValueError("milvus_uri holds a user or password, which run.json would keep; put them into MILVUS_TOKEN.")
    of_milvus, of_faiss = ("index_type",), ("factory", "search_parameters", "memory_gib", "calibrate")
    for name in of_milvus if uri is None else of_faiss:
        if getattr(config, name) is not None:
            kind, remedy = ("Milvus", "give --milvus_uri") if uri is None else ("FAISS", "leave out --milvus_uri")
            raise ValueError(f"{name} {getattr(config, name)!r} is for an index in {kind}; leave it out, or {remedy}.")
    if config.lexical_columns is not None and not config.lexical:
        raise ValueError(f"lexical_columns {config.lexical_columns} are for --lexical true; give it, too.")
    if config.search_parameters is not None and config.factory is None:
        raise ValueError(
            f"search_parameters {config.search_parameters!r} belong to a kind of index; give --factory too."
        )


def _lexical_columns(config: Config, base: str, metadata: pa.Table) -> list[str]:
    """Columns whose words are searched; none if words are not."""
    if not config.lexical:
        return []
    if config.lexical_columns is not None:
        return config.lexical_columns
    template = MMFusionProcessor.from_pretrained(base).template_columns
    return [name for name in template if name in metadata.column_names]


def _calibrated(index: ProductIndex, catalogue: Catalogue, base: str, precision: float) -> ProductIndex:
    query_rows, product_rows = pool_rows(catalogue, "val", "split")
    model, processor = load_query_tower(base)
    names, products = list(catalogue.query_ids[query_rows]), catalogue.product_ids
    judged = catalogue.qrels.restrict(query_rows, product_rows)
    pairs = zip(catalogue.query_ids[judged.query], products[judged.product], strict=True)
    calibration = calibrate(
        Searcher(Retriever(model, processor), index),
        dict(zip(names, catalogue.query_texts(query_rows), strict=True)),
        dict(zip(pairs, judged.grade.tolist(), strict=True)),
        precision,
        # The products that val queries are judged over; others would count as wrong.
        filter=[("split", "=", "val")] if len(product_rows) < len(products) else None,
    )
    print(calibration)
    return index.calibrated(calibration)


def _build_with_faiss(
    embedded: EmbeddedCatalogue, metadata: pa.Table, chosen: Choice, lexical: list[str]
) -> ProductIndex:
    return ProductIndex.build(
        embedded.vectors(),
        embedded.column("product_id"),
        model_fingerprint=embedded.manifest.provenance.model_fingerprint,
        metadata=metadata,
        modality_weights=embedded.modality_weights(),
        factory=chosen.factory,
        search_parameters=chosen.search_parameters,
        sample=_sample(embedded) if len(embedded) and chosen.factory != "Flat" else None,
        lexical=lexical,
    )


def _sample(embedded: EmbeddedCatalogue) -> np.ndarray:
    """Vectors (M, D) float32 from all over the catalogue, which often is sorted by category."""
    step = -(-len(embedded) // TRAIN_SIZE)
    sample = np.empty((-(-len(embedded) // step), embedded.manifest.provenance.dimension), np.float32)
    first = filled = 0
    for block in embedded.vectors():
        some = block[-first % step :: step]
        sample[filled : filled + len(some)] = some
        first, filled = first + len(block), filled + len(some)
    return sample


def _build_in_milvus(
    embedded: EmbeddedCatalogue, metadata: pa.Table, uri: str, config: Config, lexical: list[str]
) -> str:
    with MilvusIndex.build(
        embedded.vectors(),
        embedded.column("product_id"),
        model_fingerprint=embedded.manifest.provenance.model_fingerprint,
        uri=uri,
        collection=config.collection,
        token=os.environ.get("MILVUS_TOKEN"),
        metadata=metadata,
        modality_weights=embedded.modality_weights(),
        index_type=config.index_type,
        overwrite=config.overwrite,
        lexical=lexical,
    ) as index:
        return f"{index.place} ({index.description.index_type})"


def _choose(embedded: EmbeddedCatalogue, config: Config) -> Choice:
    if config.factory is not None:
        return Choice(config.factory, config.search_parameters or "", 0)
    budget = physical_memory() // 2 if config.memory_gib is None else int(config.memory_gib * 2**30)
    provenance = embedded.manifest.provenance
    bits = {"binary": 1, "int8": 8}.get(provenance.vector_type, 32)
    return choose_index(len(embedded), provenance.dimension, budget, bits=bits)


def metadata_of(catalogue: Catalogue, embedded: EmbeddedCatalogue) -> pa.Table:
    """Columns of the catalogue except for ids and photos, in the order of the vectors."""
    table = catalogue.products.data.table
    rows = pc.index_in(embedded.column("product_id"), value_set=table.column("product_id").combine_chunks())
    if rows.null_count:
        raise ValueError(
            f"{rows.null_count} embedded products are not in {catalogue!r}; run `mmfusion embed` on it again, or give "
            "the --catalogue that was embedded."
        )
    names = [name for name in table.column_names if name != "product_id"]
    return take_rows(table.select(names), rows.to_numpy(zero_copy_only=False).astype(np.int64))
