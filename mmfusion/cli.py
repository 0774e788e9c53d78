"""The commands `mmfusion` and `lightning`.

Lightning 2.6 ships no `lightning` command, so this package does: `lightning run SCRIPT.py [ARGS]` is
`python SCRIPT.py [ARGS]`, and everything else goes to the command of the same name that lightning-sdk brings, where
that is installed. pip lets the package installed last own the name; `mmfusion run` is the same command under a name
that nobody else takes.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import NoReturn

from mmfusion.commands import COMMANDS, load_command, run_command

USAGE_ERROR = 2

_OTHER_COMMANDS = {
    "run SCRIPT.py": "the same as `python SCRIPT.py [ARGS]`, and as `lightning run`",
    "test": "lint, types and tests of a checkout; further arguments are pytest's, e.g. `-m slow`",
}

_HELP = """\
usage: mmfusion COMMAND [ARGS]

Two-tower product retrieval that fuses text and photos. `mmfusion COMMAND --help` lists the flags of a command.

options:
  -h, --help
  --version

commands:
""" + "".join(f"  {name:<15}{summary}\n" for name, summary in {**COMMANDS, **_OTHER_COMMANDS}.items())

_LIGHTNING_HELP = """\
usage: lightning run SCRIPT.py [ARGS]

Runs SCRIPT.py exactly as `python SCRIPT.py [ARGS]` does. This command comes with mmfusion, as Lightning 2.6 no longer
ships one; `mmfusion run SCRIPT.py [ARGS]` is the same.

Every other `lightning` command belongs to lightning-sdk, which is not installed here. To get it:
  pip install lightning-sdk
and then, as pip lets the package installed last own the name `lightning`, either use `mmfusion run` for scripts or
  pip install --force-reinstall --no-deps mmfusion     (from a checkout: pip install --no-deps -e .)
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command `mmfusion`.

    Args:
        arguments: What follows the command's name; default `sys.argv[1:]`.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if command in COMMANDS:
        run_command(load_command(command), rest, prog=f"mmfusion {command}")
    elif command in ("-h", "--help") or (command in ("run", "test") and _asks_for_help(rest)):
        print(_HELP, end="")
    elif command == "--version":
        print(f"mmfusion {_version()}")
    elif command == "run":
        run_script(rest, command="mmfusion run")
    elif command == "test":
        _run_checks(rest)
    else:
        print(_HELP, end="", file=sys.stderr)
        _fail("mmfusion", f"unknown command {command!r}" if command else "no command given")


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
    if script.startswith("-") or not script.endswith(".py"):
        _fail(command, f"{script!r} is not the name of a Python script (*.py); usage: {command} SCRIPT.py [ARGS]")
    if not os.path.isfile(script):
        _fail(
            command,
            f"there is no script {script!r} in {os.getcwd()!r}; check the spelling, or change into the checkout first "
            "(the recipes are not part of the package; `mmfusion stage2` is the same as recipes/stage2.py)",
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
    found = metadata.entry_points(group="console_scripts", name="lightning")
    return next((e for e in found if e.dist is not None and e.dist.name.replace("_", "-") == "lightning-sdk"), None)


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


def _run_checks(pytest_arguments: Sequence[str]) -> NoReturn:
    from mmfusion.steps import check_steps, find_checkout, run_steps

    checkout = find_checkout()
    if checkout is None:
        _fail(
            "mmfusion test",
            f"{os.getcwd()} is not in a checkout of mmfusion (a folder with pyproject.toml, mmfusion/ and tests/). The "
            "tests are not part of the installed package: clone the repository, change into it and run the command "
            "again.",
        )
    sys.exit(run_steps(check_steps(pytest_arguments), checkout))


def _version() -> str:
    try:
        return metadata.version("mmfusion")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _fail(command: str, message: str, code: int = USAGE_ERROR) -> NoReturn:
    print(f"{command}: error: {message}", file=sys.stderr)
    sys.exit(code)
