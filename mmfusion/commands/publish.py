"""Publish a model on the Hub."""

from dataclasses import asdict, dataclass, field

from mmfusion.hub.publish import publish


@dataclass
class Config:
    """Settings of `mmfusion publish`.

    Attributes:
        base: Folder of the model.
        repo: Hub id, e.g. org/mm-ecom; created if missing.
        private: Whether a repository that is created is private.
        revision: Branch to write to, created if missing; default: main.
        create_pr: Whether to open a pull request instead of writing to the branch.
        dry_run: Whether to list the files and their sizes, and send nothing.
        results: Files or folders of `mmfusion evaluate` that the card reports, e.g. [outputs/evaluation]; a README.md
            in the model folder is taken as it is.
        ablation: Output folder of `mmfusion ablation` that the card reports.
        max_shard_size: Largest file of weights, e.g. 5GB; larger models are cut into several.
        message: First line of the commit.
    """

    base: str
    repo: str
    private: bool = False
    revision: str | None = None
    create_pr: bool = False
    dry_run: bool = False
    results: list[str] = field(default_factory=list)
    ablation: str | None = None
    max_shard_size: str = "5GB"
    message: str = "Publish the model"


def main(config: Config) -> None:
    """Sends weights, processor, code, card, recipe and license in one commit, and the query tower in `query/`.

    The token is the one of `hf auth login` or of the variable HF_TOKEN.
    """
    options = asdict(config)
    published = publish(options.pop("base"), options.pop("repo"), **options)
    for name, size in published.files.items():
        print(f"{size:>15,}  {name}")
    for name in published.removed:
        print(f"{'deleted':>15}  {name}")
    whole = sum(published.files.values())
    print(f"{whole:>15,}  bytes in {len(published.files)} files")
    if query := sum(size for name, size in published.files.items() if name.startswith("query/")):
        share = query / (whole - query)
        print(f"{query:>15,}  of them in query/, for a search front end: {share:.1%} of the whole model")
    if published.url is None:
        print(f"dry run: nothing was sent to {published.repo}; next: the same command without --dry_run")
    else:
        print(f"published: {published.url}; next: mmfusion card --show {published.repo}")
