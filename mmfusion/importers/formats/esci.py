"""Amazon's Shopping Queries data set (ESCI, arXiv:2206.06588): products and judged queries, in three locales."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmfusion.data.catalogue_schema import CatalogueError
from mmfusion.importers.arrow_table import ParquetTable
from mmfusion.importers.collect import QueryCollector, cell, records, refuse_columns, tables_of, warn_of_unread
from mmfusion.importers.html_text import html_to_text
from mmfusion.importers.items import Imported, ImportLog, Item, Judgement, ReadSettings
from mmfusion.importers.registry import register_importer
from mmfusion.importers.source import Source
from mmfusion.importers.splits import derived_query_id, split_named, split_of_file
from mmfusion.importers.tables import TextTable

_EXAMPLES = {"query", "product_id", "esci_label"}
_PRODUCTS = {"product_id", "product_title"}
_GRADES = {"exact": 3, "substitute": 2, "complement": 1, "irrelevant": 0}
_GRADES |= {word[0]: grade for word, grade in _GRADES.items()}


@register_importer("esci")
class EsciImporter:
    """Reads the tables of examples and products, or one that has both.

    Without `locale`, ids of data in several locales end in it, as products of several locales share ids.
    """

    summary = "Amazon's Shopping Queries data set (ESCI)"

    def recognises(self, source: Source) -> bool:
        return any(
            set(table.columns) >= _EXAMPLES or set(table.columns) >= _PRODUCTS | {"product_locale"}
            for table in tables_of(source)
        )

    def read(self, source: Source, settings: ReadSettings, log: ImportLog) -> Imported:
        refuse_columns(settings, "ESCI")
        tables = tables_of(source)
        examples = [table for table in tables if set(table.columns) >= _EXAMPLES]
        products = [table for table in tables if set(table.columns) >= _PRODUCTS]
        if not products:
            remedy = "Give shopping_queries_dataset_products.parquet beside the examples."
            raise CatalogueError("the table of products is missing (product_id, product_title)", str(source), remedy)
        warn_of_unread(tables, [*examples, *products], "ESCI", log)
        if settings.subset not in (None, "small", "large"):
            raise CatalogueError(f"ESCI has no subset {settings.subset!r}", "--subset", "Use small or large.")
        locales = sorted(set().union(*(_locales(table) for table in products)))
        locale = settings.locale.lower() if settings.locale else None
        if locale and locale not in locales:
            remedy = f"Use one of {', '.join(locales)}."
            raise CatalogueError(f"no product is of the locale {locale!r}", "--locale", remedy)
        tell_apart = locale is None and len(locales) > 1
        if tell_apart:
            log.warn(
                f"The products are of {len(locales)} locales ({', '.join(locales)}), which may share ids: an id ends "
                f"in its locale, as in B000000001-{locales[0]}. Choose one with --locale."
            )
        queries, judgements = _judgements(examples, locale, tell_apart, settings.subset, log)
        return Imported(
            items=_items(products, locale, tell_apart, log),
            mapping={
                "product_id": "product_id and product_locale" if tell_apart else "product_id",
                "title": "product_title",
                "description": "product_description, product_bullet_point",
                "brand": "product_brand",
                "color": "product_color",
            },
            queries=queries.queries,
            judgements=judgements,
            judgement_rule="esci_label: E (exact) is 3, S (substitute) 2, C (complement) 1, I (irrelevant) 0",
            template="{title} {brand} {color} {description}",
        )


def _locales(table: TextTable) -> set[str]:
    if "product_locale" not in table.columns:
        return {""}
    if isinstance(table, ParquetTable):
        # Of 1.8 million products, without their texts.
        column = pc.unique(pq.read_table(table.file.path, columns=["product_locale"])["product_locale"])
        return {str(locale or "").strip().lower() for locale in column.to_pylist()}
    return {cell(row, "product_locale").lower() for _, row in records(table, ImportLog())}


def _judgements(
    tables: Sequence[TextTable], locale: str | None, tell_apart: bool, subset: str | None, log: ImportLog
) -> tuple[QueryCollector, list[Judgement]]:
    queries, judgements = QueryCollector(), []
    for table in tables:
        for line, row in records(table, log):
            own = cell(row, "product_locale").lower()
            if locale and own != locale:
                log.leave_out("example of another locale")
            elif subset and cell(row, f"{subset}_version") not in ("1", "true"):
                log.leave_out(f"example that is not in the {subset} version")
            else:
                try:
                    label = cell(row, "esci_label")
                    if label.lower() not in _GRADES:
                        raise ValueError(f"esci_label is none of E, S, C and I: {label!r}")
                    split = split_named(cell(row, "split"))
                    if split is None and cell(row, "split"):
                        raise ValueError(f"split is none of train, val and test: {cell(row, 'split')!r}")
                    split = split or split_of_file(table.file.name)
                    text = cell(row, "query")
                    query_id = queries.add(cell(row, "query_id") or derived_query_id(text), text, split)
                except ValueError as error:
                    log.reject(table.file.name, line, str(error))
                    continue
                product_id = _id(cell(row, "product_id"), own, tell_apart)
                judgements.append(Judgement(query_id, product_id, _GRADES[label.lower()]))
    return queries, judgements


def _items(tables: Sequence[TextTable], locale: str | None, tell_apart: bool, log: ImportLog) -> Iterator[Item]:
    seen: set[str] = set()
    for table in tables:
        has_examples = "esci_label" in table.columns
        for line, row in records(table, log):
            own = cell(row, "product_locale").lower()
            name = cell(row, "product_id")
            product_id = _id(name, own, tell_apart)
            if locale and own != locale:
                if not has_examples:
                    log.leave_out("product of another locale")
            elif not name:
                log.reject(table.file.name, line, "product_id is empty")
            elif not (has_examples and product_id in seen):
                # Where products stand beside each query that they are judged for, they come again by design.
                if has_examples:
                    seen.add(product_id)
                texts = [html_to_text(cell(row, f"product_{part}")) for part in ("description", "bullet_point")]
                yield Item(
                    product_id,
                    html_to_text(cell(row, "product_title")),
                    "\n".join(filter(None, texts)),
                    metadata={
                        "brand": cell(row, "product_brand"),
                        "color": cell(row, "product_color"),
                        "locale": own,
                    },
                    photo_name=name,
                    place=table.place(line),
                )


def _id(product_id: str, locale: str, tell_apart: bool) -> str:
    return f"{product_id}-{locale}" if tell_apart else product_id
