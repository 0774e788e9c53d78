"""A format that somebody adds."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from importer_reading import read, write

from mmfusion.data.catalogue_schema import CatalogueError
from mmfusion.importers import (
    Imported,
    ImportLog,
    Item,
    ReadSettings,
    Source,
    find_importer,
    importer_names,
    open_source,
    register_importer,
)
from mmfusion.importers.registry import _IMPORTERS


@pytest.fixture
def stall() -> Iterator[None]:
    @register_importer("stall")
    class Stall:
        summary = "a list of a stall"

        def recognises(self, source: Source) -> bool:
            return any(file.suffix == ".stall" for file in source.files)

        def read(self, source: Source, settings: ReadSettings, log: ImportLog) -> Imported:
            def items() -> Iterator[Item]:
                for file in source.files:
                    with file.open() as stream:
                        for number, line in enumerate(stream, 1):
                            item_id, _, title = line.decode().strip().partition(" ")
                            if title:
                                yield Item(item_id, title, place=f"{file.name}, line {number}")
                            else:
                                log.reject(file.name, number, "no title")

            return Imported(items(), {"title": "after the id"})

    yield
    del _IMPORTERS["stall"]


def test_a_registered_format_is_asked_first(tmp_path: Path, stall: None) -> None:
    file = write(tmp_path, "goods.stall", "01 Pan\n02\n03 Lid\n")
    write(tmp_path, "goods.csv", "id,title\n1,Pan\n")
    assert importer_names().index("stall") < importer_names().index("shopify")
    found = read(tmp_path, format=None)
    assert found.format == "stall"
    assert read(file).titles() == {"01": "Pan", "03": "Lid"}
    assert read(file).log.rejected == [(str(file), 2, "no title")]
    with pytest.raises(ValueError, match="There is an importer 'stall' already"):
        register_importer("stall")(type("Other", (), {"summary": ""}))


def test_formats_that_are_not_known(tmp_path: Path) -> None:
    file = write(tmp_path, "letter.md", "Dear reader\n")
    source = open_source([str(file)], tmp_path / "downloads")
    with pytest.raises(CatalogueError, match=r"letter\.md: the format is not recognised.*--format"):
        find_importer(source)
    with pytest.raises(CatalogueError, match=r"format 'magento' is unknown.*shopify"):
        find_importer(source, "magento")
    assert importer_names()[-1] == "generic"


@pytest.mark.parametrize("name", ["shopify", "merchant", "woocommerce", "generic"])
def test_a_format_that_the_files_do_not_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(CatalogueError):
        read(write(tmp_path, "letter.md", "Dear reader\n"), format=name)
