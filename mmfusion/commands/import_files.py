"""Make a catalogue of a shop's own files, of a click log, or of a research data set."""

from dataclasses import dataclass
from typing import ClassVar

from mmfusion.importers.importing import import_catalogue
from mmfusion.importers.settings import ImportSettings


@dataclass(kw_only=True)
class Config(ImportSettings):
    """Settings of `mmfusion import`.

    Attributes:
        sources: Files, folders, globs, URLs, or ids of data sets on the Hub; compressed ones, too.
        output: Folder of the catalogue; an earlier import there is brought up to date.
        dry_run: Whether to write nothing but the report.
    """

    several: ClassVar[str] = "sources"

    sources: list[str]
    output: str = "outputs/catalogue"
    dry_run: bool = False


def main(config: Config) -> None:
    """Reads exports of Shopify, Google Merchant, WooCommerce, tables, photo folders and data sets, and writes a
    catalogue with a report of what was read and what was left out.
    """
    result = import_catalogue(config.sources, config.output, config, dry_run=config.dry_run)
    print("\n".join(result.lines()))
    if config.dry_run:
        print("next: the same command without --dry_run")
    else:
        print(f"next: mmfusion fit {result.folder}")
