"""`--resume hub:org/run@revision`: continues a training of another machine here, exactly."""

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, snapshot_download
from jsonargparse import ArgumentError, ArgumentParser

from mmfusion.data.toy_catalogue import write_toy_catalogue
from mmfusion.files import link_or_copy, sha256_of
from mmfusion.model import MMFusionConfig, MMFusionModel
from mmfusion.model.errors import HubError, explain
from mmfusion.stages.lora import weights_without_adapters
from mmfusion.training.checkpoints import read_weights
from mmfusion.training.hub_checkpoints import CHECKPOINT, LOCAL_ARGUMENTS, MODEL_FOLDER, RECORD
from mmfusion.training.output_lock import NAME as LOCK
from mmfusion.training.output_lock import take_lock
from mmfusion.training.run import (
    NOT_RECORDED,
    RunError,
    is_first_rank,
    read_record,
    recorded_arguments,
    start_run,
    wait_for_first_rank,
)

_ADDRESS = re.compile(r"hub:(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?")
# Configs and tokenizer files: data only, and names that stay in their folder.
_DESCRIPTION = re.compile(re.escape(MODEL_FOLDER) + r"/[A-Za-z0-9][\w-]*(\.[\w-]+)*\.(json|txt|model|jinja)")
_WAIT_FOR_FIRST_RANK = 1800.0
# May differ from machine to machine: it changes where and how fast the same steps are made.
_PER_MACHINE = "hardware."

Config = TypeVar("Config")


@dataclass(frozen=True)
class HubAddress:
    """A repository of checkpoints and the branch, tag or commit in it."""

    repo: str
    revision: str

    @classmethod
    def parse(cls, text: str) -> "HubAddress":
        """Reads `hub:org/run@revision`; without a revision it is the branch that `HubCheckpoints` pushes to.

        Raises:
            HubError: The text is something else.
        """
        found = _ADDRESS.fullmatch(text)
        if found is None or ".." in text:
            raise HubError(
                f"--resume {text!r} is not an address on the Hub; give hub:org/run, or hub:org/run@revision with a "
                "branch, tag or commit. (A run in a folder of this machine is resumed by the command that started it.)"
            )
        return cls(found["repo"], found["revision"] or "checkpoints")

    def __str__(self) -> str:
        return f"hub:{self.repo}@{self.revision}"


def continue_from_hub(recipe: str, config: Config) -> Config:
    """Makes the output folder that of a run which was pushed to the Hub, ready to be resumed.

    Arguments are those of the run on the Hub. Only what belongs to a machine may differ: `catalogue` (it must
    have the same content), `feature_cache`, `log_to` and `hardware`. If the output folder holds the same run already,
    it is resumed from there.

    Args:
        recipe: Name of the command.
        config: Its config; the address is in `resume`.

    Returns:
        Config of the run, without `resume`: with it the command finds the checkpoint in the output folder.

    Raises:
        HubError: The address, repository, revision, checkpoint or download is not usable.
        RunError: An argument contradicts the run, or the output folder holds something else.
    """
    given: Any = config
    address, folder = HubAddress.parse(given.resume), Path(given.output).absolute()
    if given.dry_run:
        raise RunError(
            f"--dry_run writes nothing, and --resume {address} fetches a run into {folder}; resume without --dry_run, "
            "or plan the same training with --dry_run and without --resume."
        )
    record = read_record(folder)
    if record is None or record.get("resumed_from") != str(address):
        _check_is_free(folder, address)
        # All ranks look at the Hub, so that each finds what is wrong with the run or the arguments.
        commit, names, record, own = _find(recipe, given, address)
        if is_first_rank():
            with take_lock(folder, beside=True):
                _check_is_free(folder, address)
                _fetch(address, commit, names, record, own, folder)
        else:
            _wait_for_fetch(folder)
    arguments = (read_record(folder) or {})["arguments"]
    own = continued_config(replace(given, base=None), arguments, address)
    return replace(own, base=arguments["base"], catalogue=arguments["catalogue"])


def _find(recipe: str, given: Any, address: HubAddress) -> tuple[str, list[str], dict[str, Any], Any]:
    """A run on the Hub: its commit, so that all files are of one moment, their names, its record, and its config."""
    commit, names = _list(address)
    _check_trusted(address, bool(given.trust_checkpoint))
    record = _read_record(address, commit)
    if record["recipe"] != recipe:
        raise RunError(f"{address} is a run of {record['recipe']}, not {recipe}; continue it with that command.")
    config = continued_config(given, record["arguments"], address)
    if given.catalogue is None and not record.get("catalogue"):
        raise RunError(
            f"The catalogue of {address} was a folder of the machine that it started on; give --catalogue with the "
            "same products, queries and judgements."
        )
    return commit, names, record, config


