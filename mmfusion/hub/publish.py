"""Publishing a model: everything that belongs to it, looked through before it leaves the machine, in one commit."""

import json
import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.utils import validate_repo_id

import mmfusion
from mmfusion.hub.card import write_card
from mmfusion.hub.card_facts import fingerprint_of, weights_tag
from mmfusion.hub.private import check_no_secret, recipe_config
from mmfusion.model import MMFusionModel, MMFusionProcessor
from mmfusion.model.errors import HubError, explained
from mmfusion.retrieval.query_tower import PUBLISHED, write_query_tower

CARD, LICENSE = "README.md", "LICENSE"
# Fields in which transformers keeps where something was loaded from.
_ORIGINS = ("_name_or_path", "name_or_path", "tokenizer_file", "vocab_file", "special_tokens_map_file")
_SHORTEST_PATH = 6
# Files that hold no text.
_BINARY = {".safetensors", ".faiss", ".arrow", ".parquet", ".npy", ".whl"}
# Files of an earlier version that would be read, or mistaken, for part of the new one.
_SUPERSEDED = re.compile(rf"(?:{PUBLISHED}/)?(?:[^/]*\.safetensors(?:\.index\.json)?|[^/]*_mmfusion\.py|recipe\.json)")


@dataclass(frozen=True)
class Published:
    """What was published, or would be.

    Attributes:
        repo: Hub id.
        files: Sizes in bytes by name in the repository, with `/` between folders.
        removed: Names of files of the version before that are deleted.
        url: Page of the commit or pull request; None after a dry run.
        commit: Hash of the commit; None after a dry run.
        tag: The tag of these weights, to which the card's snippets are pinned; None after a dry run or for a pull
            request.
    """

    repo: str
    files: dict[str, int]
    removed: list[str]
    url: str | None = None
    commit: str | None = None
    tag: str | None = None


def publish(
    model: str | Path,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    dry_run: bool = False,
    results: Sequence[str | Path] = (),
    ablation: str | Path | None = None,
    max_shard_size: str = "5GB",
    message: str = "Publish the model",
    token: str | None = None,
) -> Published:
    """Publishes a model folder: weights, processor, code, card, recipe, license and the query tower by itself.

    The files go up first and one commit makes them visible. A push that breaks off leaves the version before as it
    was; run it again, and what has arrived is not sent twice.

    Args:
        model: Folder of a recipe, or of `save_pretrained` of model and processor.
        repo: Hub id (`org/name`), created if missing.
        private: Creates the repository as a private one.
        revision: Branch, created if missing; None is the default branch.
        create_pr: Opens a pull request instead of writing to the branch.
        dry_run: Gathers and checks the files, and sends nothing.
        results: Files or folders of mmfusion evaluate that the card reports, where the folder has no README.md.
        ablation: Output folder of mmfusion ablation that the card reports.
        max_shard_size: Largest file of weights, such as "5GB".
        message: First line of the commit.
        token: Write token; None takes the one of `hf auth login` or of HF_TOKEN.

    Raises:
        HubError: The folder holds no model, the repository cannot be written, or it is public where `private` was asked
            for. One line says which, and what to do.
    """
    with explained(repo, revision), TemporaryDirectory(prefix="mmfusion-publish-") as temporary:
        validate_repo_id(repo)
        folder = Path(temporary)
        files = gather(
            Path(model),
            folder,
            repo=repo,
            revision="main" if create_pr else None,
            results=[Path(path) for path in results],
            ablation=None if ablation is None else Path(ablation),
            max_shard_size=max_shard_size,
        )
        if dry_run:
            return Published(repo, files, [])
        published = push(
            folder,
            files,
            repo,
            superseded=_SUPERSEDED,
            private=private,
            revision=revision,
            create_pr=create_pr,
            message=message,
            token=token,
        )
        if create_pr:
            return published
        tag = weights_tag(fingerprint_of(folder))
        # The card's snippets are pinned to it. Weights that are published again keep their first commit.
        HfApi(token=token).create_tag(repo, tag=tag, revision=published.commit, exist_ok=True)
        return replace(published, tag=tag)


def push(
    folder: Path,
    files: Mapping[str, int],
    repo: str,
    *,
    superseded: re.Pattern[str],
    space_sdk: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    message: str,
    token: str | None = None,
) -> Published:
    """Sends files in one commit, to a repository that is created if missing.

    Args:
        folder: Where the files are.
        files: Sizes in bytes by name.
        repo: Hub id (`org/name`).
        superseded: Names of files of the version before that are deleted.
        space_sdk: What a Space runs by, such as "docker"; None: the repository is a model.
        private: Creates the repository as a private one; None: a Space is, and one that is public already may stay so.
        revision, create_pr, message, token: As of [`publish`].

    Raises:
        HubError: The repository is public where `private` was asked for, or it is a Space of another SDK.
    """
    api, kind = HfApi(token=token), None if space_sdk is None else "space"
    hidden = space_sdk is not None if private is None else private
    api.create_repo(repo, repo_type=kind, space_sdk=space_sdk, private=hidden or None, exist_ok=True)
    there = api.repo_info(repo, repo_type=kind)
    if private and not there.private:
        raise HubError(
            f"{repo} is public already, and --private does not change that; make it private in its settings, or "
            "choose another name."
        )
    if (sdk := getattr(there, "sdk", None)) not in (None, space_sdk):
        raise HubError(f"{repo} is a Space of the SDK {sdk}, not {space_sdk}; choose another name, or delete it.")
    if revision not in (None, "main") and not create_pr:
        api.create_branch(repo, branch=str(revision), repo_type=kind, exist_ok=True)
    names = api.list_repo_files(repo, revision=revision, repo_type=kind)
    removed = sorted(name for name in names if name not in files and superseded.fullmatch(name))
    with warnings.catch_warnings():
        # A Space holds an index, which huggingface_hub takes for a data set that went astray.
        warnings.filterwarnings("ignore", ".*commit a data file")
        commit = api.create_commit(
            repo,
            [
                *(CommitOperationAdd(name, folder / name) for name in files),
                *(CommitOperationDelete(name) for name in removed),
            ],
            commit_message=message,
            repo_type=kind,
            revision=revision,
            create_pr=create_pr,
        )
    return Published(repo, dict(files), removed, commit.pr_url or commit.commit_url, commit.oid)


