"""Write the card of a model from result files, or show the metrics of one."""

from mmfusion.hub import load_card
from mmfusion.hub.card import DEFAULT_REPO, write_card
from mmfusion.training import run_command


def main(
    model: str = "outputs/stage2",
    results: list[str] | None = None,
    ablation: str | None = None,
    output: str | None = None,
    notes: str | None = None,
    repo: str = DEFAULT_REPO,
    revision: str | None = None,
    dataset: str | None = None,
    base_model: list[str] | None = None,
    datasets: list[str] | None = None,
    language: list[str] | None = None,
    license: str = "apache-2.0",
    template: str | None = None,
    show: str | None = None,
) -> None:
    """Writes a card in which every number comes from a file; what was not measured says so.

    Args:
        model: Folder of the model.
        results: Files (NAME.json) or folders that evaluate.py wrote. Those made with this model are its results, and
            the others stand beside them.
        ablation: Output folder of ablation.py.
        output: The file; default: README.md in the folder of the model.
        notes: Markdown file with prose of your own (what made the difference, what is doubtful), put in as it is.
        repo: Hub id for the snippets.
        revision: Branch, tag or commit for the snippets (default: the tag that publish.py puts on these weights), or of
            the card to show (default: main).
        dataset: Name of the catalogue of results that do not say (those of older versions).
        base_model: Hub ids of the encoders; default: those that base.py was given.
        datasets: Hub ids of the training data; default: the one that stage 1 and 2 were given.
        language: ISO 639 codes of queries and titles, such as '["en"]'.
        license: Of the weights, as the Hub writes it.
        template: Another template, with the places of model_cards/TEMPLATE.md.
        show: Hub id or folder of a model whose metrics are printed; nothing is written.
    """
    if show is not None:
        print(load_card(show, revision=revision).table())
        return
    path = write_card(
        model,
        results=results or [],
        ablation=ablation,
        output=output,
        repo=repo,
        revision=revision,
        notes=notes,
        dataset=dataset,
        base_model=base_model or [],
        datasets=datasets or [],
        language=language or [],
        license=license,
        template=template,
    )
    print(f"{load_card(path).table()}\ncard: {path.absolute()}")


if __name__ == "__main__":
    run_command(main)
