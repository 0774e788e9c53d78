"""`--resume hub:org/run@revision`: a training that began on another machine goes on here, exactly."""

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download

from mmfusion.data.toy_catalogue import write_toy_catalogue
from mmfusion.files import link_or_copy, sha256_of
from mmfusion.hub.errors import HubError, explain
from mmfusion.model import MMFusionConfig, MMFusionModel
from mmfusion.training.checkpoints import read_weights
from mmfusion.training.hub_record import CHECKPOINT, MODEL_FOLDER, RECORD, Config, continued_config
from mmfusion.training.output_lock import NAME as LOCK
from mmfusion.training.output_lock import take_lock
from mmfusion.training.run import (
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
                "branch, tag or commit. (A run in a folder of this machine is resumed by the command that began it.)"
            )
        return cls(found["repo"], found["revision"] or "checkpoints")

    def __str__(self) -> str:
        return f"hub:{self.repo}@{self.revision}"


def continue_from_hub(recipe: str, config: Config) -> Config:
    """Makes the output folder that of a run which was pushed to the Hub, ready to be resumed.

    Arguments are those of the run on the Hub. Only what belongs to a machine may be given anew: `catalogue` (it must
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
            "stop, and rehearse the same arguments without --resume."
        )
    if not is_first_rank():
        _wait_for(folder)
    record = read_record(folder)
    if record is None or record.get("resumed_from") != str(address):
        with take_lock(folder, beside=True):
            _check_is_free(folder, address)
            return _fetch(recipe, given, address, folder)
    arguments = record["arguments"]
    own = continued_config(replace(given, base=None), arguments, address)
    return replace(own, base=arguments["base"], catalogue=arguments["catalogue"])


def _fetch(recipe: str, given: Any, address: HubAddress, folder: Path) -> Any:
    """Downloads, checks, and puts everything into place at once, so that a broken download leaves no output folder."""
    commit, names = _list(address)
    _check_trusted(address, bool(given.trust_checkpoint))
    record = _read_record(address, commit)
    if record["recipe"] != recipe:
        raise RunError(f"{address} is a run of {record['recipe']}, not {recipe}; continue it with that command.")
    config = continued_config(given, record["arguments"], address)
    checkpoint = _download_checkpoint(address, commit, record["checkpoint"])
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "checkpoints").mkdir(parents=True)
    link_or_copy(checkpoint, partial / "checkpoints" / f"step={record['checkpoint']['step']}.ckpt")
    _write_base(address, commit, names, checkpoint, partial / "base")
    catalogue = given.catalogue or _catalogue(record, address, partial, folder)
    config = replace(config, base=str(folder / "base"), catalogue=catalogue)
    facts = {"resumed_from": str(address), "resumed_commit": commit, "base_reference": record.get("base_reference")}
    contents = {"catalogue_contents": record.get("catalogue_contents")}
    start_run(partial, recipe, recorded_arguments(config), **facts, **contents)
    # What a job that was killed may have left.
    (folder / LOCK).unlink(missing_ok=True)
    os.replace(partial, folder)
    return config


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
    """Refuses a checkpoint of others: it says which weights and optimizer states training goes on with."""
    owner = address.repo.split("/")[0]
    if trusted or owner in _own_namespaces():
        return
    raise HubError(
        f"{address} belongs to {owner!r}, and neither your user nor an organisation that you may write to has this "
        "name: a checkpoint of somebody else decides on weights and arguments of your run (though it cannot run code). "
        "If you trust its owner, add --trust_checkpoint true."
    )


def _own_namespaces() -> set[str]:
    try:
        account = HfApi().whoami()
    except Exception:
        # Without a token, or with one that may not tell whose it is, everybody is somebody else.
        return set()
    writers = [org["name"] for org in account.get("orgs") or [] if org.get("roleInOrg") in ("admin", "write")]
    return {str(account.get("name")), *writers}


def _download(address: HubAddress, commit: str, names: list[str], *, anew: bool = False) -> Path:
    """A folder with some files of a commit."""
    try:
        return Path(snapshot_download(address.repo, revision=commit, allow_patterns=names, force_download=anew))
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
    for anew in (False, True):
        path = _download(address, commit, [CHECKPOINT], anew=anew) / CHECKPOINT
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
    weights = read_weights(checkpoint, mmap=True, map_location="cpu")
    model = MMFusionModel(MMFusionConfig.from_pretrained(folder))
    prefix = "model."
    try:
        model.load_state_dict({n.removeprefix(prefix): value for n, value in weights.items() if n.startswith(prefix)})
    except RuntimeError as error:
        raise HubError(f"The config and the weights of {address} do not fit; name another revision.") from error
    model.save_pretrained(folder)


def _catalogue(record: Mapping[str, Any], address: HubAddress, partial: Path, folder: Path) -> str:
    found = record.get("catalogue") or {}
    if "embedded" in found:
        drawn = found["embedded"]
        write_toy_catalogue(partial / "toy_catalogue", num_products=int(drawn["num_products"]), seed=int(drawn["seed"]))
        return str(folder / "toy_catalogue")
    if isinstance(found.get("source"), str):
        return str(found["source"])
    raise RunError(
        f"The catalogue of {address} was a folder of the machine that it began on; give --catalogue with the same "
        "products, queries and judgements."
    )


def _check_is_free(folder: Path, address: HubAddress) -> None:
    if folder.exists() and (not folder.is_dir() or any(path.name != LOCK for path in folder.iterdir())):
        raise RunError(
            f"The output folder {folder} holds something else than the run {address}; give another --output."
        )


def _wait_for(folder: Path) -> None:
    """Waits until the first rank has put the run into place; ranks share the output folder."""
    wait_for_first_rank(
        lambda: read_record(folder) is not None,
        _WAIT_FOR_FIRST_RANK,
        f"The first rank has not made {folder} within {_WAIT_FOR_FIRST_RANK:.0f} s; ranks need one output "
        "folder that all of them see.",
    )