def _fetch(
    address: HubAddress, commit: str, names: list[str], record: dict[str, Any], config: Any, folder: Path
) -> None:
    """Downloads, checks, and puts everything into place at once, so that a broken download leaves no output folder."""
    about, catalogue = record["checkpoint"], record.get("catalogue") or {}
    checkpoint = _download_checkpoint(address, commit, about)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "checkpoints").mkdir(parents=True)
    link_or_copy(checkpoint, partial / "checkpoints" / f"step={about['step']}.ckpt")
    _write_base(address, commit, names, checkpoint, partial / "base")
    if config.catalogue is None and "embedded" in catalogue:
        drawn = catalogue["embedded"]
        write_toy_catalogue(partial / "toy_catalogue", num_products=int(drawn["num_products"]), seed=int(drawn["seed"]))
        catalogue = {"source": str(folder / "toy_catalogue")}
    config = replace(config, base=str(folder / "base"), catalogue=config.catalogue or catalogue["source"])
    facts = {name: record.get(name) for name in ("base_reference", "catalogue_contents")}
    facts["extensions"] = record.get("extensions", [])
    start_run(
        partial,
        record["recipe"],
        recorded_arguments(config),
        resumed_from=str(address),
        resumed_commit=commit,
        **facts,
    )
    # What a job that was killed may have left.
    (folder / LOCK).unlink(missing_ok=True)
    os.replace(partial, folder)


def _list(address: HubAddress) -> tuple[str, list[str]]:
    """The commit that the revision points at, so that all files are of one moment, and its files."""
    try:
        info = HfApi().model_info(address.repo, revision=address.revision)
    except Exception as error:
        raise explain(error, address.repo, address.revision) from error
    names = [file.rfilename for file in info.siblings or []]
    missing = [name for name in (RECORD, CHECKPOINT) if name not in names]
    if missing or info.sha is None:
        raise HubError(
            f"{address} has no checkpoint ({' and '.join(missing)} missing); name a repository and branch that a "
            "training with --hub.repo has pushed to."
        )
    return info.sha, names


def _check_trusted(address: HubAddress, trusted: bool) -> None:
    """Refuses a checkpoint of others: it says which weights and optimizer states training continues with."""
    owner = address.repo.split("/")[0]
    if trusted or owner in _own_namespaces():
        return
    raise HubError(
        f"{address} belongs to {owner!r}, and neither your user nor an organisation that you may write to has this "
        "name: someone else's checkpoint decides on weights and arguments of your run (though it cannot run code). "
        "If you trust its owner, add --trust_checkpoint true."
    )


def _own_namespaces() -> set[str]:
    try:
        account = HfApi().whoami()
    except Exception:
        # Without a token, or with one that may not say whose it is, everyone counts as someone else.
        return set()
    writers = [org["name"] for org in account.get("orgs") or [] if org.get("roleInOrg") in ("admin", "write")]
    return {str(account.get("name")), *writers}


def _download(address: HubAddress, commit: str, names: list[str], *, force: bool = False) -> Path:
    """A folder with some files of a commit."""
    try:
        return Path(snapshot_download(address.repo, revision=commit, allow_patterns=names, force_download=force))
    except Exception as error:
        raise explain(error, address.repo, address.revision) from error


def _read_record(address: HubAddress, commit: str) -> dict[str, Any]:
    try:
        record = json.loads((_download(address, commit, [RECORD]) / RECORD).read_text("utf-8"))
        about = record["checkpoint"]
        usable = isinstance(record["arguments"], dict) and isinstance(record["recipe"], str)
        usable &= isinstance(about["step"], int) and isinstance(about["sha256"], str)
    except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError):
        usable = False
    if not usable:
        raise HubError(f"{RECORD} of {address} is not the record of a checkpoint; name another revision.")
    return dict(record)


def _download_checkpoint(address: HubAddress, commit: str, expected: Mapping[str, Any]) -> Path:
    # The library compares no checksum, and would take what arrived damaged from its cache the second time.
    for force in (False, True):
        path = _download(address, commit, [CHECKPOINT], force=force) / CHECKPOINT
        if sha256_of(path) == expected["sha256"]:
            return path
    raise HubError(
        f"{CHECKPOINT} of {address} arrived damaged, twice (its SHA-256 is not the one in {RECORD}); try again, or "
        "name another revision."
    )


