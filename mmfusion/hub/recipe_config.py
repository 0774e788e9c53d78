"""The recipe that made a model, as others may see it: no folders, users, hosts or tokens of this machine."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmfusion.files import replace_text
from mmfusion.hub.card_private import check_no_secret, public
from mmfusion.hub.errors import CardError

RECIPE_FILE = "recipe.json"
_SHOWN = ("recipe", "arguments", "versions", "python", "parameters", "seconds_since_start")
_SECRET = re.compile(r"(^|_)(token|secret|password|passwd|api_key|credentials?)($|_)", re.IGNORECASE)
_REMOVED = "(removed)"


def recipe_config(record: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a run's record that says how to repeat it, without what belongs to this machine alone.

    Args:
        record: Content of a run.json.

    Returns:
        Recipe, arguments, versions and time. Of a path the last part is kept ("…/fpi"), secrets read "(removed)".
    """
    shown = {name: record[name] for name in _SHOWN if name in record}
    config: dict[str, Any] = public(without_secrets(shown))
    return config


def write_recipe_config(run: Path, folder: Path) -> Path | None:
    """Writes the recipe of a run folder to `recipe.json` of another; None if no recipe made it.

    Args:
        run: Folder with a run.json.
        folder: Where the file goes.
    """
    path = run / "run.json"
    if not path.is_file():
        return None
    target = folder / RECIPE_FILE
    replace_text(target, json.dumps(recipe_config(json.loads(path.read_text("utf-8"))), indent=2) + "\n")
    return target


def without_secrets(value: Any) -> Any:
    """A copy of JSON-like values in which texts that hold a token, and what is named a secret, read "(removed)"."""
    if isinstance(value, Mapping):
        return {
            name: _REMOVED if _SECRET.search(str(name)) else without_secrets(inner) for name, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [without_secrets(inner) for inner in value]
    return _REMOVED if isinstance(value, str) and _is_secret(value) else value


def _is_secret(text: str) -> bool:
    try:
        check_no_secret(text, RECIPE_FILE)
    except CardError:
        return True
    return False
