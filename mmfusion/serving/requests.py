"""What requests may ask for, as pydantic models, and how they are read."""

from functools import cached_property
from typing import Annotated, Any, Literal, TypeVar

from PIL import Image
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    PrivateAttr,
    ValidationError,
    create_model,
    model_validator,
)
from pydantic_core import from_json
from starlette.exceptions import HTTPException
from starlette.requests import Request

from mmfusion.retrieval.filters import alternatives_of
from mmfusion.retrieval.ranking import Mode, Ranking
from mmfusion.serving import ServiceLimits

# Each looks at a column of the whole index, and holds a byte per product.
_MAX_CONDITIONS = 32
_MAX_BOOSTS = 8


def _with_text(query: str) -> str:
    if not query.strip():
        raise ValueError("give a text to search for")
    return query


def _conditions(filter: Any) -> Any:
    if filter is None:
        return None
    # In an address it is written as JSON.
    read = from_json(filter, allow_inf_nan=False) if isinstance(filter, str) else filter
    count = sum(map(len, alternatives_of(read)))
    if count > _MAX_CONDITIONS:
        raise ValueError(f"there are {count:,} conditions; give at most {_MAX_CONDITIONS}")
    return read


def _read_object(value: Any) -> Any:
    # In an address it is written as JSON.
    return from_json(value, allow_inf_nan=False) if isinstance(value, str) else value


class SearchRequest(BaseModel, extra="forbid"):
    """A query, the number of hits wanted (None: as many as is usual), conditions on metadata, and what to rank by.

    The last five are the fields of [`Ranking`].
    """

    query: Annotated[str, AfterValidator(_with_text)]
    k: int | None = None
    filter: Annotated[Any, AfterValidator(_conditions)] = None
    mode: Mode = "vectors"
    weight: float | None = None
    group_by: str | None = None
    boosts: Annotated[dict[str, float], BeforeValidator(_read_object)] = Field(default={}, max_length=_MAX_BOOSTS)
    min_score: float | Literal["calibrated"] | None = None
    # Decoded; a form brings one, see `PhotoQueries`.
    _photo: Image.Image | None = PrivateAttr(None)

    @property
    def photo(self) -> Image.Image | None:
        """A photo that is searched for, perhaps with words; None: words alone are."""
        return self._photo

    @photo.setter
    def photo(self, photo: Image.Image | None) -> None:
        self._photo = photo

    @cached_property
    def ranking(self) -> Ranking:
        """What to rank by.

        Raises:
            RankingError: A value is out of range, or does not go with the mode.
        """
        return Ranking(self.mode, self.weight, self.group_by, self.boosts, self.min_score)

    @model_validator(mode="after")
    def _can_be_ranked(self) -> "SearchRequest":
        _ = self.ranking
        return self


class ProductRequest(BaseModel, extra="forbid"):
    """A product's id, how many products most like it are wanted, and conditions on the metadata of these."""

    product_id: str
    k: int | None = None
    filter: Annotated[Any, AfterValidator(_conditions)] = None


Model = TypeVar("Model", bound=BaseModel)


def limited_models(limits: ServiceLimits) -> tuple[type[SearchRequest], type[ProductRequest]]:
    """The models of requests with the limits of a service."""
    k: Any = (Annotated[int, Field(ge=1, le=limits.max_k)] | None, None)
    query: Any = (Annotated[str, Field(max_length=limits.max_query_chars), AfterValidator(_with_text)], ...)
    return (
        create_model("Search", __base__=SearchRequest, query=query, k=k),
        create_model("Product", __base__=ProductRequest, k=k),
    )


async def read(request: Request, model: type[Model], max_body_kib: int) -> Model:
    """What a GET request's address or a POST request's JSON body asks for.

    Raises:
        ValidationError: Something is missing, unknown, of another type or beyond the limits.
        HTTPException: The body is too large, or the address of a POST holds parameters.
        ClientDisconnect: The client left before its request had arrived.
    """
    query = request.query_params
    if request.method != "POST":
        # A name that appears twice has a list of values, which no field accepts.
        given = {name: values[0] if len(values := query.getlist(name)) == 1 else values for name in query}
        return model.model_validate({**given, **request.path_params})
    if query:
        raise HTTPException(
            400, f"{short(repr(next(iter(query))))} is in the address; a POST says everything in its body."
        )
    return model.model_validate_json(await body_of(request, max_body_kib), strict=True)


async def body_of(request: Request, max_kib: int) -> bytes:
    """The body of a request.

    Raises:
        HTTPException: It is too large.
        ClientDisconnect: The client left before it had arrived.
    """
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > max_kib * 1024:
            raise HTTPException(413, f"the body has more than {max_kib:,} KiB.")
    return bytes(body)


def reason(error: ValidationError) -> str:
    """The first thing that is wrong with a request, in one line: place, reason and value."""
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"])) or "the body"
    return (
        short(f"{place}: {first['msg'].removeprefix('Value error, ')}", 300)
        + f" (given: {short(repr(first['input']))})"
    )


def short(text: str, most: int = 80) -> str:
    """The beginning of a text."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
