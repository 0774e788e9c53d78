"""Write the card of a model from result files, or show the metrics of one."""

from dataclasses import asdict, dataclass, field

from mmfusion.hub import load_card
from mmfusion.hub.card import DEFAULT_REPO, write_card


@dataclass
class Config:
    """Settings of `mmfusion card`.

    Attributes:
        base: Folder of the model.
        results: Files (NAME.json) or folders that `mmfusion evaluate` wrote, e.g. [outputs/evaluation]. Those of this
            model are its results, and the others are shown next to them.
        ablation: Output folder of `mmfusion ablation`.
        output: The file; default: README.md in the folder of the model.
        notes: Markdown file with prose of your own (what made the difference, what is doubtful), put in as it is.
        repo: Hub id for the snippets.
        revision: Branch, tag or commit for the snippets (default: the tag that `mmfusion publish` puts on these
            weights), or of the card to show (default: main).
        dataset: Name of the catalogue of results that do not say (those of older versions).
        base_model: Hub ids of the encoders; default: those that `mmfusion base` was given.
        datasets: Hub ids of the training data; default: the one that stage 1 and 2 were given.
        language: ISO 639 codes of queries and titles, e.g. [en]; default: what a catalogue notes that was imported with
            --locale.
        license: License of the weights, as the Hub writes it.
        template: Another Jinja2 template, with the places of mmfusion/hub/card.md.
        show: Hub id or folder of a model whose metrics are printed; nothing is written.
    """

    base: str = "outputs/stage2"
    results: list[str] = field(default_factory=list)
    ablation: str | None = None
    output: str | None = None
    notes: str | None = None
    repo: str = DEFAULT_REPO
    revision: str | None = None
    dataset: str | None = None
    base_model: list[str] = field(default_factory=list)
    datasets: list[str] = field(default_factory=list)
    language: list[str] = field(default_factory=list)
    license: str = "apache-2.0"
    template: str | None = None
    show: str | None = None


def main(config: Config) -> None:
    """Writes a card in which every number comes from a file; what was not measured says so."""
    if config.show is not None:
        return print(load_card(config.show, revision=config.revision).table())
    options = asdict(config)
    del options["show"]
    path = write_card(options.pop("base"), **options)
    print(f"{load_card(path).table()}\ncard: {path.absolute()}")
    print(f"next: mmfusion publish --base {config.base} --repo {config.repo}")
