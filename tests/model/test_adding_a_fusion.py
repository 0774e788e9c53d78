"""docs/adding-a-fusion.md does what it says: a fusion and a loss from outside, saved, published and loaded again."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from bare_environment import build_bare_environment, run_bare
from dense_losses import of_table
from loopback_hub.client import forget_remote_code
from published_model import embed
from tiny_encoders import tiny_model

from mmfusion import MMFusionModel, MMFusionProcessor
from mmfusion.commands import load_command, run_command
from mmfusion.data.toy_catalogue import write_toy_catalogue
from mmfusion.data.toy_encoders import write_toy_encoders
from mmfusion.losses import LOSSES, register_loss
from mmfusion.model import FUSIONS, Fusion, MMFusionConfig, register_fusion
from mmfusion.stages import Stage2

PAGE = Path(__file__).parents[2] / "docs" / "adding-a-fusion.md"
BLOCKS = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE.read_text("utf-8"), re.S))


@pytest.fixture(autouse=True)
def _registries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    known = {**FUSIONS}, {**LOSSES}
    yield
    for registry, before in zip((FUSIONS, LOSSES), known, strict=True):
        registry.clear()
        registry.update(before)  # type: ignore[arg-type]
    for name in ("my_fusion", "my_loss"):
        sys.modules.pop(name, None)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the page's files, from which Python imports."""
    for name, text in BLOCKS.items():
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    importlib.invalidate_caches()
    yield tmp_path
    # The search path that transformers added for them goes with the one of this fixture.
    forget_remote_code()


@pytest.fixture
def saved(folder: Path) -> tuple[MMFusionModel, MMFusionProcessor]:
    """What the page saves under `model`."""
    encoders = write_toy_encoders(folder / "encoders")
    values: dict[str, Any] = {"TEXT": str(encoders.text), "VISION": str(encoders.vision)}
    exec(BLOCKS["use_my_fusion.py"], values)
    return values["model"], values["processor"]


def test_the_page_adds_each_in_under_forty_lines() -> None:
    for name in ("my_fusion.py", "my_loss.py"):
        assert BLOCKS[name].count("\n") < 40


def test_a_fusion_is_saved_with_its_parameters_and_its_code(
    saved: tuple[MMFusionModel, MMFusionProcessor], folder: Path
) -> None:
    config = json.loads((folder / "model" / "config.json").read_text())
    assert config["fusion"] == "my_gate" and config["fusion_kwargs"] == {"temperature": 0.5}
    text = (folder / "model" / "my_fusion.py").read_text()
    assert "from .fusion import Fusion\n" in text and "from .configuration_mmfusion import MMFusionConfig\n" in text
    assert "mmfusion.model" not in text
    again = MMFusionModel.from_pretrained("model")
    assert type(again.fusion) is FUSIONS["my_gate"] and again.fusion.temperature == 0.5
    for one, other in zip(embed(*saved), embed(again, saved[1]), strict=True):
        assert torch.equal(one, other)


def test_its_code_runs_where_the_caller_trusts_it(saved: tuple[MMFusionModel, MMFusionProcessor], folder: Path) -> None:
    expected = embed(*saved)
    del FUSIONS["my_gate"]
    with pytest.raises(ValueError, match=r"my_fusion\.MyGate.*trust_remote_code=True"):
        MMFusionModel.from_pretrained("model")
    model = MMFusionModel.from_pretrained("model", trust_remote_code=True)
    assert type(model.fusion).__module__.startswith("transformers_modules.")
    for one, other in zip(expected, embed(model, saved[1]), strict=True):
        assert torch.equal(one, other)
    # It goes along when the model is saved again, and the query tower needs none of it.
    model.save_pretrained("again")
    assert (folder / "again" / "my_fusion.py").read_text() == (folder / "model" / "my_fusion.py").read_text()
    assert MMFusionModel.from_pretrained("again", trust_remote_code=True).fusion.temperature == 0.5
    config = MMFusionConfig.from_pretrained("again", query_only=True)
    assert MMFusionModel.from_pretrained("again", config=config).config.query_only


