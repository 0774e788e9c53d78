"""Serve an index over HTTP: search by text, look up products, watch health and metrics."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmfusion.commands.search import open_index
from mmfusion.retrieval import ProductIndex, QueryEncoder, Searcher
from mmfusion.retrieval.query_tower import check_trained, load_query_tower
from mmfusion.retriever import Retriever
from mmfusion.serving import ServiceLimits, check_installed
from mmfusion.training.run import finished_record

if TYPE_CHECKING:
    from mmfusion.serving.app import SearchService

logger = logging.getLogger(__name__)


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
        verify: Whether all bytes of a FAISS index, and of each that replaces it, are compared with their checksums
            before it is served, which reads it once. Of files above 64 MiB, only the size and both ends are compared
            otherwise.
        limits: Sizes, time-outs, and the queue.
    """

    index: str = "outputs/index"
    base: str | None = None
    onnx: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    verify: bool = False
    limits: ServiceLimits = field(default_factory=ServiceLimits)


def main(config: Config) -> None:
    """Answers until Ctrl-C or SIGTERM; of the model only the query tower is loaded.

    GET /search?query=red+dress&k=10&filter=[["price","<",50]], or POST /search with the same as a JSON object; GET
    /products/{id}?k=10 for a stored product and those most like it; GET /health; GET /metrics for Prometheus. When
    `mmfusion index` has built the index again, the service switches to it between two requests. There is neither
    encryption nor a password: run it behind a proxy if others can reach it.
    """
    check_installed()
    from mmfusion.serving.server import bind, log_as_json, run_server

    log_as_json()
    record = finished_record(config.index, "index", "index")
    bound = bind(config.host, config.port)
    # Only the service holds the index, so that it is freed when another one replaces it.
    service = _load_service(config, record, _load_encoder(config.base or record["base"], config.onnx))
    run_server(service.app(), bound, config.limits)


def _load_service(
    config: Config, record: dict[str, Any], loaded: tuple[QueryEncoder, dict[str, Any]]
) -> "SearchService":
    from mmfusion.serving.app import SearchService, resident_mib
    from mmfusion.serving.watch import IndexWatch

    encoder, tower = loaded
    # Before the index is read, so that one which replaces it meanwhile is noticed.
    watch = IndexWatch(Path(config.index) / "index", config.verify)
    opened = open_index(config.index, record, verify=config.verify)
    if isinstance(opened, ProductIndex):
        opened.prepare_ids()
    searcher = Searcher(encoder, opened)
    searcher.search("warm up")
    followed = watch if isinstance(opened, ProductIndex) else None
    service = SearchService(searcher, followed, config.limits, tower)
    logger.info(
        "query tower of %s parameters (%s MiB), no vision encoder; %s products; %s MiB in RAM",
        *(f"{tower['parameters']:,}", tower["mib"], f"{len(service.index):,}", resident_mib()),
    )
    return service


def _load_encoder(base: str, onnx: str | None) -> tuple[QueryEncoder, dict[str, Any]]:
    """The query tower, and what `/health` says of it."""
    from mmfusion.serving.app import facts_of_onnx, facts_of_tower

    if onnx is not None:
        from mmfusion.onnx import OnnxQueryTower

        exported = OnnxQueryTower.load(onnx)
        return exported, facts_of_onnx(Path(onnx), exported.description)
    model, processor = load_query_tower(base)
    check_trained(model, base)
    return Retriever(model, processor), facts_of_tower(model)
