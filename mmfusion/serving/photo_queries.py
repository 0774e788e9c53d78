"""Photos to search with: how a form brings one, and how it is decoded and answered, apart from words."""

import asyncio
import functools
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Annotated, Any

from PIL import Image
from pydantic import Field, create_model
from python_multipart import FormParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.exceptions import HTTPException
from starlette.requests import Request

from mmfusion.data.photos import decode_photo
from mmfusion.model.photos import PhotoError
from mmfusion.retrieval.ranking import CALIBRATED
from mmfusion.serving import ServiceLimits
from mmfusion.serving.batches import Answer, Asked, MicroBatcher, Searches
from mmfusion.serving.requests import SearchRequest, body_of, short

FORM = "multipart/form-data"
# Field of the form that holds the file.
_FIELD = "image"
# Photos are encoded together up to this many: on a CPU more only make the first ones wait.
_MAX_BATCH = 8
# What is larger is reduced where it is decoded, so that the thread that computes batches gets little to resize.
_SIDE = 1024


def is_form(request: Request) -> bool:
    """Whether a request brings a form, as a browser sends files."""
    return (
        request.method == "POST" and request.headers.get("content-type", "").partition(";")[0].strip().lower() == FORM
    )


class PhotoQueries:
    """Answers forms with a photo, words, or both. Searches by words alone never wait for a photo.

    Args:
        searches: Answers batches; its encoder embeds photos.
        model: What a request may ask for, beside its photo.
        limits: Of the service.
        cost: What the parts of the model that only photos need take: `parameters` and `mib`.
    """

    def __init__(
        self, searches: Searches, model: type[SearchRequest], limits: ServiceLimits, cost: Mapping[str, Any]
    ) -> None:
        self.cost = dict(cost)
        self._limits = limits
        words: Any = (Annotated[str, Field(max_length=limits.max_query_chars)], "")
        self._model = create_model("PhotoSearch", __base__=model, query=words)
        self.batcher: MicroBatcher[Asked, Answer] = MicroBatcher(
            searches.answer, max_batch=min(_MAX_BATCH, limits.max_batch), max_waiting=limits.max_photos_waiting
        )
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="photo-queries")
        self._busy = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answers until the end of the block."""
        async with AsyncExitStack() as stack:
            stack.callback(functools.partial(self._pool.shutdown, wait=False, cancel_futures=True))
            await stack.enter_async_context(self.batcher.running())
            yield

    async def read(self, request: Request) -> SearchRequest:
        """What a form asks for, with its photo decoded.

        Raises:
            HTTPException: 400, 413 or 503: there is neither photo nor words, the photo cannot be used, or too many
                are read already.
            ValidationError: A field is unknown, of another type or beyond the limits.
            TimeoutError: The photo was not decoded in time.
        """
        if self._busy >= self._limits.max_photos_waiting:
            text = f"{self._busy} photos are read already, as many as are taken; try again in a second."
            raise HTTPException(503, text, {"retry-after": "1"})
        self._busy += 1
        try:
            return await self._read(request)
        finally:
            self._busy -= 1

    async def _read(self, request: Request) -> SearchRequest:
        limits = self._limits
        if request.query_params:
            name = short(repr(next(iter(request.query_params))))
            raise HTTPException(400, f"{name} is in the address; a POST says everything in its body.")
        # The rest of the form is words, a filter, and what stands between the parts.
        body = await body_of(request, limits.max_photo_kib + limits.max_body_kib)
        loop = asyncio.get_running_loop()
        reading = loop.run_in_executor(self._pool, _read_form, body, request.headers["content-type"], limits)
        fields, photo = await asyncio.wait_for(reading, limits.timeout_s)
        asked = self._model.model_validate(fields)
        if photo is None and not asked.query.strip():
            raise HTTPException(400, f"the form has neither a photo ({_FIELD}) nor words (query); give one of them.")
        if photo is not None and (asked.mode == "words" or asked.min_score == CALIBRATED):
            raise HTTPException(
                400,
                f"mode {asked.mode!r} and min_score {asked.min_score!r} go with a photo only as 'vectors' or 'hybrid', "
                "and as a number.",
            )
        asked.photo = photo
        return asked


def _read_form(body: bytes, content_type: str, limits: ServiceLimits) -> tuple[dict[str, Any], Image.Image | None]:
    """The fields of a form, and its photo, decoded."""
    fields: dict[str, Any] = {}
    files: list[tuple[str, bytes, bytes]] = []

    def add_field(field: Any) -> None:
        name, value = _text(field.field_name), _text(field.value)
        # A name that appears twice has a list of values, which no field accepts.
        fields[name] = [fields[name], value] if name in fields else value

    def add_file(file: Any) -> None:
        file.file_object.seek(0)
        files.append((_text(file.field_name), file.file_name or b"", file.file_object.read()))
        file.close()

    try:
        _, options = parse_options_header(content_type)
        in_memory = {"MAX_MEMORY_FILE_SIZE": len(body) + 1, "UPLOAD_ERROR_ON_BAD_CTE": True}
        parser = FormParser(FORM, add_field, add_file, boundary=options.get(b"boundary"), config=in_memory)
        parser.write(body)
        parser.finalize()
    except (FormParserError, ValueError) as error:
        raise HTTPException(400, f"the form cannot be read: {short(str(error))}.") from error
    # A browser sends a nameless empty file where none was chosen, other clients an empty text.
    files = [one for one in files if one[1] or one[2]]
    if fields.pop(_FIELD, ""):
        raise HTTPException(400, f"{_FIELD} is a text; send the photo as a file.")
    if len(files) > 1 or any(name != _FIELD for name, *_ in files):
        names = ", ".join(short(repr(name)) for name, *_ in files[:5])
        raise HTTPException(400, f"the form has the files {names}; give one photo, as {_FIELD!r}.")
    return fields, _decode(files[0][2], limits) if files else None


def _decode(data: bytes, limits: ServiceLimits) -> Image.Image:
    if len(data) > limits.max_photo_kib * 1024:
        raise HTTPException(413, f"the photo has {len(data):,} bytes; at most {limits.max_photo_kib:,} KiB are taken.")
    try:
        photo = decode_photo(data, max_pixels=limits.max_photo_pixels, min_size=(_SIDE, _SIDE))
    except PhotoError as error:
        raise HTTPException(400, f"the photo cannot be used: {short(str(error), 200)}.") from error
    photo.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    return photo


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")
