"""Serve an index over HTTP: search by text, look up products, watch health and metrics."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmfusion.onnx import OnnxQueryTower
from mmfusion.retrieval import ProductIndex, QueryEncoder, Searcher, TorchQueryEncoder
from mmfusion.retrieval.query_tower import load_query_tower
from mmfusion.serving import ServiceLimits, check_installed
from mmfusion.training import run_command
from mmfusion.training.built_index import index_record, open_built_index

if TYPE_CHECKING:
    from mmfusion.serving.app import SearchService

log = logging.getLogger("mmfusion")


def main(
    index: str = "outputs/index",
    base: str | None = None,
    onnx: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    verify: bool = False,
    limits: ServiceLimits = ServiceLimits(),
) -> None:
    """Answers until Ctrl-C or SIGTERM; of the model only the query tower is loaded.

    GET /search?query=red+dress&k=10&filter=[["price","<",50]], or POST /search with the same as a JSON object; GET
    /products/{id}?k=10 for a stored product and those most like it; GET /health; GET /metrics for Prometheus. When
    index.py has built the index anew, the service goes over to it between two requests. There is neither encryption
    nor a password: put a proxy before it where others than you can reach it.

    Args:
        index: Folder that index.py wrote; where it built into Milvus, the collection is served (with the token in the
            environment variable MILVUS_TOKEN).
        base: Folder or Hub id of the model; default: the one that the index was built with.
        onnx: Folder that export.py wrote, to embed queries with ONNX Runtime; base is not read then.
        host: Address to listen on; 127.0.0.1 is reached from this machine only, 0.0.0.0 from everywhere.
        port: TCP port; 0 takes a free one and logs it.
        verify: Whether all bytes of a FAISS index, and of each that takes its place, are compared with their checksums
            before it is served, which reads it once. Of files above 64 MiB, only the size and both ends are compared
            otherwise.
        limits: Sizes, time-outs, and the queue.
    """
    check_installed()
    from mmfusion.serving.server import bind, log_as_json, run_server

    log_as_json()
    record = index_record(index)
    bound = bind(host, port)
    # Only the service holds the index, so that it is let go when another one takes its place.
    service = _load_service(index, record, _load_encoder(base or record["base"], onnx), limits, verify)
    run_server(service.app(), bound, limits)


def _load_service(
    index: str,
    record: dict[str, Any],
    loaded: tuple[QueryEncoder, dict[str, Any]],
    limits: ServiceLimits,
    verify: bool,
) -> "SearchService":
    from mmfusion.serving.app import SearchService, resident_mib
    from mmfusion.serving.watch import version_of

    encoder, tower = loaded
    folder = Path(index) / "index"
    version = version_of(folder)
    opened = open_built_index(index, record, verify=verify)
    followed = None
    if isinstance(opened, ProductIndex):
        opened.prepare_ids()
        followed = folder
    searcher = Searcher(encoder, opened)
    searcher.search("warm up")
    service = SearchService(searcher, followed, limits, tower, version, verify=verify)
    log.info(
        "query tower of %s parameters (%s MiB), no vision encoder; %s products; %s MiB in RAM",
        *(f"{tower['parameters']:,}", tower["mib"], f"{len(service.index):,}", resident_mib()),
    )
    return service


def _load_encoder(base: str, onnx: str | None) -> tuple[QueryEncoder, dict[str, Any]]:
    """The query tower, and what `/health` says of it."""
    from mmfusion.serving.app import facts_of_onnx, facts_of_tower

    if onnx is not None:
        exported = OnnxQueryTower.load(onnx)
        return exported, facts_of_onnx(Path(onnx), exported.description)
    model, processor = load_query_tower(base)
    return TorchQueryEncoder(model, processor), facts_of_tower(model)


if __name__ == "__main__":
    run_command(main)
