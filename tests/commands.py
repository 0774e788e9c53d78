"""Calls the commands of `mmfusion` in this process, with their settings as keyword arguments."""

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Nothing:
    """The config of a command without settings."""


def main_of(name: str) -> Callable[[Any], None]:
    """The function of a command, e.g. for `run_command`."""
    main: Callable[[Any], None] = importlib.import_module(f"mmfusion.commands.{name.replace('-', '_')}").main
    return main


def config_of(name: str, /, *values: Any, **settings: Any) -> Any:
    """The config of a command; what is not given has its default."""
    return importlib.import_module(f"mmfusion.commands.{name.replace('-', '_')}").Config(*values, **settings)


def command(name: str, /) -> Callable[..., None]:
    """A command that takes its settings as arguments."""

    def run(*values: Any, **settings: Any) -> None:
        main_of(name)(config_of(name, *values, **settings))

    return run


def as_if_trained(base: str | Path) -> str:
    """Lets commands take a model that was only assembled; its vectors and fingerprint stay as they are."""
    path = Path(base) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "untrained_projection": ""}))
    return str(base)
