"""The search page in Chromium: what people see and do, and that the console stays empty."""

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from PIL import Image
from published_model import write_model_folder
from served_index import MARKUP, ODD_IDS, drawn_index, write_shop

from mmfusion.retrieval import Searcher
from mmfusion.retriever import Retriever
from mmfusion.serving import ServiceLimits
from mmfusion.serving.app import SearchService
from mmfusion.serving.page import SearchPage
from mmfusion.serving.photos import Photos, Thumbnails
from mmfusion.serving.server import bind

sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
expect = sync_api.expect
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("needs Chromium: apt-get install chromium", allow_module_level=True)

NO_ANSWER = "The service does not answer"


class Served:
    """A service in a thread, which can be stopped and started again at its address."""

    def __init__(self, make: Any) -> None:
        self._make, self.port = make, 0
        self.start()

    def start(self) -> None:
        bound = bind("127.0.0.1", self.port)
        bound.listen()
        self.port = bound.getsockname()[1]
        self._server = uvicorn.Server(uvicorn.Config(self._make(), log_config=None, timeout_graceful_shutdown=1))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [bound]})
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()


@pytest.fixture(scope="module")
def served(place: Path, encoder: Retriever) -> Iterator[Served]:
    index = write_shop(place, encoder)

    def make() -> Any:
        other = SearchService(Searcher(encoder, drawn_index(encoder, 60, seed=1)), None, ServiceLimits(), facets=[])
        photos = Photos(Thumbnails(str(place / "catalogue"), place), 64)
        page = SearchPage(["fused", "text only"], photos=photos, compared=other)
        return SearchService(Searcher(encoder, index), None, ServiceLimits(), page=page).app()

    running = Served(make)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        # As root, as in containers, Chromium has no sandbox.
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page(browser: Any, served: Served) -> Iterator[Any]:
    context = browser.new_context(base_url=f"http://127.0.0.1:{served.port}", viewport={"width": 1280, "height": 800})
    context.set_default_timeout(20_000)
    opened = context.new_page()
    opened.said = []
    opened.on("console", lambda message: opened.said.append(message.text))
    opened.on("pageerror", lambda error: opened.said.append(str(error)))
    yield opened
    context.close()
    # A service that is away is said by Chromium itself, and is what one test is about.
    assert [text for text in opened.said if "ERR_CONNECTION_REFUSED" not in text] == []


def titles(page: Any, within: str = "") -> list[str]:
    page.wait_for_selector(f"{within} a[data-hit]")
    found: list[str] = page.locator(f"{within} a[data-hit]").all_text_contents()
    return found


def search(page: Any, text: str) -> None:
    page.get_by_label("Search products").fill(text)
    page.keyboard.press("Enter")
    page.wait_for_selector("#toolbar:not([hidden])")


def shows_photo(image: Any) -> None:
    deadline = time.monotonic() + 20
    while image.evaluate("(one) => one.naturalWidth") < 2:
        assert time.monotonic() < deadline, "the photo was not loaded"
        time.sleep(0.02)


def test_a_search_shows_products_with_photo_price_weights_and_score(page: Any) -> None:
    page.goto("/")
    assert page.get_by_role("heading", name="Search 60 products").is_visible()
    page.keyboard.press("/")
    search(page, "red & <b>dress</b>")
    assert "query=red+%26+%3Cb%3Edress%3C%2Fb%3E" in page.url and page.title().startswith("red & <b>dress</b>")
    page.get_by_label("Compare with text only").uncheck()
    page.wait_for_selector("#content > .grid")
    page.get_by_label("Show").select_option("48")
    expect(page.locator(".card")).to_have_count(48)
    first = page.locator(".card").first
    assert "photo 0.71 · title 0.29" in first.inner_text() and ".50" in first.locator(".price").inner_text()
    assert page.locator("#toolbar .summary").inner_text().startswith("48 products · ")
    shows_photo(page.locator(".card img").first)
    page.reload()
    assert len(titles(page)) == 48


def test_titles_ids_and_values_of_any_text_are_shown_as_text(page: Any) -> None:
    page.goto("/?query=x&k=60&compare=0")
    ids = [*ODD_IDS[1:], *(f"p{row}" for row in range(len(ODD_IDS), 60))]
    assert sorted(titles(page)) == sorted([MARKUP, *(f"Product {name}".strip() for name in ids)])
    assert (
        page.get_by_role("checkbox", name="<i>Odd</i>").count() == 1
        and page.locator(".card i i, .facts i, img[src=x]").count() == 0
    )
    for name in ("Product 50% off/../x?y#z", "Product line break"):
        page.get_by_role("link", name=name, exact=True).click()
        page.wait_for_selector("section.product")
        expect(page.locator("section.product h2")).to_have_text(name)
        shows_photo(page.locator(".product img"))
        page.go_back()
        expect(page.locator(".card")).to_have_count(60)
    for name in ("p7", "p8"):
        page.goto(f"/?like={name}&compare=0")
        expect(page.locator("section.product .photo")).to_have_text("No photo")


