"""Publishing a model: everything that belongs to it, in one commit."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.utils import validate_repo_id

from mmfusion.hub.card_facts import fingerprint_of, weights_tag
from mmfusion.hub.errors import HubError, explained
from mmfusion.hub.files import QUERY_FOLDER, PublishedFile, gather

# Files of an earlier version that would be read, or mistaken, for part of the new one.
_SUPERSEDED = re.compile(
    rf"(?:{QUERY_FOLDER}/)?(?:[^/]*\.safetensors(?:\.index\.json)?|[^/]*_mmfusion\.py|recipe\.json)"
)


@dataclass(frozen=True)
class Published:
    """What was published, or would be.

    Attributes:
        repo: Hub id.
        files: Files by name.
        removed: Names of files of the version before that are deleted.
        url: Page of the commit or pull request; None after a dry run.
        commit: Hash of the commit; None after a dry run.
        tag: The tag of these weights, to which the card's snippets are pinned; None after a dry run or for a pull
            request.
    """

    repo: str
    files: list[PublishedFile]
    removed: list[str]
    url: str | None = None
    commit: str | None = None
    tag: str | None = None

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(file.size for file in self.files)

    @property
    def query_bytes(self) -> int:
        """Size of the files of the query tower by itself; 0 if there is none."""
        return sum(file.size for file in self.files if file.name.startswith(f"{QUERY_FOLDER}/"))


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

    The files go up first and one commit makes them visible, so that a push that breaks off leaves the version before
    as it was; run it again, and what has arrived is not sent twice.

    Args:
        model: Folder of a recipe, or of `save_pretrained` of model and processor.
        repo: Hub id (`org/name`), created if missing.
        private: Creates the repository as a private one.
        revision: Branch, created if missing; None is the default branch.
        create_pr: Opens a pull request instead of writing to the branch.
        dry_run: Gathers and checks the files, and sends nothing.
        results: Files or folders of recipes/evaluate.py that the card reports, where the folder has no README.md.
        ablation: Output folder of recipes/ablation.py that the card reports.
        max_shard_size: Largest file of weights, such as "5GB".
        message: First line of the commit.
        token: Write token; None takes the one of `hf auth login` or of HF_TOKEN.

    Raises:
        HubError: The folder holds no model, the repository cannot be written, or it is public where `private` was asked
            for. One line says which, and what to do.
    """
    with explained(repo, revision):
        validate_repo_id(repo)
        with TemporaryDirectory(prefix="mmfusion-publish-") as temporary:
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
            api = HfApi(token=token)
            _open_repository(api, repo, private, None if create_pr else revision)
            removed = _superseded(api, repo, revision, files)
            adds = [CommitOperationAdd(file.name, folder / file.name) for file in files]
            commit = api.create_commit(
                repo,
                [*adds, *(CommitOperationDelete(name) for name in removed)],
                commit_message=message,
                revision=revision,
                create_pr=create_pr,
            )
            tag = None if create_pr else weights_tag(fingerprint_of(folder))
            if tag is not None:
                # The card's snippets are pinned to it. Weights that are published again keep their first commit.
                api.create_tag(repo, tag=tag, revision=commit.oid, exist_ok=True)
            return Published(repo, files, removed, commit.pr_url or commit.commit_url, commit.oid, tag)


def _open_repository(api: HfApi, repo: str, private: bool, branch: str | None) -> None:
    api.create_repo(repo, private=private or None, exist_ok=True)
    if private and not api.model_info(repo).private:
        raise HubError(
            f"{repo} is public already, and --private does not change that; make it private in its settings, or choose "
            "another name."
        )
    if branch is not None and branch != "main":
        api.create_branch(repo, branch=branch, exist_ok=True)


def _superseded(api: HfApi, repo: str, revision: str | None, files: Sequence[PublishedFile]) -> list[str]:
    new = {file.name for file in files}
    there = api.list_repo_files(repo, revision=revision)
    return sorted(name for name in there if name not in new and _SUPERSEDED.fullmatch(name))
