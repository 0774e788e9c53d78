"""Publish a model on the Hub."""

from mmfusion.hub.publish import publish
from mmfusion.training import run_command


def main(
    model: str,
    repo: str,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    dry_run: bool = False,
    results: list[str] | None = None,
    ablation: str | None = None,
    max_shard_size: str = "5GB",
    message: str = "Publish the model",
) -> None:
    """Sends weights, processor, code, card, recipe and license in one commit, and the query tower in `query/`.

    The token is the one of `hf auth login` or of the variable HF_TOKEN.

    Args:
        model: Folder of the model: the output folder of a recipe.
        repo: Hub id, e.g. org/mm-ecom; created if missing.
        private: Create it as a private repository.
        revision: Branch to write to, created if missing; default: main.
        create_pr: Open a pull request instead of writing to the branch.
        dry_run: List the files and their sizes, and send nothing.
        results: Files or folders of evaluate.py that the card reports; a README.md in the model folder is taken as it
            is.
        ablation: Output folder of ablation.py that the card reports.
        max_shard_size: Largest file of weights, e.g. 5GB; larger models are cut into several.
        message: First line of the commit.
    """
    published = publish(
        model,
        repo,
        private=private,
        revision=revision,
        create_pr=create_pr,
        dry_run=dry_run,
        results=results or [],
        ablation=ablation,
        max_shard_size=max_shard_size,
        message=message,
    )
    for file in published.files:
        print(f"{file.size:>15,}  {file.name}")
    for name in published.removed:
        print(f"{'deleted':>15}  {name}")
    print(f"{published.bytes:>15,}  bytes in {len(published.files)} files")
    if query := published.query_bytes:
        whole = published.bytes - query
        print(f"{query:>15,}  of them in query/, for a search front end: {query / whole:.1%} of the model beside it")
    if published.url is None:
        print(f"dry run: nothing was sent to {published.repo}")
    else:
        print(f"published: {published.url}")


if __name__ == "__main__":
    run_command(main)
