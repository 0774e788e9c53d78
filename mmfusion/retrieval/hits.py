"""The hits of a query as a list, which a notebook shows with photos, and as an HTML page."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

from PIL import Image

from mmfusion.data.photos import PhotoError, decode_photo
from mmfusion.data.records import photo_struct
from mmfusion.model.photos import upright_rgb
from mmfusion.model.processing_mmfusion import photos_of
from mmfusion.pages import page_environment, thumbnail
from mmfusion.retrieval.products import IdLookup

if TYPE_CHECKING:
    from mmfusion.data.catalogue import Catalogue
    from mmfusion.retrieval.search import Hit

PhotoSource = Callable[[str], Any]
"""A product's photos by its id, as the column `image` of a catalogue has them; None where there are none."""

GENERATOR = '<meta name="generator" content="mmfusion search">'

_FOLDER = Path(__file__).parent
_IN_A_NOTEBOOK, _ON_A_PAGE = (150, 150), (360, 360)
_MOST_IN_A_NOTEBOOK = 50
# Shown apart from the other columns, or too long to be.
_APART = ("title", "price", "currency", "image_url", "attributes")


class Hits(list["Hit"]):
    """Hits of one query, best first. In a notebook they are shown with photos, where these are at hand.

    Attributes:
        query: The words that were searched for, None if there were none.
        image: The photo that was searched with, as it was given; None if there was none.
        photos: Where photos of products come from; None: from nowhere. Nothing is ever fetched.
    """

    def __init__(
        self,
        hits: Iterable[Hit] = (),
        *,
        query: str | None = None,
        image: Any = None,
        photos: PhotoSource | None = None,
    ) -> None:
        super().__init__(hits)
        self.query, self.image, self.photos = query, image, photos

    @overload
    def __getitem__(self, place: SupportsIndex) -> Hit: ...

    @overload
    def __getitem__(self, place: slice) -> Hits: ...

    def __getitem__(self, place: SupportsIndex | slice) -> Hit | Hits:
        found = super().__getitem__(place)
        if not isinstance(found, list):
            return found
        return Hits(found, query=self.query, image=self.image, photos=self.photos)

    def to_html(self, facts: Mapping[str, Any] | None = None) -> str:
        """A page of its own that needs nothing else: photos are in it, small.

        Args:
            facts: What else to say above the hits, by name, e.g. the index and the filter.
        """
        css = "".join((_FOLDER / name).read_text("utf-8") for name in ("hits.css", "sheet.css"))
        digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode("ascii")
        template = page_environment(_FOLDER, html=True).get_template("sheet.html")
        shown = {"css": css, "css_digest": digest, "generator": GENERATOR, "facts": facts or {}}
        return template.render(**self._shown(_ON_A_PAGE, len(self)), **shown)

    def _repr_html_(self) -> str:
        macros: Any = page_environment(_FOLDER, html=True).get_template("hits.html").module
        css = (_FOLDER / "hits.css").read_text("utf-8")
        return f"<style>{css}</style>{macros.grid(**self._shown(_IN_A_NOTEBOOK, _MOST_IN_A_NOTEBOOK))}"

    def _shown(self, size: tuple[int, int], most: int) -> dict[str, Any]:
        return {
            "query": self.query,
            "asked": None if self.image is None else _small(self.image, size),
            "photos": self.photos is not None,
            "cards": [self._card(hit, size) for hit in self[:most]],
            "more": max(0, len(self) - most),
        }

    def _card(self, hit: Hit, size: tuple[int, int]) -> dict[str, Any]:
        known = {name: value for name, value in hit.metadata.items() if value is not None and str(value).strip()}
        link = str(known.get("image_url", ""))
        return {
            "hit": hit,
            "title": str(known.get("title", "")),
            "price": " ".join(str(known[name]) for name in ("price", "currency") if name in known),
            # A browser runs what an address of another scheme says.
            "link": link if link.lower().startswith(("http://", "https://")) else "",
            "others": {name: str(value) for name, value in known.items() if name not in _APART},
            "thumbnail": {} if self.photos is None else _small(self.photos(hit.product_id), size),
        }


def catalogue_photos(catalogue: Catalogue) -> PhotoSource:
    """Photos of the products of a catalogue."""
    ids = IdLookup(catalogue.products.data.table)

    def photos(product_id: str) -> Any:
        row = ids.row_of(product_id)
        return None if row is None else catalogue.product(row).get("image")

    return photos


def _small(photos: Any, size: tuple[int, int]) -> dict[str, Any]:
    """The first photo that can be read as a small picture in a data URI, or why there is none."""
    reason = "no photo"
    for photo in photos_of(photos):
        try:
            return thumbnail(_opened(photo, size), size)
        except (PhotoError, ValueError, OSError):
            reason = "photo unreadable"
    return {"missing": reason}


def _opened(photo: Any, size: tuple[int, int]) -> Image.Image:
    if isinstance(photo, Image.Image):
        return upright_rgb(photo)
    # What is a URL stays one, which decode_photo does not fetch.
    return decode_photo(photo_struct(photo, str(Path.cwd())) or b"", min_size=size)
