"""README and docs/: Python blocks run, flags of shell blocks exist, and the pages build without a warning."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from published_model import write_model_folder

from mmfusion import Catalogue, Retriever
from mmfusion.commands import COMMANDS, parse_config
from mmfusion.data.toy_catalogue import write_toy_catalogue
from mmfusion.data.toy_encoders import write_toy_encoders

CHECKOUT = Path(__file__).resolve().parents[2]
PAGES = [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").rglob("*.md"))]
# These are run by test_hub_session.py, where mmfusion is not installed, and by tests/model/test_adding_a_fusion.py.
ELSEWHERE = ("hub.md", "adding-a-fusion.md")
RUN_HERE = [page for page in PAGES if page.name not in ELSEWHERE and "```python\n" in page.read_text("utf-8")]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the pages name: models, a catalogue, an index and a photo."""
    folder = tmp_path_factory.mktemp("docs")
    for name in ("org/mm-ecom", "outputs/stage1", "outputs/stage2"):
        write_model_folder(folder / name)
    write_toy_catalogue(folder / "my" / "catalogue", num_products=80)
    write_toy_encoders(folder / "encoders")
    retriever = Retriever.from_pretrained(folder / "outputs" / "stage2", device="cpu")
    products = Catalogue.load(folder / "my" / "catalogue", cache_dir=folder / "cache").products
    index = retriever.index(products.select_columns(["product_id", "title", "split", "image"])).index
    (folder / "outputs" / "index").mkdir()
    index.save(folder / "outputs" / "index" / "index")
    (folder / "photos").mkdir()
    Image.new("RGB", (40, 50), "red").save(folder / "photos" / "1.jpg")
    return folder


@pytest.mark.parametrize("page", RUN_HERE, ids=lambda page: page.name)
def test_python_blocks_run(page: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    for block in re.finditer(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
        exec(compile(block.group(1), f"{page.name}: {block.group(1)[:40]}", "exec"), {"__name__": "__main__"})


def commands() -> Iterator[tuple[str, list[str]]]:
    """Commands of ours in shell blocks, each with the page that has it."""
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                for place, word in enumerate(words):
                    script = re.fullmatch(r"recipes/(\w+)\.py", word)
                    after = words[place + 1 : place + 2]
                    if script:
                        yield page.name, [script.group(1), *words[place + 1 :]]
                    elif word == "mmfusion" and after and after[0] in COMMANDS:
                        yield page.name, words[place + 1 :]


def test_flags_of_shell_blocks_exist() -> None:
    found = list(commands())
    assert {words[0] for _, words in found} >= {"base", "stage1", "stage2", "evaluate", "embed", "index", "search"}
    for page, (name, *flags) in found:
        try:
            parse_config(name, [flag for flag in flags if flag != "…"])
        except SystemExit:
            pytest.fail(f"{page} has a command that is not understood: mmfusion {name} {shlex.join(flags)}")


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def test_pages_and_docstrings_build_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", str(tmp_path / "trees")]
    done = subprocess.run([*command, str(CHECKOUT / "docs"), str(tmp_path / "site")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "encode_products" in (tmp_path / "site" / "api.html").read_text("utf-8")
