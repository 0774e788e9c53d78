"""The session of docs/hub.md, as it is written there: train, publish, load by name where mmfusion is not installed."""

from __future__ import annotations

import logging
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bare_environment import build_bare_environment, run_bare
from loopback_hub.server import LoopbackHub
from markdown_snippets import python_snippets
from processes import started
from published_model import QUERIES, embed, products
from safetensors.torch import load as load_tensors

from mmfusion import MMFusionModel, MMFusionProcessor
from mmfusion.commands import load_command, run_command
from mmfusion.hub import load_card

CHECKOUT = Path(__file__).resolve().parents[2]
REPO = "org/mm-ecom"
# What is said later on a command line counts: as written, the session trains for two minutes.
SHORTER = {
    "stage1": "--steps 3 --batch_size 8 --validate_every 3 --num_products 80",
    "stage2": "--steps 3 --batch_size 8 --validate_every 3",
    "publish": "",
}
SAVE = """
import sys
assert "mmfusion" not in sys.modules and "transformers_modules" in type(model).__module__
names = [name for name in ("query_vectors", "product_vectors") if name in globals()]
torch.save({name: globals()[name] for name in names}, sys.argv[1])
"""


def commands(markdown: str) -> list[list[str]]:
    """The commands of the session in a text, each as its words after `mmfusion`."""
    (block,) = re.findall(r"```bash\n(mmfusion stage1 .*?--repo org/mm-ecom\n)```", markdown, re.DOTALL)
    return [shlex.split(line)[1:] for line in block.splitlines()]


def run(words: list[str]) -> None:
    """Runs a command as its command line does, but in this process."""
    name, *flags = words
    run_command(load_command(name), [*flags, *shlex.split(SHORTER[name])])


def kill_in_the_middle(hub: LoopbackHub, words: list[str], folder: Path) -> None:
    """Starts a push, and kills it while a file of weights is half on its way."""
    held = hub.hold_after(100_000, "/storage/", method="PUT")
    command = [sys.executable, "-m", "mmfusion", *words]
    # What a killed process leaves behind is to go with the folder.
    environment = {**hub.environment(folder / "killed_home"), "TMPDIR": str(folder)}
    try:
        with started(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
            assert held.reached.wait(600), "the push sent no weights"
    finally:
        held.released.set()


def product_only(folder: Path) -> set[str]:
    """Names of the parameters of a model that product vectors depend on, and query vectors do not."""
    model, processor = load(folder)
    used: list[set[str]] = []
    for vectors in (
        model.get_query_features(**processor(queries=QUERIES)),
        model.get_product_features(**processor(products=products())),
    ):
        model.zero_grad()
        vectors.sum().backward()
        used.append({name for name, value in model.named_parameters() if value.grad is not None})
    return used[1] - used[0]


def in_this_process(code: str) -> dict[str, Any]:
    """What a snippet computes where mmfusion is installed."""
    values: dict[str, Any] = {}
    exec(compile(code, "hub.md", "exec"), values)
    return values


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_session_of_the_page(
    hub: LoopbackHub,
    hub_client_environment: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    page = (CHECKOUT / "docs" / "hub.md").read_text("utf-8")
    monkeypatch.chdir(tmp_path)
    session = commands(page)
    for words in session:
        run(words)
    said = "".join(capfd.readouterr()) + caplog.text
    assert f"published: {hub.endpoint}/{REPO}/commit/" in said

    # The card has the same commands, and the snippets of the page with the revision pinned.
    card = load_card(REPO)
    assert commands(card.text) == session
    snippets = {snippet.heading: snippet.code for snippet in python_snippets(card.text)}
    whole, query = snippets["With transformers alone"], snippets["A search front end: the query tower alone"]
    (tag,) = hub.repo(REPO).tags
    head = f'repo, revision = "{REPO}", "{tag}"'
    for code in (whole, query):
        assert head in code
        assert f"```python\n{code.replace(tag, 'main')}```" in page

    # Where mmfusion is not installed: identical vectors, and of the query tower its share of the bytes.
    python, model = build_bare_environment(tmp_path / "bare"), tmp_path / "outputs" / "session2"
    vectors, moved = [], []
    for number, code in enumerate((whole, query)):
        hub.reset_counters()
        where = hub.environment(tmp_path / f"home{number}", token=False)
        said += run_bare(python, code + SAVE, str(tmp_path / "vectors.pt"), environment=where, cwd=tmp_path / "bare")
        vectors.append(torch.load(tmp_path / "vectors.pt", weights_only=True))
        moved.append({n.removeprefix(f"{REPO}/"): c for n, c in hub.bytes_sent.items() if n.startswith(REPO)})
    local = in_this_process(whole.replace(head, f"repo, revision = {str(model)!r}, None"))
    assert vectors[0].keys() == {"query_vectors", "product_vectors"}
    assert all(torch.equal(value, local[name]) for name, value in vectors[0].items())
    assert torch.equal(vectors[1]["query_vectors"], in_this_process(query)["query_vectors"])
    # Weights are read in place, and lie elsewhere in the file of the query tower: the last bit may round otherwise.
    torch.testing.assert_close(vectors[1]["query_vectors"], local["query_vectors"], rtol=0, atol=1e-6)
    files = hub.repo(REPO).files()
    assert {name for name in moved[1] if name.endswith(".safetensors")} == {"query/model.safetensors"}
    assert all(name.startswith("query/") or name.endswith(".py") for name in moved[1]), moved[1]
    left_out = product_only(model)
    assert {name.split(".")[0] for name in left_out} >= {"vision_model", "fusion"}
    assert not left_out & load_tensors(files["query/model.safetensors"]).keys()
    everything, share = (sum(counts.values()) for counts in moved)
    assert share < everything - len(files["model.safetensors"]) + len(files["query/model.safetensors"]) + 1000
    with capfd.disabled():
        print(f"\nquery tower: {share:,} of {everything:,} bytes moved ({share / everything:.0%})")

    # A push that is killed in the middle leaves the version before; the next one arrives.
    before = hub.repo(REPO).commit().oid
    newer = [*session[-1], "--base", "outputs/session1"]
    kill_in_the_middle(hub, newer, tmp_path)
    assert hub.repo(REPO).commit().oid == before and hub.repo(REPO).files() == files
    assert all(map(torch.equal, embed(*load(REPO)), embed(*load(model))))
    run(newer)
    assert all(map(torch.equal, embed(*load(REPO)), embed(*load(tmp_path / "outputs" / "session1"))))

    # Nothing that was said or written holds the token.
    said += "".join(capfd.readouterr()) + caplog.text
    assert hub.token not in said
    for name, content in {**files_below(tmp_path), **files, **hub.repo(REPO).files()}.items():
        assert hub.token.encode() not in content, name


def load(source: str | Path) -> tuple[Any, Any]:
    return MMFusionModel.from_pretrained(source), MMFusionProcessor.from_pretrained(source)