def test_filters_are_in_the_address_and_the_back_button_takes_them_back(page: Any) -> None:
    page.goto("/?query=x&compare=0&k=60")
    assert len(titles(page)) == 60
    page.get_by_role("checkbox", name="Acme").check()
    expect(page.locator(".card")).to_have_count(20)
    page.get_by_label("Price, at most").fill("30")
    page.keyboard.press("Tab")
    expect(page.locator(".card")).to_have_count(10)
    page.get_by_role("checkbox", name="sale").check()
    expect(page.locator(".card")).to_have_count(5)
    shared = page.url
    page.go_back()
    page.go_back()
    expect(page.locator(".card")).to_have_count(20)
    assert (
        page.get_by_role("checkbox", name="Acme").is_checked()
        and page.get_by_label("Price, at most").input_value() == ""
    )
    page.go_back()
    expect(page.locator(".card")).to_have_count(60)
    page.goto(shared)
    assert len(titles(page)) == 5 and page.get_by_role("checkbox", name="sale").is_checked()
    page.get_by_role("link", name="Remove the filter Price at most 30").click()
    expect(page.locator(".card")).to_have_count(10)
    page.get_by_label("Price, at least").fill("1000")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Nothing found").wait_for()
    page.locator("main").get_by_role("link", name="Clear the filters").click()
    assert len(titles(page)) == 60


def test_what_is_ranked_by_can_be_chosen_as_far_as_the_index_offers_it(page: Any) -> None:
    page.goto("/?query=coat&compare=0&k=60")
    assert len(titles(page)) == 60
    page.get_by_text("Ranking").click()
    page.get_by_label("Words").check()
    expect(page.locator(".card")).to_have_count(1)
    assert titles(page) == [MARKUP] and "mode=words" in page.url
    page.get_by_label("Vectors").check()
    expect(page.locator(".card")).to_have_count(60)
    expect(page.get_by_label("Vectors")).to_be_focused()
    page.get_by_label("One product for each").select_option("item_group_id")
    expect(page.locator(".card")).to_have_count(10)
    page.get_by_label("Boost").select_option("price, much")
    page.get_by_label("Lowest score").select_option("0.7")
    page.get_by_text("Nothing found").wait_for()
    page.keyboard.press("Escape")
    page.get_by_role("link", name="Drop the lowest score").click()
    expect(page.locator(".card")).to_have_count(10)
    assert "boost:price" in (page.locator(".score").first.get_attribute("title") or "")


def test_two_models_are_shown_side_by_side(page: Any) -> None:
    page.goto("/?query=x&k=12")
    sides = [set(titles(page, f".side:nth-child({side})")) for side in (1, 2)]
    for side in (0, 1):
        only = page.locator(f".side:nth-child({side + 1}) .card.only a[data-hit]").all_text_contents()
        assert only and set(only) == sides[side] - sides[1 - side]
    assert page.get_by_role("heading", name="text only").is_visible()


def test_the_keyboard_walks_through_hits_to_more_like_one(page: Any) -> None:
    page.goto("/?query=x&compare=0")
    names = titles(page)
    page.keyboard.press("/")
    for key in ("ArrowDown", "ArrowRight", "ArrowRight", "ArrowLeft"):
        page.keyboard.press(key)
    assert page.evaluate("document.activeElement.innerText") == names[1]
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    assert page.evaluate("document.activeElement.innerText") == names[1]
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="More like this").wait_for()
    assert page.locator("section.product h2").inner_text() == names[1] and names[1] not in titles(page)
    page.get_by_role("link", name="Results for").click()
    page.wait_for_selector("section.product", state="detached")
    assert titles(page) == names
    page.go_back()
    page.get_by_role("heading", name="More like this").wait_for()


def test_what_is_wrong_is_said_on_the_page(page: Any) -> None:
    page.goto("/")
    page.get_by_label("Search products").fill("dress " * 1667)
    page.keyboard.press("Enter")
    page.get_by_text("It has 10,001 characters, and the service takes at most 1,000.").wait_for()
    page.goto('/?query=x&compare=0&filter=[["size","=",1]]')
    page.get_by_text("The filter names the field 'size'; this index has title, price").wait_for()
    page.get_by_role("main").get_by_role("link", name="Clear filters and settings").click()
    assert len(titles(page)) == 24
    assert "400 (Bad Request)" in page.said.pop()