def gather(
    model_folder: Path,
    folder: Path,
    *,
    repo: str,
    revision: str | None = None,
    results: Sequence[Path] = (),
    ablation: Path | None = None,
    max_shard_size: str = "5GB",
) -> dict[str, int]:
    """Writes all files that are published of a model into an empty folder.

    The model is loaded and saved again rather than copied, so that nothing else that is in its folder (checkpoints,
    logs, caches) can come along.

    Args:
        model_folder: Folder that a recipe, or `save_pretrained` of model and processor, wrote.
        folder: Empty folder.
        repo, revision: What the card's snippets load; None is the tag of the weights.
        results: Files or folders of mmfusion evaluate for the card, if there is no card yet.
        ablation: Output folder of mmfusion ablation for the card.
        max_shard_size: Largest file of weights, such as "5GB".

    Returns:
        Sizes of the files in bytes, by name.

    Raises:
        HubError: The folder holds no mmfusion model, or a text in it names a folder of this machine.
        CardError: A text in it holds a token.
    """
    for name, of in (("config.json", "model"), ("processor_config.json", "processor")):
        if not (model_folder / name).is_file():
            raise HubError(f"{model_folder} holds no {of} (no {name}); give the output folder of a recipe.")
    model = MMFusionModel.from_pretrained(model_folder)
    processor = MMFusionProcessor.from_pretrained(model_folder)
    # sentence-transformers shows those of the config, and the processor applies its own.
    for name in ("query_prompt", "product_prompt"):
        given, applied = getattr(model.config, name), getattr(processor, name)
        if given != applied:
            raise HubError(
                f"{model_folder}: {name} is {given!r} in config.json but {applied!r} in processor_config.json; make "
                "them equal."
            )
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    processor.save_pretrained(folder)
    if not model.config.query_only:
        write_query_tower(model, processor, folder / PUBLISHED)
    if (model_folder / "run.json").is_file():
        record = json.loads((model_folder / "run.json").read_text("utf-8"))
        _write_json(folder / "recipe.json", recipe_config(record))
    (folder / LICENSE).write_text(license_text(model_folder), "utf-8")
    if (model_folder / CARD).is_file():
        shutil.copyfile(model_folder / CARD, folder / CARD)
    else:
        write_card(model_folder, results=results, ablation=ablation, output=folder / CARD, repo=repo, revision=revision)
    make_public(folder, model_folder)
    return sizes_of(folder)


def sizes_of(folder: Path) -> dict[str, int]:
    """Sizes in bytes of all files below a folder, by their names with `/` between folders."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}


def make_public(folder: Path, *sources: Path) -> None:
    """Takes out of JSON files where something was loaded from, and looks through all texts for what is private.

    Args:
        folder: What is to be published.
        sources: Folders that it was made of.

    Raises:
        HubError: A text names one of them, or the working or home directory.
        CardError: A text holds a token.
    """
    for path in folder.rglob("*.json"):
        text = path.read_text("utf-8")
        content = json.loads(text, object_hook=_without_origins)
        if content != json.loads(text):
            _write_json(path, content, ensure_ascii=False, sort_keys=True)
    _check_public(folder, private_places(*sources))


def private_places(*sources: Path) -> list[str]:
    """Folders of this machine that nothing public may name: these, the working and the home directory."""
    places = [str(path) for path in (*(source.absolute() for source in sources), Path.cwd(), Path.home())]
    return [place for place in places if len(place) >= _SHORTEST_PATH]


def _check_public(folder: Path, places: Sequence[str]) -> None:
    """Looks through all texts of a folder for tokens and for folders of this machine."""
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.suffix in _BINARY:
            continue
        name, text = path.relative_to(folder).as_posix(), path.read_text("utf-8", errors="replace")
        check_no_secret(text, name)
        for number, line in enumerate(text.splitlines(), start=1):
            found = next((place for place in places if place in line), None)
            if found is not None:
                raise HubError(f"{name}, line {number}, names the folder {found} of this machine; take it out.")


def license_text(model_folder: Path) -> str:
    """The text of the model's own license, or of this package's, which is in a checkout or with what is installed."""
    for folder in (model_folder, Path(mmfusion.__file__).parent.parent):
        if (folder / LICENSE).is_file():
            return (folder / LICENSE).read_text("utf-8")
    text = metadata.distribution("mmfusion").read_text(f"licenses/{LICENSE}")
    if text is None:
        raise HubError("The LICENSE of mmfusion is missing where it is installed; put a LICENSE into the model folder.")
    return text


def _without_origins(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a JSON object that name no file or folder of this machine as their origin."""
    return {
        name: value
        for name, value in fields.items()
        if name not in _ORIGINS
        or not isinstance(value, str)
        or not (Path(value).is_absolute() or value.startswith((".", "~")) or Path(value).exists())
    }


def _write_json(path: Path, content: Any, **options: Any) -> None:
    path.write_text(json.dumps(content, indent=2, **options) + "\n", "utf-8")
