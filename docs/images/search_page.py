"""Takes the pictures of the search page in README and docs, of a running service:

    mmfusion serve --index outputs/index --compare outputs/text_only_index --photo_queries true
    python docs/images/search_page.py http://127.0.0.1:8000

The catalogue is the toy one: its photos are drawn and its labels are synthetic.
"""

import io
import shutil
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

QUERY = "query=red+floral+dress"
PICTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "search-page": (f"/?{QUERY}&compare=0", {"viewport": {"width": 1280, "height": 860}}),
    "search-page-compare": (f"/?{QUERY}", {"viewport": {"width": 1280, "height": 860}, "color_scheme": "dark"}),
    "search-page-phone": (
        f"/?{QUERY}&compare=0",
        {"viewport": {"width": 390, "height": 780}, "device_scale_factor": 1.5},
    ),
}


def take(browser: Browser, address: str, name: str, settings: dict[str, Any]) -> None:
    page = browser.new_context(**settings).new_page()
    page.goto(address)
    page.wait_for_selector("a[data-hit]")
    page.wait_for_load_state("networkidle")
    path = Path(__file__).parent / f"{name}.webp"
    Image.open(io.BytesIO(page.screenshot())).save(path, "WEBP", quality=82, method=6)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def main(url: str) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, (address, settings) in PICTURES.items():
            take(browser, url + address, name, settings)
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/"))