def test_a_dead_service_is_said_and_asked_again(page: Any, served: Served) -> None:
    page.goto("/?query=x&compare=0")
    before = titles(page)
    served.stop()
    try:
        page.get_by_label("Search products").fill("another")
        page.keyboard.press("Enter")
        page.get_by_text(NO_ANSWER).wait_for()
        page.get_by_role("button", name="Try again").click()
        page.get_by_text(NO_ANSWER).wait_for()
    finally:
        served.start()
    page.get_by_role("button", name="Try again").click()
    assert len(titles(page)) == len(before)


@pytest.fixture(scope="module")
def of_photos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = write_model_folder(tmp_path_factory.mktemp("photos") / "model")
    colours = ("red", "green", "blue", "white", "black")
    rows = [{"product_id": name, "title": name, "image": Image.new("RGB", (40, 40), name)} for name in colours]
    searcher = Retriever.from_pretrained(folder, device="cpu").index(rows)
    cost = {"parameters": 1, "mib": 1.0}
    running = Served(lambda: SearchService(searcher, None, ServiceLimits(), page=SearchPage(), photo_cost=cost).app())
    yield running
    running.stop()


def test_a_photo_is_searched_for_alone_and_with_words(page: Any, of_photos: Served, tmp_path: Path) -> None:
    Image.new("RGB", (2400, 1200), "green").save(tmp_path / "photo.png")
    page.goto(f"http://127.0.0.1:{of_photos.port}/")
    sent = []
    page.on("request", lambda request: sent.append(request))
    page.get_by_label("Search by photo").set_input_files(tmp_path / "photo.png")
    shows_photo(page.get_by_alt_text("The photo that is searched for"))
    alone = titles(page)
    assert len(alone) == 5
    search(page, "in red")
    expect(page.locator(".asked")).to_be_visible()
    posted = [request for request in sent if request.method == "POST"]
    assert len(posted) == 2 and "query=in" in page.url and "photo=" in page.url
    page.go_back()
    expect(page.get_by_label("Search products")).to_have_value("")
    assert titles(page) == alone
    page.get_by_role("link", name=alone[0], exact=True).click()
    page.get_by_role("link", name="Results for the photo").click()
    expect(page.locator(".asked")).to_be_visible()
    (tmp_path / "photo.jpg").write_text("no photo")
    page.get_by_label("Search by photo").set_input_files(tmp_path / "photo.jpg")
    page.get_by_text("not an image in a known format").wait_for()
    page.get_by_role("link", name="Remove the photo").click()
    page.get_by_role("heading", name="Search 5 products").wait_for()
    page.goto(f"http://127.0.0.1:{of_photos.port}/?photo=gone&query=red")
    page.get_by_text("Choose it again").wait_for()
    page.get_by_role("link", name="Search without it").click()
    assert len(titles(page)) == 5
    assert page.evaluate(NAMELESS) == [] and "400 (Bad Request)" in page.said.pop()
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_contrast_and_controls_have_names_and_nothing_scrolls_sideways(page: Any, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    for address in ("/?query=x", "/?query=x&like=p20&compare=0"):
        page.goto(address)
        titles(page)
        for width in (390, 768, 1920):
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate(POOR_CONTRAST) == []
        assert page.evaluate(NAMELESS) == []


NAMELESS = """() => [...document.querySelectorAll("input, select, button")]
  .filter((one) => !(one.labels?.length || one.ariaLabel || one.innerText)).map((one) => one.outerHTML)"""

# Texts whose contrast with what is behind them is below 4.5 (WCAG 2.2, 1.4.3).
POOR_CONTRAST = """() => {
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const linear = (one) => one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = parts(colour).map((one) => linear(one / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const colour = getComputedStyle(one).backgroundColor;
      if (parts(colour)[3] !== 0) return colour;
    }
  };
  return [...document.querySelectorAll("body *")]
    .filter((one) => [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
    .filter((one) => one.checkVisibility())
    .map((one) => {
      const [a, b] = [light(getComputedStyle(one).color), light(behind(one))].sort((x, y) => y - x);
      return [one.className || one.tagName, (a + 0.05) / (b + 0.05)];
    })
    .filter(([, ratio]) => ratio < 4.5);
}"""
