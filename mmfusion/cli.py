"""The commands `mmfusion` and `lightning`.

Lightning 2.6 ships no `lightning` command, so this package does: `lightning run SCRIPT.py [ARGS]` is
`python SCRIPT.py [ARGS]`, and everything else goes to the command of the same name that lightning-sdk brings, where
that is installed. pip lets the package installed last own the name; `mmfusion run` is the same command under a name
that nobody else takes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import NoReturn

USAGE_ERROR = 2

_LIGHTNING_HELP = """\
usage: lightning run SCRIPT.py [ARGS]

Runs SCRIPT.py exactly as `python SCRIPT.py [ARGS]` does. This command comes with mmfusion, as Lightning 2.6 no longer
ships one; `mmfusion run SCRIPT.py [ARGS]` is the same.

Every other `lightning` command belongs to lightning-sdk, which is not installed here. To get it:
  pip install lightning-sdk
and then, as pip lets the package installed last own the name `lightning`, either use `mmfusion run` for scripts or
  pip install --force-reinstall --no-deps mmfusion     (from a checkout: pip install --no-deps -e .)
"""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The command `mmfusion`; ends the process.

    Args:
        arguments: What follows the command's name; default `sys.argv[1:]`.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    # What follows these two is not argparse's: it belongs to the script or to pytest, `--` and order included.
    if command == "run" and not _asks_for_help(rest):
        run_script(rest, command="mmfusion run")
    if command == "test" and not _asks_for_help(rest):
        _run_checks(rest)
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command == "quickstart":
        _run_quickstart(options.output)
    parser.print_help(sys.stderr)
    sys.exit(USAGE_ERROR)


def lightning(arguments: Sequence[str] | None = None) -> NoReturn:
    """The command `lightning`; ends the process.

    `run SCRIPT.py` is done here. Anything else is handed, untouched, to lightning-sdk's command of the same name.

    Args:
        arguments: What follows the command's name; default `sys.argv[1:]`.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["run"] and _names_script(arguments[1:]):
        run_script(arguments[1:], command="lightning run")
    sdk_command = _find_sdk_command()
    if sdk_command is not None:
        _hand_over(sdk_command, arguments)
    if arguments[:1] == ["--version"]:
        print(f"lightning, as shipped with mmfusion {_version()}")
        sys.exit(0)
    if not arguments or _asks_for_help(arguments) or (arguments[0] == "run" and _asks_for_help(arguments[1:])):
        print(_LIGHTNING_HELP, end="")
        sys.exit(0)
    if arguments[0] == "run":
        run_script(arguments[1:], command="lightning run")
    print(_LIGHTNING_HELP, end="", file=sys.stderr)
    _fail("lightning", f"unknown command {arguments[0]!r}")


def run_script(arguments: Sequence[str], command: str) -> NoReturn:
    """Becomes `python SCRIPT.py [ARGS]`.

    The process image is replaced rather than the script imported: `sys.argv`, `sys.path[0]`, `__main__`, exit codes,
    signals and the process id are then Python's own, and so is what Lightning's launcher repeats for its other ranks.

    Args:
        arguments: The script, optionally after a `--`, and the script's own arguments, which are not looked at.
        command: The command's name for error messages.
    """
    arguments = list(arguments[1:] if arguments[:1] == ["--"] else arguments)
    if not arguments:
        _fail(command, f"no script given; usage: {command} SCRIPT.py [ARGS]")
    script = arguments[0]
    if script.startswith("-"):
        _fail(command, f"{script!r} stands before the script; usage: {command} SCRIPT.py [ARGS]")
    if not script.endswith(".py"):
        _fail(command, f"{script!r} is not the name of a Python script (*.py); usage: {command} SCRIPT.py [ARGS]")
    if not os.path.isfile(script):
        _fail(
            command,
            f"there is no script {script!r} in {os.getcwd()!r}; check the spelling, or change into the checkout first "
            "(the recipes lie beside the package, not in it)",
        )
    _become([sys.executable, *arguments])


def _become(program: list[str]) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name == "nt":
        # Windows' exec starts a second process and returns to the shell at once.
        sys.exit(subprocess.call(program))
    os.execv(program[0], program)


def _names_script(arguments: Sequence[str]) -> bool:
    """Whether what follows `run` is ours: a `*.py`, existing or mistyped, possibly after `--`."""
    words = arguments[1:] if arguments[:1] == ["--"] else arguments
    return bool(words) and words[0].endswith(".py") and not words[0].startswith("-")


def _asks_for_help(words: Sequence[str]) -> bool:
    return bool(words) and words[0] in ("-h", "--help")


def _find_sdk_command() -> metadata.EntryPoint | None:
    try:
        entry_points = metadata.distribution("lightning-sdk").entry_points
    except metadata.PackageNotFoundError:
        return None
    return next((e for e in entry_points if e.group == "console_scripts" and e.name == "lightning"), None)


def _hand_over(entry_point: metadata.EntryPoint, arguments: list[str]) -> NoReturn:
    try:
        command = entry_point.load()
    except (ImportError, AttributeError) as error:
        _fail(
            "lightning",
            f"lightning-sdk is installed, but its command {entry_point.value!r} cannot be loaded ({error}); "
            "reinstall it with `pip install --force-reinstall lightning-sdk`. "
            "`lightning run SCRIPT.py` works without it",
            code=1,
        )
    sys.argv = [sys.argv[0], *arguments]
    sys.exit(command())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mmfusion", description="Two-tower product retrieval that fuses text and photos.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"mmfusion {_version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    run = commands.add_parser("run", help="the same as `python SCRIPT.py [ARGS]`, and as `lightning run`")
    run.add_argument("script", metavar="SCRIPT.py")
    run.add_argument("arguments", nargs="*", metavar="ARGS", help="the script's own; not looked at")
    test = commands.add_parser("test", help="lint, types and tests of the checkout")
    test.add_argument("arguments", nargs="*", metavar="PYTEST_ARGS", help="handed to pytest, for example `-m slow`")
    quickstart = commands.add_parser(
        "quickstart",
        help="training, evaluation, index and a search on the toy catalogue",
        allow_abbrev=False,
    )
    quickstart.add_argument(
        "--output", type=Path, default=None, metavar="DIR", help="folder for all results (default: outputs)"
    )
    return parser


def _run_checks(pytest_arguments: Sequence[str]) -> NoReturn:
    from .checks import check_steps
    from .steps import CheckoutNotFoundError, find_checkout, run_steps

    try:
        checkout = find_checkout()
    except CheckoutNotFoundError as error:
        _fail("mmfusion test", str(error))
    sys.exit(run_steps(check_steps(pytest_arguments), checkout))


def _run_quickstart(output: Path | None) -> NoReturn:
    from .quickstart import DEFAULT_OUTPUT, quickstart_steps
    from .steps import CheckoutNotFoundError, find_checkout, run_steps

    try:
        checkout = find_checkout()
    except CheckoutNotFoundError as error:
        _fail("mmfusion quickstart", str(error))
    folder = (output or DEFAULT_OUTPUT).expanduser().resolve()
    sys.exit(run_steps(quickstart_steps(folder), checkout))


def _version() -> str:
    try:
        return metadata.version("mmfusion")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _fail(command: str, message: str, code: int = USAGE_ERROR) -> NoReturn:
    print(f"{command}: error: {message}", file=sys.stderr)
    sys.exit(code)
