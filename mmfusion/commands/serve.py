"""Serve an index over HTTP: search by text, look up products, watch health and metrics."""

import logging
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from mmfusion.commands.search import load_retriever, open_index
from mmfusion.retrieval import ProductIndex, QueryEncoder, Searcher
from mmfusion.retrieval.query_tower import query_tower
from mmfusion.serving import ServiceLimits, check_installed
from mmfusion.training.run import RunError, finished_record, read_record

if TYPE_CHECKING:
    from mmfusion.serving.app import SearchService
    from mmfusion.serving.page import SearchPage
    from mmfusion.serving.photos import Photos

logger = logging.getLogger(__name__)

_ORIGIN = re.compile(r"https?://[A-Za-z0-9.-]+(:\d+)?")


@dataclass
class Config:
    """Settings of `mmfusion serve`.

    Attributes:
        index: Folder that `mmfusion index` wrote; where it built into Milvus, the collection is served (with the token
            in the environment variable MILVUS_TOKEN).
        base: Folder or Hub id of the model; default: the one that the index was built with.
        onnx: Folder that `mmfusion export` wrote, to embed queries with ONNX Runtime; base is not read then.
        host: Address to listen on; 127.0.0.1 is reached from this machine only, 0.0.0.0 from everywhere.
        port: TCP port; 0 takes a free one and logs it.
        photo_queries: Whether photos can be searched for, too, which takes the whole model: /health says what it costs.
        verify: Whether all bytes of a FAISS index, and of each that replaces it, are compared with their checksums
            before it is served, which reads it once. Of files above 64 MiB, only the size and both ends are compared
            otherwise.
        page: Whether / answers with a search page.
        page_columns: Columns of the catalogue that the page shows beside title and price; default: brand, category and
            colour, as far as they are there.
        facets: Columns that products can be filtered by on the page, and that /facets describes; default: up to 8
            columns of numbers, booleans and texts with few values.
        compare: Folder of another index of the same products, whose hits the page shows beside those of this one.
        catalogue: Folder, fsspec URL or Hub id that photos are taken from; default: the one that was indexed.
        photo_cache: Folder for small photos and for the catalogue as it is mapped into memory; default: the index.
        remote_photos: Whether browsers fetch photos from the addresses in the column image_url, where there are some.
        embed_in: Origins of web pages that may show the search page in a frame, e.g. [https://huggingface.co].
        limits: Sizes, time-outs, and the queue.
    """

    index: str = "outputs/index"
    base: str | None = None
    onnx: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    photo_queries: bool = False
    verify: bool = False
    page: bool = True
    page_columns: list[str] | None = None
    facets: list[str] | None = None
    compare: str | None = None
    catalogue: str | None = None
    photo_cache: str | None = None
    remote_photos: bool = False
    embed_in: list[str] = field(default_factory=list)
    limits: ServiceLimits = field(default_factory=ServiceLimits)


def main(config: Config) -> None:
    """Answers until Ctrl-C or SIGTERM; of the model only the query tower is loaded, unless photos are searched for.

    GET / is a search page. GET /search?query=red+dress&k=10&filter=[["price","<",50]], or POST /search with the same as
    a JSON object, or, with photo_queries, as a form with the file image; GET /products/{id}?k=10 for a stored product
    and those most like it; GET /photos/{id}; GET /facets;
    GET /health; GET /metrics for Prometheus. When `mmfusion index` has built the index again, the service switches to
    it between two requests. There is neither encryption nor a password: run it behind a proxy if others can reach it.
    """
    check_installed()
    from mmfusion.serving.server import bind, log_as_json, run_server

    log_as_json()
    _check_flags(config)
    record = finished_record(config.index, "index", "index")
    bound = bind(config.host, config.port)
    page = _load_page(config, record) if config.page else None
    # Only the service holds the index, so that it is freed when another one replaces it.
    service = _load_service(config, record, _load_encoder(config, config.base or record["base"]), page)
    _check_same_products(config, service)
    run_server(service.app(), bound, config.limits)


def _check_flags(config: Config) -> None:
    for origin in config.embed_in:
        # It becomes part of the Content-Security-Policy.
        if not _ORIGIN.fullmatch(origin):
            raise ValueError(f"embed_in {origin!r} is no origin; give scheme and host, e.g. https://huggingface.co.")
    if config.page:
        return
    for name in ("page_columns", "compare", "catalogue", "photo_cache", "remote_photos", "embed_in"):
        if value := getattr(config, name):
            raise ValueError(f"{name} {value!r} is for the search page; leave it out, or leave out --page false.")


