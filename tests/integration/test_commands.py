"""Configs of the commands: help, files that `--config` reads, and what a run records of them."""

import json
import re
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from commands import config_of

from mmfusion import cli
from mmfusion.commands import COMMANDS, parse_config
from mmfusion.model.errors import MMFusionError
from mmfusion.stages import Optimization
from mmfusion.training import recorded_arguments
from mmfusion.training.hub_resume import continued_config

REQUIRED = {
    "base": ["--text", "org/text", "--vision", "org/vision"],
    "publish": ["--base", "model", "--repo", "org/model"],
    "search": ["red dress"],
    "import": ["products.csv", "more.csv"],
    "fit": ["products.csv", "more.csv"],
}
# Commands that take their first arguments without a flag, under these names.
POSITIONAL = {"search": "query", "import": "sources", "fit": "sources"}
# What f4b0012 recorded in `run.json` where no flag was given.
RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "recorded_arguments.json").read_text())


@pytest.mark.parametrize("name", COMMANDS)
def test_help_describes_every_flag_without_a_checkout(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "recipes", None)
    monkeypatch.setenv("COLUMNS", "10000")
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0 and text.startswith(f"usage: mmfusion {name} ")
    config = parse_config(name, REQUIRED.get(name, []))
    for field in fields(config):
        if not is_dataclass(getattr(config, field.name)) and field.name != POSITIONAL.get(name):
            found = re.search(rf"^  --{field.name}\b[^\n]*?\s\s+(\S)", text, re.MULTILINE)
            assert found and found.group(1) != "(", f"{name} --{field.name} is not described"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_printed_config_is_read_again(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = REQUIRED.get(name, [])
    with pytest.raises(SystemExit):
        parse_config(name, [*given, "--print_config"])
    file = tmp_path / "config.yaml"
    file.write_text(capsys.readouterr().out)
    # A positional argument is not read from a file.
    positional = given if name in POSITIONAL else []
    assert parse_config(name, ["--config", str(file), *positional]) == parse_config(name, given)


@pytest.mark.parametrize("name", RECORDED)
def test_runs_record_what_they_always_did(name: str) -> None:
    found = recorded_arguments(config_of(name))
    if name == "mine":
        del found["num_workers"]
    assert found == RECORDED[name]


def test_a_run_that_goes_on_elsewhere_keeps_its_config() -> None:
    recorded = RECORDED["stage1"] | {"steps": 7, "batch_size": 16, "catalogue": "there", "base": "there"}
    given = config_of("stage1", output="here", catalogue="mine", resume="hub:org/run")
    given.hardware.num_workers = 3
    merged = continued_config(given, recorded, "it")
    assert (merged.steps, merged.batch_size, merged.hardware.num_workers) == (7, 16, 3)
    assert (merged.output, merged.catalogue, merged.resume, merged.base) == ("here", "mine", None, None)
    for name, value, message in (
        ("steps", 9, "--steps is 9, but it was started with 7; leave it out"),
        (
            "optimization",
            Optimization(0.5, 1e-3, 1e-3),
            r"--optimization\.learning_rate is 0\.5, but it was started with",
        ),
        ("base", "other", "--base 'other' is not for a run that continues"),
    ):
        with pytest.raises(MMFusionError, match=message):
            continued_config(config_of("stage1", **{name: value}), recorded, "it")


def test_commands_that_do_not_train_load_no_lightning() -> None:
    light = [name for name in COMMANDS if name not in ("stage1", "stage2", "embed", "ablation", "fit")]
    code = "import sys; from mmfusion import cli; from mmfusion.commands import load_command\n"
    code += "assert 'torch' not in sys.modules\n" + "".join(f"load_command('{name}')\n" for name in light)
    code = f"import sys; sys.argv = ['mmfusion']\n{code}assert 'lightning' not in sys.modules\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