def test_it_runs_where_mmfusion_is_not_installed(saved: tuple[MMFusionModel, MMFusionProcessor], folder: Path) -> None:
    saved[0].eval()
    python = build_bare_environment(folder / "bare")
    code = BLOCKS["load_my_fusion.py"] + (
        "import sys, torch\nfrom transformers import AutoProcessor\n"
        "processor = AutoProcessor.from_pretrained('model', trust_remote_code=True)\n"
        "with torch.inference_mode():\n"
        "    output = model.eval()(**processor(queries=['red dress'], products=[{'title': 'Red dress'}]))\n"
        "torch.save([output.query_embeds, output.product_embeds, output.modality_weights], 'found.pt')\n"
        "print([name for name in sys.modules if name == 'mmfusion' or name.startswith('mmfusion.')])\n"
    )
    (folder / "elsewhere").mkdir()
    shutil.move(folder / "model", folder / "elsewhere" / "model")
    environment = {**os.environ, "HF_MODULES_CACHE": str(folder / "modules")}
    assert run_bare(python, code, environment=environment, cwd=folder / "elsewhere").splitlines()[-1] == "[]"
    with torch.inference_mode():
        output = saved[0](**saved[1](queries=["red dress"], products=[{"title": "Red dress"}]))
    expected = [output.query_embeds, output.product_embeds, output.modality_weights]
    for one, other in zip(expected, torch.load(folder / "elsewhere" / "found.pt"), strict=True):
        torch.testing.assert_close(one, other)


def test_misspelled_and_wrong_parameters_are_errors(folder: Path) -> None:
    importlib.import_module("my_fusion")
    with pytest.raises(ValueError, match=r"fusion_kwargs names 'temprature'.*temperature"):
        MMFusionConfig(fusion="my_gate", fusion_kwargs={"temprature": 2.0})
    with pytest.raises(ValueError, match=r"temperature.*'hot'"):
        MMFusionConfig(fusion="my_gate", fusion_kwargs={"temperature": "hot"})
    with pytest.raises(ValueError, match="'gated' are none"):
        MMFusionConfig(fusion="gated", fusion_kwargs={"temperature": 2.0})
    assert MMFusionConfig(fusion="my_gate", fusion_kwargs={"temperature": 2}).fusion_kwargs == {"temperature": 2}
    with pytest.raises(ValueError, match=r"one of text_only.*my_gate, or import"):
        MMFusionConfig(fusion="my_gait")


def test_a_name_is_given_once_and_a_file_can_be_published(folder: Path) -> None:
    with pytest.raises(ValueError, match="'gated' is"):
        register_fusion("gated")(type("Other", (Fusion,), {}))
    with pytest.raises(ValueError, match="'sigmoid' is"):
        register_loss("sigmoid")(LOSSES["contrastive"])
    (folder / "reads_numpy.py").write_text("import numpy as np\n" + BLOCKS["my_fusion.py"])
    with pytest.raises(ValueError, match=r"reads_numpy\.py, line 1, imports numpy"):
        importlib.import_module("reads_numpy")
    (folder / "errors.py").write_text(BLOCKS["my_fusion.py"])
    with pytest.raises(ValueError, match=r"errors\.py would replace"):
        importlib.import_module("errors")


def test_a_loss_is_found_by_its_name(folder: Path) -> None:
    values: dict[str, Any] = {"model": tiny_model()}
    exec(BLOCKS["use_my_loss.py"], values)
    assert isinstance(values["stage"].graded_loss, LOSSES["my_margin"])
    left, right = (torch.nn.functional.normalize(torch.randn(4, 8), dim=-1).requires_grad_() for _ in range(2))
    value = LOSSES["my_margin"]()(left, right, of_table(torch.eye(4), [1]), torch.zeros(()))
    value.backward()
    assert value > 0 and left.grad is not None and left.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="loss is 'my_margn'; give one of contrastive, sigmoid, my_margin, or import"):
        Stage2(values["model"], loss="my_margn")


def test_commands_import_the_modules_that_the_variable_names(
    saved: tuple[MMFusionModel, MMFusionProcessor], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_toy_catalogue(folder / "catalogue", num_products=60)
    del FUSIONS["my_gate"], sys.modules["my_fusion"]
    places = ["--base", "model", "--catalogue", "catalogue"]
    arguments = [*places, "--output", "out", "--loss", "my_margin", "--steps", "1", "--batch_size", "4"]
    with pytest.raises(SystemExit, match=r"my_fusion\.MyGate.*trust_remote_code"):
        run_command(load_command("stage2"), arguments)
    monkeypatch.setenv("MMFUSION_IMPORT", "my_fusion, my_loss")
    run_command(load_command("stage2"), arguments)
    assert type(MMFusionModel.from_pretrained("out").fusion) is FUSIONS["my_gate"]
    monkeypatch.setenv("MMFUSION_IMPORT", "my_los")
    with pytest.raises(SystemExit, match="MMFUSION_IMPORT names the module 'my_los', which cannot be imported"):
        run_command(load_command("stage2"), arguments)