def _load_page(config: Config, record: dict[str, Any]) -> "SearchPage":
    from mmfusion.serving.page import SearchPage

    models = [_name_of(config.index, config.base or record["base"])]
    compared = None
    if config.compare is not None:
        other = finished_record(config.compare, "index to compare with", "index")
        try:
            theirs = Config(index=config.compare, verify=config.verify, limits=config.limits, facets=[])
            compared = _load_service(theirs, other, _load_encoder(theirs, other["base"]), None)
        except (OSError, ValueError) as error:
            raise ValueError(f"--compare {config.compare}: {error}") from error
        models.append(_name_of(config.compare, other["base"]))
    photos = _load_photos(config, record)
    return SearchPage(models, config.page_columns, photos, config.remote_photos, compared, config.embed_in)


def _name_of(index: str, base: str) -> str:
    """What the page calls a model, which says nothing about the machine's folders."""
    return Path(base).name or Path(index).name


def _check_same_products(config: Config, service: "SearchService") -> None:
    if service.page is None or service.page.compared is None:
        return
    theirs = service.page.compared.searches.searcher
    found = theirs.search("warm up", min(20, len(theirs.index)))
    for hit in found:
        with suppress(KeyError):
            service.index.product(hit.product_id)
            return
    raise ValueError(
        f"--compare {config.compare}: none of {len(found)} products of it, such as {found[0].product_id!r}, is in "
        f"{config.index}; give an index of the same catalogue."
    )


def _load_photos(config: Config, record: dict[str, Any]) -> "Photos | None":
    from mmfusion.serving.photos import Photos, Thumbnails

    embedded = read_record(record.get("arguments", {}).get("embeddings", "")) or {}
    source = config.catalogue or record.get("catalogue") or embedded.get("catalogue")
    if source is None:
        logger.warning("the page has no photos: the index does not say which catalogue it is of; give --catalogue")
        return None
    try:
        thumbnails = Thumbnails(source, Path(config.photo_cache or config.index))
    except (OSError, ValueError) as error:
        if config.catalogue is not None:
            raise
        logger.warning("the page has no photos, as the catalogue cannot be read; give --catalogue: %s", error)
        return None
    if not thumbnails.are_there:
        logger.warning("the page has no photos: the catalogue %s has no column 'image'", source)
        return None
    return Photos(thumbnails, config.limits.max_waiting)


def _load_service(
    config: Config,
    record: dict[str, Any],
    loaded: tuple[QueryEncoder, dict[str, Any], dict[str, Any] | None],
    page: "SearchPage | None",
) -> "SearchService":
    from mmfusion.serving.app import SearchService, resident_mib
    from mmfusion.serving.watch import IndexWatch

    encoder, tower, photo_cost = loaded
    # Before the index is read, so that one which replaces it meanwhile is noticed.
    watch = IndexWatch(Path(config.index) / "index", config.verify)
    opened = open_index(config.index, record, verify=config.verify)
    if isinstance(opened, ProductIndex):
        opened.prepare_ids()
    searcher = Searcher(encoder, opened)
    searcher.search("warm up", image=None if photo_cost is None else Image.new("RGB", (64, 64)))
    followed = watch if isinstance(opened, ProductIndex) else None
    service = SearchService(searcher, followed, config.limits, tower, config.facets, page, photo_cost)
    logger.info(
        "query tower of %s parameters (%s MiB), %s; %s products; %s MiB in RAM",
        *(f"{tower['parameters']:,}", tower["mib"]),
        "no vision encoder" if photo_cost is None else "and {parameters:,} ({mib} MiB) for photos".format(**photo_cost),
        *(f"{len(service.index):,}", resident_mib()),
    )
    return service


def _load_encoder(config: Config, base: str) -> tuple[QueryEncoder, dict[str, Any], dict[str, Any] | None]:
    """The query tower, or the whole model to search by photo; what `/health` says of the tower, and of the rest."""
    from mmfusion.serving.app import facts_of_onnx, facts_of_tower

    if config.onnx is not None:
        if config.photo_queries:
            raise RunError(f"photo_queries is true, and --onnx {config.onnx} reads words alone; leave one of them out.")
        from mmfusion.onnx import OnnxQueryTower

        exported = OnnxQueryTower.load(config.onnx)
        return exported, facts_of_onnx(Path(config.onnx), exported.description), None
    retriever = load_retriever(base, whole=config.photo_queries)
    if not config.photo_queries:
        return retriever, facts_of_tower(retriever.model), None
    retriever.check_photo_queries()
    tower, whole = facts_of_tower(query_tower(retriever.model)), facts_of_tower(retriever.model)
    cost = {"parameters": whole["parameters"] - tower["parameters"], "mib": round(whole["mib"] - tower["mib"], 1)}
    return retriever, tower, cost