def _write_base(address: HubAddress, commit: str, names: list[str], checkpoint: Path, folder: Path) -> None:
    """The model of the checkpoint as the base of the run: frozen weights are the base's, the others are overwritten."""
    folder.mkdir()
    described = [name for name in names if _DESCRIPTION.fullmatch(name)]
    downloaded = _download(address, commit, described)
    for name in described:
        shutil.copyfile(downloaded / name, folder / Path(name).name)
    if not (folder / "config.json").is_file():
        raise HubError(f"{address} has no {MODEL_FOLDER}/config.json; name another revision.")
    weights = weights_without_adapters(read_weights(checkpoint, mmap=True, map_location="cpu"))
    model = MMFusionModel(MMFusionConfig.from_pretrained(folder))
    prefix = "model."
    try:
        model.load_state_dict({n.removeprefix(prefix): value for n, value in weights.items() if n.startswith(prefix)})
    except RuntimeError as error:
        raise HubError(f"The config and the weights of {address} do not fit; name another revision.") from error
    model.save_pretrained(folder)


def _check_is_free(folder: Path, address: HubAddress) -> None:
    holds = folder.exists() and (not folder.is_dir() or any(path.name != LOCK for path in folder.iterdir()))
    # The first rank may have put the run there since.
    if holds and (read_record(folder) or {}).get("resumed_from") != str(address):
        raise RunError(
            f"The output folder {folder} holds something other than the run {address}; give another --output."
        )


def _wait_for_fetch(folder: Path) -> None:
    """Waits until the first rank has put the run into the output folder that all ranks share, or has given up."""
    seen = False

    def is_done() -> bool:
        nonlocal seen
        working = folder.with_name(f".{folder.name}{LOCK}").exists()
        if read_record(folder) is not None:
            return True
        if seen and not working:
            raise RunError(f"The first rank has not fetched the run into {folder}; see its error.")
        seen = seen or working
        return False

    wait_for_first_rank(
        is_done,
        _WAIT_FOR_FIRST_RANK,
        f"The first rank has not made {folder} within {_WAIT_FOR_FIRST_RANK:.0f} s; ranks need one output folder that "
        "all of them see.",
    )


def continued_config(given: Config, recorded: Mapping[str, Any], run: object) -> Config:
    """The config of a run that continues elsewhere: its own values where none are given, and none that contradict them.

    Args:
        given: Config of the command; a field counts as given where it differs from its default.
        recorded: Arguments of the run, JSON values.
        run: What the run is called in errors.

    Raises:
        RunError: A field contradicts the run, or the run was made with fields or values that the command does not take.
    """
    config: Any = given
    command = type(config)
    default, parser = command(), ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(command)
    values = {name: value for name, value in recorded.items() if name not in LOCAL_ARGUMENTS}
    try:
        own = command(**parser.instantiate(parser.parse_object(values)))
    except (ArgumentError, TypeError, ValueError) as error:
        raise RunError(
            f"{run} was made with arguments that this command does not take ({' '.join(str(error).split())}); name "
            "another revision, or continue it with the version of mmfusion that started it."
        ) from error
    if config.base not in (None, default.base):
        raise RunError(f"--base {config.base!r} is not for a run that continues: {run} has its own; leave it out.")
    free = {name: getattr(default, name) for name in (*LOCAL_ARGUMENTS, *NOT_RECORDED)}
    merged = _merge("", replace(config, **free), default, own, run)
    return replace(merged, **{name: getattr(config, name) for name in (*LOCAL_ARGUMENTS, "output", "hub")})


def _merge(prefix: str, given: Any, default: Any, recorded: Any, run: object) -> Any:
    """The recorded values, with those of the given ones that may differ."""
    changes = {}
    for name in (field.name for field in fields(given)):
        flag, value, own = f"{prefix}{name}", getattr(given, name), getattr(recorded, name)
        if is_dataclass(value):
            changes[name] = _merge(f"{flag}.", value, getattr(default, name), own, run)
        elif value not in (getattr(default, name), own):
            if not flag.startswith(_PER_MACHINE):
                raise RunError(
                    f"--{flag} is {value!r}, but {run} was started with {own!r}; leave it out to continue exactly, or "
                    "start a new run."
                )
            changes[name] = value
    return replace(recorded, **changes)
