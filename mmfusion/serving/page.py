"""The search page: its files, its settings, and what its browser may fetch."""

import contextlib
import gzip
import hashlib
import logging
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route

from mmfusion.retrieval import FilterError, SearchIndex
from mmfusion.retrieval.facets import is_number
from mmfusion.retrieval.ranking import Mode
from mmfusion.serving.photos import Photos
from mmfusion.serving.requests import SearchRequest

if TYPE_CHECKING:
    from mmfusion.serving.app import SearchService

logger = logging.getLogger(__name__)

REMOTE_COLUMN = "image_url"
"""Column with the address of a product's photo, as `mmfusion import` keeps it."""

_FILES = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "photo.js": "text/javascript; charset=utf-8",
    "view.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
# Shown beside title and price where no columns are named.
_USUAL_COLUMNS = ("brand", "category", "colour", "color")
# Holds what the variants of a product share.
_GROUP = re.compile("(item_)?group(_id)?|(.*_)?parent(_id)?|family(_id)?", re.IGNORECASE)
_MAX_HOSTS = 50
_HOST = re.compile(r"[a-z0-9.-]+(:\d+)?")


@dataclass
class SearchPage:
    """What the page shows, over the routes of a service.

    Attributes:
        models: Names of the model, and of the one that it is compared with.
        columns: Columns of the metadata shown beside title and price; None: those of the usual ones that are there.
        photos: Photos from the catalogue; None: there are none.
        remote_photos: Whether browsers fetch the photos that the column `image_url` names from where they are.
        compared: Service of the other model, which answers below `/compare`.
        embed_in: Origins of pages that may show this one in a frame, such as "https://huggingface.co".
        controls: Further settings that the page reads, such as the kinds of search that there are.
    """

    models: Sequence[str] = ("",)
    columns: Sequence[str] | None = None
    photos: Photos | None = None
    remote_photos: bool = False
    compared: "SearchService | None" = None
    embed_in: Sequence[str] = ()
    controls: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        folder = Path(__file__).parent / "static"
        self._files = {name: _File.read(folder / name, kind) for name, kind in _FILES.items()}
        self._hosts: list[str] = []

    def check(self, index: SearchIndex) -> None:
        """Looks at the columns of an index, before it is served.

        Raises:
            FilterError: One that is to be shown is not there.
        """
        there = index.metadata_types()
        # Of a collection in Milvus the columns are not known.
        shown = [*((self.columns or ()) if there else ()), *([REMOTE_COLUMN] if self.remote_photos else [])]
        for name in shown:
            if name not in there:
                columns = ", ".join(there) or "none that can be read as a whole"
                raise FilterError(f"there is no column {name!r} to show on the page; this index has {columns}.")
        self._hosts = _hosts_of(index) if self.remote_photos else []

    def routes(self) -> list[BaseRoute]:
        """The routes of the page; all of its addresses are relative, so that a proxy may put it anywhere."""

        async def page(request: Request) -> Response:
            name = request.url.path.rpartition("/")[2] or "index.html"
            return self._files[name].answer(request, self._policy())

        routes: list[BaseRoute] = [Route(f"/{name}", page) for name in _FILES if name != "index.html"]
        routes.append(Route("/", page))
        if self.photos is not None:
            routes.append(Route("/photos/{product_id:product_id}", self.photos.photos))
        if self.compared is not None:
            routes.append(Mount("/compare", routes=self.compared.search_routes()))
        return routes

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answers for the other model until the end of the block, and makes photos."""
        async with contextlib.AsyncExitStack() as stack:
            if self.compared is not None:
                await stack.enter_async_context(self.compared.running())
            if self.photos is not None:
                stack.callback(self.photos.close)
            yield

    def settings(self, index: SearchIndex) -> dict[str, Any]:
        """What the page is told of itself and of an index; of Milvus it has to be asked."""
        there = index.metadata_types()
        columns = [name for name in _USUAL_COLUMNS if name in there] if self.columns is None else self.columns
        return {
            "products": len(index),
            "models": self.models,
            "columns": columns,
            "photos": self.photos is not None,
            "remote_photos": REMOTE_COLUMN if self.remote_photos else None,
            "parameters": [*SearchRequest.model_fields],
            "rankings": _rankings(index),
            **self.controls,
        }

    def _policy(self) -> str:
        """What a browser may load: the files of this service, and photos from the hosts that the index names."""
        images = " ".join(["'self'", "blob:", *self._hosts])
        frames = " ".join(["'self'", *self.embed_in])
        return (
            f"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src {images}; "
            f"base-uri 'none'; form-action 'self'; frame-ancestors {frames}"
        )


def _rankings(index: SearchIndex) -> dict[str, Any]:
    """What searches of an index can rank by."""
    facts, there = index.facts(), index.metadata_types()
    return {
        "modes": [*get_args(Mode)] if facts.get("lexical") else ["vectors"],
        "groups": [name for name in there if _GROUP.fullmatch(name)],
        "boosts": [name for name, kind in there.items() if is_number(kind)],
        "calibrated": facts.get("calibration") is not None,
    }


@dataclass(frozen=True)
class _File:
    kind: str
    plain: bytes
    packed: bytes
    etag: str

    @classmethod
    def read(cls, path: Path, kind: str) -> "_File":
        plain = path.read_bytes()
        return cls(kind, plain, gzip.compress(plain, mtime=0), f'"{hashlib.sha256(plain).hexdigest()[:20]}"')

    def answer(self, request: Request, policy: str) -> Response:
        headers = {
            # Asked for again each time, and sent once.
            "cache-control": "no-cache",
            "content-security-policy": policy,
            "etag": self.etag,
            "referrer-policy": "no-referrer",
            "vary": "accept-encoding",
            "x-content-type-options": "nosniff",
        }
        if self.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        if "gzip" not in request.headers.get("accept-encoding", ""):
            return Response(self.plain, media_type=self.kind, headers=headers)
        return Response(self.packed, media_type=self.kind, headers={**headers, "content-encoding": "gzip"})


def _hosts_of(index: SearchIndex) -> list[str]:
    """Schemes and hosts of the photos' addresses, the most frequent ones, as a policy names them."""
    addresses = index.metadata_column(REMOTE_COLUMN)
    if not (pa.types.is_string(addresses.type) or pa.types.is_large_string(addresses.type)):
        raise FilterError(f"the column {REMOTE_COLUMN!r} is {addresses.type}; addresses of photos are texts.")
    origins = pc.drop_null(pc.struct_field(pc.extract_regex(addresses, r"^(?P<origin>https?://[^/?#]+)"), "origin"))
    counts = sorted(pc.value_counts(origins).to_pylist(), key=lambda one: (-one["counts"], one["values"]))
    hosts: dict[str, None] = {}
    for one in counts:
        # What is no host, or more than one to the browser that reads the policy, is left out.
        with contextlib.suppress(ValueError):
            parts = urlsplit(one["values"].lower())
            host = parts.netloc.rpartition("@")[2].encode("idna").decode()
            if _HOST.fullmatch(host):
                hosts[f"{parts.scheme}://{host}"] = None
    if len(hosts) > _MAX_HOSTS:
        logger.warning("photos are on %d hosts; those of the %d with most are shown", len(hosts), _MAX_HOSTS)
    return [*hosts][:_MAX_HOSTS]
