"""Hits in a notebook and on a page: photos, escaping, and what is missing."""

import base64
import io
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmfusion.data.catalogue import Catalogue
from mmfusion.retrieval import Hit, Hits
from mmfusion.retrieval.hits import catalogue_photos

MARKUP = "<script>alert('x')</script> & \"quotes\""


def hits(**given: Any) -> Hits:
    shown = {"title": MARKUP, "price": 9.5, "currency": "EUR", "brand": "<b>Acme</b>", "nothing": None, "blank": " "}
    return Hits(
        [
            Hit("a/<i>1", 0.71, 1, {"text": 0.29, "image": 0.71}, shown),
            Hit("b", 0.5, 2, {}, {"title": None, "image_url": "https://shop.example/b.jpg?x=1&y=2"}),
            Hit("c", 0.4, 3, {}, {"title": "C", "image_url": "javascript:alert(1)"}),
        ],
        **given,
    )


def uris(html: str) -> list[Image.Image]:
    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', html)
    return [Image.open(io.BytesIO(base64.b64decode(one))) for one in found]


def test_photos_are_small_and_in_the_page() -> None:
    shown = {"a/<i>1": Image.new("RGB", (900, 600), "red"), "b": b"no photo", "c": "https://shop.example/c.jpg"}
    found = hits(query="red dress", image=Image.new("RGB", (30, 40), "blue"), photos=shown.get)
    page, cell = found.to_html(), found._repr_html_()
    assert [photo.size for photo in uris(page)] == [(30, 40), (360, 240)]
    assert [photo.size for photo in uris(cell)] == [(30, 40), (150, 100)]
    for html in (page, cell):
        assert html.count("photo unreadable") == 2
        assert "src=" not in re.sub('src="data:', "", html), "nothing else may be loaded"


def test_what_a_catalogue_says_is_escaped() -> None:
    page = hits(query=f"red {MARKUP}").to_html({"filter": MARKUP})
    for html in (page, hits()._repr_html_()):
        assert "<script>" not in html and "<b>Acme" not in html and "<i>1" not in html and "javascript:" not in html
        assert "&lt;script&gt;" in html and "9.5 EUR" in html and "photo 0.71" in html and "text 0.29" in html
        assert 'href="https://shop.example/b.jpg?x=1&amp;y=2"' in html
        assert "nothing" not in html and "no photo" not in html, "no photos are known, so none is missing"
    assert f"style-src 'sha256-{digest(page)}'" in page


def digest(page: str) -> str:
    import hashlib

    (css,) = re.findall("<style>(.*?)</style>", page, re.DOTALL)
    return base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()


def test_hits_are_a_list(tmp_path: Path) -> None:
    found = hits(query="red", photos={}.get)
    assert found == list(found) and found[0].rank == 1 and isinstance(found[:2], Hits)
    assert (found[:2].query, len(found[:2])) == ("red", 2)
    assert pickle.loads(pickle.dumps(hits(query="red"))).query == "red"
    assert "Nothing was found" in Hits(query="xyzzy")._repr_html_()
    many = Hits([Hit(str(place), 0.5, place) for place in range(1, 61)])
    assert "and 10 more" in many._repr_html_() and "more</p>" not in many.to_html()


def test_photos_come_from_the_catalogue(tmp_path: Path) -> None:
    Image.new("RGB", (20, 20), "red").save(tmp_path / "a.png")
    rows = [{"product_id": "a", "title": "A", "image": "a.png"}, {"product_id": "b", "title": "B", "image": None}]
    photos = catalogue_photos(Catalogue.from_records(rows, photo_root=tmp_path))
    found = Hits([Hit("a", 0.5, 1), Hit("b", 0.4, 2), Hit("unknown", 0.3, 3)], photos=photos)
    assert len(uris(found._repr_html_())) == 1 and found._repr_html_().count("no photo") == 2


@pytest.mark.parametrize("image", [b"text", "no/such.png", 7])
def test_a_query_photo_that_is_gone_is_said(image: Any) -> None:
    assert "photo unreadable" in hits(image=image)._repr_html_()
