"""Which column of a file is which of the catalogue: by its name, or as the user says."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from mmfusion.data.catalogue_schema import CatalogueError
from mmfusion.importers.items import ReadSettings

# Column of the catalogue -> columns of a file, in order; most have one.
Mapped = dict[str, list[str]]


def key(name: str) -> str:
    """A column's name without case, accents, signs and the number of a repeated one: "Image Src (2)" is "imagesrc"."""
    name = name.rsplit(" (", 1)[0] if name.endswith(")") and name.rsplit(" (", 1)[-1][:-1].isdigit() else name
    letters = unicodedata.normalize("NFKD", name.casefold())
    return "".join(letter for letter in letters if letter.isalnum())


def by_name(columns: Iterable[str], names: Mapping[str, Sequence[str]], several: Sequence[str] = ()) -> Mapped:
    """Columns whose names are known; of several names the first one that is there.

    Args:
        columns: Those of the file.
        names: Names that a column of the catalogue may have, by the latter.
        several: Columns of the catalogue that may come from several columns.
    """
    found: dict[str, list[str]] = {}
    for column in columns:
        found.setdefault(key(column), []).append(column)
    mapped: Mapped = {}
    for target, possible in names.items():
        known = [column for name in possible for column in found.get(key(name), [])]
        if known:
            mapped[target] = list(dict.fromkeys(known)) if target in several else known[:1]
    return mapped


def as_told(mapped: Mapped, columns: Sequence[str], settings: ReadSettings, place: str) -> Mapped:
    """The mapping with what the user says about it.

    Args:
        mapped: What was recognised.
        columns: Those of the file.
        settings: `columns` and `id_column`; "id" is "product_id".
        place: The file.

    Raises:
        CatalogueError: A column is not there, or is to be two columns of the catalogue.
    """
    told: dict[str, list[str]] = {}
    for target, given in settings.columns.items():
        told["product_id" if target == "id" else target] = [given] if isinstance(given, str) else list(given)
    if settings.id_column is not None:
        if told.get("product_id", [settings.id_column]) != [settings.id_column]:
            raise CatalogueError(
                f"ids are to come from {settings.id_column!r} and from {told['product_id'][0]!r}",
                "--id_column and --columns",
                "Say it once.",
            )
        told["product_id"] = [settings.id_column]
    used: dict[str, str] = {}
    for target, given in told.items():
        told[target] = [_column(name, columns, place) for name in given]
        for name in told[target]:
            if used.setdefault(name, target) != target:
                remedy = f"Give {used[name]} or {target} another column of the file."
                raise CatalogueError(f"column {name!r} is to be {used[name]} and {target}", "--columns", remedy)
    kept = {target: [name for name in names if name not in used] for target, names in mapped.items()}
    return {**{target: names for target, names in kept.items() if names}, **told}


def shown(mapped: Mapped) -> dict[str, str]:
    """The mapping as it is printed."""
    return {target: ", ".join(names) for target, names in mapped.items()}


def _column(name: str, columns: Sequence[str], place: str) -> str:
    if name in columns:
        return name
    same = [column for column in columns if key(column) == key(name)]
    if len(same) != 1:
        remedy = f"Its columns are {', '.join(columns)}."
        raise CatalogueError(f"there is no column {name!r}", place, remedy)
    return same[0]
