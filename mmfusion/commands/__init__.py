"""What `mmfusion COMMAND` and the recipes run: a module for each command, with its config and its `main`.

A config is a dataclass whose fields are the command's flags, and `main(config)` does the work. This module is light:
what a command needs is imported with the command.
"""

import inspect
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, get_args, get_type_hints

COMMANDS = {
    "import": "make a catalogue of a shop's own files",
    "fit": "import, train, evaluate, embed and index in one command",
    "base": "assemble a base model from pretrained text and vision encoders",
    "stage1": "fine-tune the encoders and align queries with titles and photos",
    "mine": "mine hard negatives for training",
    "stage2": "train a fusion network on top of aligned encoders",
    "evaluate": "measure a model, or BM25, on a split",
    "ablation": "train, evaluate and compare many variants",
    "report": "write an HTML page that compares models",
    "audit": "list products whose titles and photos disagree",
    "embed": "embed the products of a catalogue",
    "index": "build an index of embedded products",
    "search": "search an index by words or a photo",
    "serve": "serve an index over HTTP",
    "export": "export the query tower to ONNX",
    "export-vectors": "give embedded products to OpenSearch, or to PostgreSQL with pgvector",
    "card": "write the card of a model",
    "publish": "publish a model on the Hub",
    "quickstart": "train, evaluate, index and search on the toy catalogue",
}

# Names of modules that commands import first, with commas between them.
IMPORT_VARIABLE = "MMFUSION_IMPORT"


def load_command(name: str) -> Callable[[Any], None]:
    """The `main` of one of `COMMANDS`."""
    module = {"import": "import_files"}.get(name, name.replace("-", "_"))
    main: Callable[[Any], None] = import_module(f"mmfusion.commands.{module}").main
    return main


def parse_config(name: str, arguments: Sequence[str]) -> Any:
    """The config of one of `COMMANDS` from its flags; ends the process with code 2 where they are not understood."""
    return _parse(load_command(name), arguments, f"mmfusion {name}")


def run_command(
    main: Callable[[Any], None], arguments: Sequence[str] | None = None, *, prog: str | None = None
) -> None:
    """Runs a command with arguments from the command line.

    The fields of the config are the flags. Unknown and abbreviated flags are errors; `--print_config` prints all
    values, as a file that `--config` reads. An error that names value, place and remedy is printed without its
    traceback and ends the process with code 1; set `MMFUSION_TRACEBACK=1` to see where it came from. Ctrl-C ends the
    process with code 130. Modules that the environment variable `MMFUSION_IMPORT` names are imported first, so that
    they can register fusions and losses.

    Args:
        main: Function of a command; the type of its argument is a dataclass with documented fields. A class attribute
            `several = "sources"` makes this field a positional argument that takes all words, and `optional = "query"`
            one that may be left out.
        arguments: What follows the command's name; default: `sys.argv[1:]`.
        prog: Name of the command in its help; default: name of the script.
    """
    try:
        _import_named_modules()
        config = _parse(main, arguments, prog)
        _hide_bars_of_libraries()
        main(config)
    except Exception as error:
        if os.environ.get("MMFUSION_TRACEBACK") or not _explains_itself(error):
            raise
        sys.exit(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        # As a shell says of a process that SIGINT ended.
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def _parse(main: Callable[[Any], None], arguments: Sequence[str] | None, prog: str | None) -> Any:
    from jsonargparse import auto_cli

    (parameter,) = inspect.signature(main, eval_str=True).parameters.values()
    for kind, count in (("several", "+"), ("optional", "?")):
        if name := getattr(parameter.annotation, kind, ""):
            return _parse_positional(parameter.annotation, name, count, arguments, prog, inspect.getdoc(main))
    return auto_cli(
        parameter.annotation,
        args=None if arguments is None else list(arguments),
        as_positional=False,
        return_instance=True,
        prog=prog,
        description=inspect.getdoc(main),
        allow_abbrev=False,
    )


def _parse_positional(
    config: type[Any],
    name: str,
    count: str,
    arguments: Sequence[str] | None,
    prog: str | None,
    description: str | None,
) -> Any:
    """Parses as `auto_cli` does, which knows no positional argument that takes several words, or perhaps none."""
    import docstring_parser
    from jsonargparse import ArgumentParser

    documented = {one.arg_name: one.description for one in docstring_parser.parse(inspect.getdoc(config) or "").params}
    parser = ArgumentParser(prog=prog, description=description, allow_abbrev=False)
    parser.add_argument("--config", action="config")
    parser.add_argument(name, nargs=count, type=str, help=documented[name])
    parser.add_class_arguments(config, skip={name})
    words = _repeated(sys.argv[1:] if arguments is None else arguments, get_type_hints(config))
    values = vars(parser.instantiate(parser.parse_args(words)))
    del values["config"]
    return config(**values)


def _repeated(arguments: Sequence[str], types: dict[str, Any]) -> list[str]:
    """`--photos a --photos b` as `--photos [a,b]`, for flags that take one text or several: else the last one wins."""
    flags = {f"--{name}": list[str]() for name, kind in types.items() if {str, list[str]} <= set(get_args(kind))}
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        flag, equals, value = word.partition("=")
        given = value if equals else next(words, None) if flag in flags else None
        if flag in flags and given is not None:
            flags[flag].append(given)
        else:
            rest.append(word)
    for flag, values in flags.items():
        if values:
            rest += [flag, values[0] if len(values) == 1 else json.dumps(values)]
    return rest


def _import_named_modules() -> None:
    names = os.environ.get(IMPORT_VARIABLE, "")
    if names:
        # Last, so that a file of the current folder never replaces a library.
        sys.path.append(os.getcwd())
    for name in filter(None, names.split(",")):
        try:
            import_module(name.strip())
        except ImportError as error:
            raise ImportError(
                f"{IMPORT_VARIABLE} names the module {name!r}, which cannot be imported ({error}). Change into its "
                "folder, install its package, or correct the name."
            ) from error


def _hide_bars_of_libraries() -> None:
    """Leaves bars to the commands: those of libraries tell of shards and tensors, and fill logs."""
    # What is imported by now is all that a command needs; a light one waits for neither.
    names = ("transformers.utils.logging", "datasets", "huggingface_hub.utils")
    transformers, datasets, hub = (sys.modules.get(name) for name in names)
    shown = hub is not None and sys.stderr.isatty() and not hub.are_progress_bars_disabled()
    if transformers is not None:
        transformers.disable_progress_bar()
    if datasets is not None:
        datasets.disable_progress_bars()
    if hub is not None and shown:
        # A download may take minutes, and somebody is looking.
        hub.enable_progress_bars()


def _explains_itself(error: Exception) -> bool:
    # MMFusionError is a ValueError. Lightning's error about missing devices is known by its name, as Lightning takes
    # seconds to import.
    explained = isinstance(error, ValueError | ImportError | FileExistsError | FileNotFoundError)
    return explained or type(error).__name__ == "MisconfigurationException"
