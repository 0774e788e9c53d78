"""Publish a model on the Hub, or a search page as a Space."""

from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import constants

from mmfusion.hub.publish import Published, publish
from mmfusion.training.run import RunError


@dataclass
class Config:
    """Settings of `mmfusion publish`.

    Attributes:
        base: Folder of the model. For a Space: its folder or Hub id; default: the one that the index was built with.
        repo: Hub id of a model, e.g. org/mm-ecom; created if missing.
        space: Hub id of a Space, e.g. org/search, in place of repo: a search page over an index, created if missing.
        index: Folder that `mmfusion index` wrote, for a Space; all columns of its products can be read there.
        output: Folder for the files of a Space, which replace those of a Space before.
        space_photos: Whether a Space gets small photos of the products. Whoever sees it can keep them.
        wheel: Wheel of mmfusion for a Space; default: it is made of this checkout or installation.
        private: Whether a repository that is created is private; default: a Space is, and a model is not.
        revision: Branch to write to, created if missing; default: main.
        create_pr: Whether to open a pull request instead of writing to the branch.
        dry_run: Whether to list the files and their sizes, and send nothing; those of a Space are written to output.
        results: Files or folders of `mmfusion evaluate` that the card reports, e.g. [outputs/evaluation]; a README.md
            in the model folder is taken as it is.
        ablation: Output folder of `mmfusion ablation` that the card reports.
        max_shard_size: Largest file of weights, e.g. 5GB; larger models are cut into several.
        message: First line of the commit; default: Publish the model, or the search page.
    """

    base: str | None = None
    repo: str | None = None
    space: str | None = None
    index: str = "outputs/index"
    output: str = "outputs/space"
    space_photos: bool = False
    wheel: str | None = None
    private: bool | None = None
    revision: str | None = None
    create_pr: bool = False
    dry_run: bool = False
    results: list[str] = field(default_factory=list)
    ablation: str | None = None
    max_shard_size: str = "5GB"
    message: str | None = None


def main(config: Config) -> None:
    """Sends weights, processor, code, card, recipe and license in one commit, and the query tower in `query/`.

    With `space`, a search page instead: the index, the query tower and mmfusion itself, as a Docker Space.

    The token is the one of `hf auth login` or of the variable HF_TOKEN.
    """
    published = _publish_model(config) if config.space is None else _publish_space(config, config.space)
    for name, size in published.files.items():
        print(f"{size:>15,}  {name}")
    for name in published.removed:
        print(f"{'deleted':>15}  {name}")
    whole = sum(published.files.values())
    print(f"{whole:>15,}  bytes in {len(published.files)} files")
    query = sum(size for name, size in published.files.items() if name.startswith("query/"))
    if query and config.space is None:
        share = query / (whole - query)
        print(f"{query:>15,}  of them in query/, for a search front end: {share:.1%} of the whole model")
    if published.url is None:
        print(f"dry run: nothing was sent to {published.repo}; next: the same command without --dry_run")
    elif config.space is not None:
        print(f"published: {published.url}; next: open {constants.ENDPOINT}/spaces/{config.space} once it is built")
    else:
        print(f"published: {published.url}; next: mmfusion card --show {published.repo}")


def _publish_model(config: Config) -> Published:
    if config.base is None or config.repo is None:
        raise RunError("give --base FOLDER and --repo org/name to publish a model, or --space org/name for an index.")
    _check_unused(config, ("space_photos", "wheel"), "for a Space; leave it out, or give --space in place of --repo.")
    return publish(
        config.base,
        config.repo,
        private=bool(config.private),
        dry_run=config.dry_run,
        results=config.results,
        ablation=config.ablation,
        max_shard_size=config.max_shard_size,
        revision=config.revision,
        create_pr=config.create_pr,
        message=config.message or "Publish the model",
    )


def _publish_space(config: Config, space: str) -> Published:
    from mmfusion.serving import check_installed
    from mmfusion.serving.space import publish_space

    _check_unused(config, ("repo", "results", "ablation"), f"for a model; leave it out, or leave out --space {space}.")
    if config.space_photos:
        check_installed()
    return publish_space(
        config.index,
        space,
        Path(config.output),
        base=config.base,
        wheel=None if config.wheel is None else Path(config.wheel),
        photos=config.space_photos,
        dry_run=config.dry_run,
        private=config.private,
        revision=config.revision,
        create_pr=config.create_pr,
        message=config.message or "Publish the search page",
    )


def _check_unused(config: Config, names: tuple[str, ...], reason: str) -> None:
    for name in names:
        if value := getattr(config, name):
            raise RunError(f"{name} {value!r} is {reason}")
