"""Arguments of a run that goes on elsewhere: its own, and what the new machine has to say."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from mmfusion.training.hub_record import LOCAL_ARGUMENTS
from mmfusion.training.run import RunError, as_recorded, decisive

# May differ from machine to machine: it changes where and how fast the same steps are made.
_PER_MACHINE = ("hardware",)


def merged_arguments(
    main: Callable[..., None], given: Mapping[str, Any], recorded: Mapping[str, Any], run: object
) -> dict[str, Any]:
    """Arguments for `main`: those of the run where none are given, and none that contradict it.

    Args:
        main: Recipe; an argument counts as given where it differs from the default.
        given: Arguments that `main` was called with.
        recorded: Arguments of the run, JSON values.
        run: What the run is called in errors.

    Raises:
        RunError: An argument contradicts the run, or one of the run's own is not one that this recipe takes.
    """
    parameters = decisive(inspect.signature(main).parameters)
    unknown = sorted(set(recorded) - set(parameters))
    if unknown:
        raise RunError(
            f"{run} was made with {unknown[0]}, which this recipe does not know; continue it with the version of "
            "mmfusion that began it."
        )
    merged = {}
    for name, parameter in parameters.items():
        if name in LOCAL_ARGUMENTS:
            merged[name] = given[name]
        else:
            value = recorded.get(name, as_recorded({name: parameter.default})[name])
            merged[name] = _merge(name, given[name], parameter.default, value, run)
    if given["base"] not in (None, parameters["base"].default):
        raise RunError(f"--base {given['base']!r} is not for a run that goes on: {run} has its own; leave it out.")
    return merged


def _merge(name: str, given: Any, default: Any, recorded: Any, run: object) -> Any:
    if is_dataclass(default) and not isinstance(default, type):
        names = [field.name for field in fields(default)]
        if not isinstance(recorded, dict) or set(recorded) - set(names):
            raise RunError(f"{run} was made with {name} = {recorded!r}; continue it with the mmfusion that began it.")
        defaults = {field: getattr(default, field) for field in names}
        return type(default)(
            **{
                field: _merge(f"{name}.{field}", getattr(given, field), value, recorded.get(field, value), run)
                for field, value in defaults.items()
            }
        )
    if not _same_type(recorded, default):
        raise RunError(f"{run} was made with {name} = {recorded!r}, which is no value for it; name another revision.")
    if given in (default, recorded):
        return recorded
    if name.split(".")[0] in _PER_MACHINE:
        return given
    raise RunError(
        f"--{name} is {given!r}, but {run} was begun with {recorded!r}; leave it out to continue exactly, or begin a "
        "run of its own."
    )


def _same_type(value: Any, default: Any) -> bool:
    if default is None or isinstance(value, type(default)):
        return value is None or isinstance(value, (str, int, float, dict))
    return isinstance(default, float) and isinstance(value, int)
