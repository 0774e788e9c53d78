"""`lightning run` and `mmfusion run` are `python`; the rest of `lightning` is lightning-sdk's, in any install order."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import types
import venv
import zipfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import pytest
from lightning.fabric.strategies.launchers import subprocess_script
from PIL import Image
from processes import run_to_end, started

from mmfusion import cli
from mmfusion.commands import COMMANDS
from mmfusion.commands.quickstart import quickstart_steps
from mmfusion.data.toy_encoders import write_toy_encoders
from mmfusion.steps import check_steps, find_checkout, run_steps

CHECKOUT = Path(__file__).resolve().parents[2]

LIGHTNING = (sys.executable, "-c", "from mmfusion.cli import lightning; lightning()")
MMFUSION = (sys.executable, "-m", "mmfusion")

DESCRIBE_PROCESS = """
import json, os, sys
import __main__
print(json.dumps({
    "argv": sys.argv, "name": __name__, "path": sys.path, "file": __file__, "folder": os.getcwd(),
    "spec": __spec__ is None and __main__.__spec__ is None, "main": __main__.__dict__ is globals(),
    "executable": sys.executable, "pid": os.getpid(), "depth": len(__import__("inspect").stack()),
}))
"""


def run(*command: str | Path, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ, PYTHONPATH=str(CHECKOUT))
    # A script of ours is compared with what Python itself makes of it.
    fresh = not str(command[1]).startswith("-")
    return run_to_end(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, timeout=900, fresh=fresh)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """`recipes/describe.py` below tmp_path; prints what it can see of its process."""
    path = tmp_path / "recipes" / "describe.py"
    path.parent.mkdir()
    path.write_text(DESCRIBE_PROCESS)
    return path


@pytest.mark.parametrize("command", [LIGHTNING, MMFUSION], ids=["lightning", "mmfusion"])
@pytest.mark.parametrize(
    "arguments",
    [(), ("--flag", "two words", ""), ("--help",), ("--", "--config", "x"), ("-h", "--version", "run")],
)
def test_run_is_python(command: Sequence[str], arguments: tuple[str, ...], script: Path, tmp_path: Path) -> None:
    name = os.path.join("recipes", script.name)
    expected = run(sys.executable, name, *arguments, folder=tmp_path)
    found = run(*command, "run", name, *arguments, folder=tmp_path)
    assert (found.returncode, found.stderr) == (0, "")
    seen, wanted = json.loads(found.stdout), json.loads(expected.stdout)
    del seen["pid"], wanted["pid"]
    assert seen == wanted
    assert seen["argv"] == [name, *arguments]
    assert seen["path"][0] == str(script.parent)
    assert (seen["name"], seen["spec"], seen["main"], seen["depth"]) == ("__main__", True, True, 1)


def test_dashes_before_the_script_are_dropped(script: Path) -> None:
    found = run(*LIGHTNING, "run", "--", script, "--", "--flag")
    assert json.loads(found.stdout)["argv"] == [str(script), "--", "--flag"]


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot replace a process image")
def test_run_keeps_the_process_id(script: Path) -> None:
    with started([*MMFUSION, "run", script], stdout=subprocess.PIPE, text=True, cwd=CHECKOUT) as process:
        output, _ = process.communicate()
    assert json.loads(output)["pid"] == process.pid


@pytest.mark.parametrize(
    "body", ["raise SystemExit(7)", "raise ValueError('no')", "import os; os.kill(os.getpid(), 9)"]
)
def test_exit_codes_and_tracebacks_are_pythons(body: str, tmp_path: Path) -> None:
    script = tmp_path / "ends.py"
    script.write_text(body)
    expected, found = run(sys.executable, script), run(*LIGHTNING, "run", script)
    assert expected.returncode != 0
    assert (found.returncode, found.stderr) == (expected.returncode, expected.stderr)


def test_lightning_launches_the_script_again_for_other_ranks(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, arguments = os.path.join("recipes", script.name), ["--devices", "2"]
    first_rank = json.loads(run(*LIGHTNING, "run", name, *arguments, folder=tmp_path).stdout)
    # Lightning's launcher looks at these three in the first rank's process; importing it there costs many seconds.
    main_module = types.ModuleType("__main__")
    main_module.__spec__ = None if first_rank["spec"] else main_module.__spec__
    with monkeypatch.context() as patch:
        patch.chdir(first_rank["folder"])
        patch.setattr(sys, "argv", first_rank["argv"])
        patch.setitem(sys.modules, "__main__", main_module)
        command = list(subprocess_script._basic_subprocess_cmd())
    second_rank = json.loads(run(*command, folder=tmp_path).stdout)
    assert second_rank["argv"] == [str(script), *arguments]
    assert (second_rank["name"], second_rank["path"][0]) == ("__main__", str(script.parent))


@pytest.mark.slow
def test_two_ranks_of_a_real_launch_run_the_script(tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(
        "import sys, torch\n"
        "from lightning.fabric import Fabric\n"
        "fabric = Fabric(accelerator='cpu', strategy='ddp', devices=int(sys.argv[2]))\n"
        "fabric.launch()\n"
        "total = fabric.all_reduce(torch.tensor(fabric.global_rank + 1.0), reduce_op='sum')\n"
        "if fabric.global_rank == 0:\n"
        "    print('sum', total.item(), __name__, sys.argv[1:])\n"
    )
    found = run(*LIGHTNING, "run", script.name, "--devices", "2", folder=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "sum 3.0 __main__ ['--devices', '2']" in found.stdout


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("recipes/stage9.py", "--flag"), "recipes/stage9.py"),
        (("recipes",), "'recipes'"),
        (("--trainer", "x.py"), "'--trainer'"),
        (("--",), "no script given"),
        ((), "no script given"),
    ],
)
def test_run_names_what_is_wrong_with_the_script(
    arguments: tuple[str, ...], named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_find_sdk_command", lambda: None)
    for command, name in ((cli.main, "mmfusion run"), (cli.lightning, "lightning run")):
        with pytest.raises(SystemExit) as ended:
            command(["run", *arguments])
        message = capsys.readouterr().err
        assert ended.value.code == 2
        assert message.startswith(f"{name}: error: ")
        assert named in message


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["run", "--help"]])
def test_lightning_without_sdk_explains_itself(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_find_sdk_command", lambda: None)
    with pytest.raises(SystemExit) as ended:
        cli.lightning(arguments)
    assert ended.value.code == 0
    output = capsys.readouterr().out
    assert "lightning run SCRIPT.py" in output
    assert "pip install lightning-sdk" in output


def test_lightning_without_sdk_refuses_other_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_find_sdk_command", lambda: None)
    with pytest.raises(SystemExit) as ended:
        cli.lightning(["studio", "list"])
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert "unknown command 'studio'" in message
    assert "pip install lightning-sdk" in message


def test_a_broken_sdk_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    broken = metadata.EntryPoint("lightning", "no_such_module_of_the_sdk:main", "console_scripts")
    monkeypatch.setattr(cli, "_find_sdk_command", lambda: broken)
    with pytest.raises(SystemExit) as ended:
        cli.lightning(["studio"])
    assert ended.value.code == 1
    assert "no_such_module_of_the_sdk" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["quickstart", "--out", "x"], ["quickstrat"], ["--verison"], []])
def test_mmfusion_refuses_what_it_does_not_know(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert "usage: mmfusion" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["stage3"]])
def test_help_and_mistyped_commands_do_not_wait_for_torch(arguments: list[str]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "mmfusion", *arguments]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=120)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "mmfusion.cli" in imported
    assert not imported & {"torch", "transformers", "lightning", "numpy", "pyarrow", "jsonargparse"}


def test_mmfusion_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["--help"])
    output = capsys.readouterr().out
    for command in ("run", "test", *COMMANDS):
        assert re.search(rf"^ +{command}\b", output, re.MULTILINE)


def test_steps_stop_at_the_first_failure_and_name_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    steps = {
        "write": ("-c", "open('written', 'w').close(); print('one')"),
        "break": ("-c", "raise SystemExit(5)"),
        "never": ("-c", "open('never', 'w').close()"),
    }
    assert run_steps(steps, tmp_path) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["written"]
    output, errors = capfd.readouterr()
    assert output.index("[1/3] write") < output.index("one") < output.index("[2/3] break")
    assert "[2/3] break: FAILED with exit code 5" in errors


def test_steps_end_with_what_the_last_one_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_steps({"only": ("-c", "print('last line')")}, tmp_path) == 0
    assert capfd.readouterr().out.endswith("last line\n")


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_step_ended_by_a_signal_counts_as_a_failure(tmp_path: Path) -> None:
    assert run_steps({"killed": ("-c", "import os; os.kill(os.getpid(), 9)")}, tmp_path) == 137


def test_pytest_gets_the_callers_arguments_in_order() -> None:
    arguments = ("-m", "slow", "tests/integration/test_cli.py", "-k", "ranks", "-n", "0")
    assert check_steps(arguments)["tests (pytest)"][-len(arguments) :] == arguments


def test_quickstart_runs_commands_and_writes_below_its_output(tmp_path: Path) -> None:
    for module, package, command, *arguments in quickstart_steps(tmp_path).values():
        assert (module, package) == ("-m", "mmfusion") and command in COMMANDS
        assert all(a.startswith(str(tmp_path)) for a in arguments if a.startswith(os.sep))


def test_checkout_is_found_from_a_folder_inside_it() -> None:
    assert find_checkout(CHECKOUT / "tests") == CHECKOUT


# The two install orders, with real console scripts in virtual environments of their own.

SDK_COMMAND = (
    "import sys\ndef main_cli():\n    print('sdk got', sys.argv[1:])\n    return 3 if 'fail' in sys.argv else 0\n"
)


@pytest.fixture(scope="module")
def sdk_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel named like lightning-sdk, with the entry points of its release 2026.10.13."""
    info = "lightning_sdk-2026.10.13.dist-info"
    entry_point = "lightning_sdk.cli.entrypoint:main_cli"
    files = {
        "lightning_sdk/__init__.py": "",
        "lightning_sdk/cli/__init__.py": "",
        "lightning_sdk/cli/entrypoint.py": SDK_COMMAND,
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: lightning_sdk\nVersion: 2026.10.13\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\nlightning = {entry_point}\nlightning-sdk = {entry_point}\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD"))
    path = tmp_path_factory.mktemp("sdk") / "lightning_sdk-2026.10.13-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
    return path


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of a new environment, in which nothing is installed yet.

    What wheels depend on is found where it is installed for the tests, except for this checkout itself.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    paths = {name: sysconfig.get_path(name) for name in ("purelib", "platlib")}
    own = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    (Path(own) / "dependencies.pth").write_text("\n".join(dict.fromkeys(paths.values())))
    return folder / ("Scripts" if os.name == "nt" else "bin")


def install(environment: Path, wheel: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--isolated", "--python", str(environment / "python")]
    options = ["install", "--quiet", "--no-deps", "--no-index", "--no-compile", "--force-reinstall", str(wheel)]
    done = subprocess.run([*pip, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def run_installed(*command: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def call_installed(environment: Path, name: str, *calls: list[str], folder: Path) -> list[tuple[int, str, str]]:
    """Code, output and errors of some calls of a command, in one process: each would import for many seconds."""
    code = """
import contextlib, io, json, sys
from mmfusion import cli
name, calls = sys.argv[1], json.loads(sys.argv[2])
for arguments in calls:
    code, output, errors = 0, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            getattr(cli, name)(arguments)
        except SystemExit as end:
            code = end.code or 0
    print(json.dumps([code, output.getvalue(), errors.getvalue()]))
"""
    done = run_installed(environment / "python", "-c", code, name, json.dumps(calls), folder=folder)
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def test_an_installed_package_works_without_a_checkout_and_in_both_orders_beside_the_sdk(
    environment: Path, built_wheel: Path, sdk_wheel: Path, script: Path, tmp_path: Path
) -> None:
    install(environment, built_wheel)
    calls = (["test"], ["--version"], ["quickstart", "--help"])
    refused, version, quickstart = call_installed(environment, "main", *calls, folder=tmp_path)
    assert refused[0] == 2 and "clone the repository" in refused[2] and refused[2].startswith("mmfusion test: error: ")
    assert version[1] == f"mmfusion {built_wheel.name.split('-')[1]}\n"
    assert "--output" in quickstart[1]
    flags = ["--output", tmp_path / "run", "--steps", "2", "--batch_size", "8", "--num_products", "60"]
    trained = run_installed(environment / "mmfusion", "stage1", *map(str, flags), folder=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "run" / "model.safetensors").is_file()

    # From a shop's files to an index.
    (tmp_path / "photos").mkdir()
    rows = ["sku;name;photo"]
    for number in range(24):
        Image.new("RGB", (32, 32), (10 * number, 90, 200 - 8 * number)).save(tmp_path / "photos" / f"{number}.png")
        rows.append(f"{number:03d};Dress {number};{number}.png")
    (tmp_path / "shop.csv").write_text("\n".join(rows))
    write_toy_encoders(tmp_path / "encoders")
    flags = ["--text", "encoders/text", "--vision", "encoders/vision", "--steps", "2", "--output", "shop"]
    fitted = run_installed(environment / "mmfusion", "fit", "shop.csv", *flags, folder=tmp_path)
    assert fitted.returncode == 0 and fitted.stdout.endswith("next: mmfusion serve --index shop/index\n"), fitted.stderr
    found = run_installed(environment / "mmfusion", "search", "dress 3", "--index", "shop/index", folder=tmp_path)
    assert "Dress" in found.stdout, found.stderr

    # The SDK comes later: `lightning` is its command.
    install(environment, sdk_wheel)
    found = run_installed(environment / "lightning", "run", script, folder=tmp_path)
    assert found.stdout == f"sdk got {['run', str(script)]}\n"
    found = run_installed(environment / "mmfusion", "run", script, "--flag", folder=tmp_path)
    assert json.loads(found.stdout)["argv"] == [str(script), "--flag"], found.stderr

    # Ours comes later: it runs scripts, and hands over the rest.
    install(environment, built_wheel)
    found = run_installed(environment / "lightning", "run", script, "--flag", folder=tmp_path)
    assert json.loads(found.stdout)["argv"] == [str(script), "--flag"], found.stderr
    to_the_sdk = (["studio", "list"], ["--help"], ["run", "job", "--name", "x"], ["run"], ["run", "--help"], [])
    *handed, fails, mistyped = call_installed(
        environment, "lightning", *to_the_sdk, ["fail"], ["run", "stage9.py"], folder=tmp_path
    )
    assert handed == [(0, f"sdk got {arguments}\n", "") for arguments in to_the_sdk]
    assert fails[0] == 3
    assert (mistyped[0], "stage9.py" in mistyped[2]) == (2, True)
