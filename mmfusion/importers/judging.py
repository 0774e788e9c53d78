"""Judgements of an import from what a user gives: click data, or lists of judgements, as the settings say."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from mmfusion.data.catalogue_schema import CatalogueError
from mmfusion.importers.items import ImportLog, Judgement, Query
from mmfusion.importers.judgements import Judgements, read_judgements
from mmfusion.importers.settings import ImportSettings
from mmfusion.importers.splits import derived_query_id


def check_one_source(settings: ImportSettings) -> None:
    """Raises an error where both clicks and judgements are given."""
    if settings.clicks is not None and settings.judgements is not None:
        raise CatalogueError("both are given", "--clicks and --judgements", "Give one of them.")


def judged_by_files(
    settings: ImportSettings, known: Mapping[str, str], log: ImportLog, known_queries: Collection[str] = ()
) -> Judgements | None:
    """What the files of `settings.clicks` or `settings.judgements` come to; None where neither is given.

    Args:
        settings: Which files, which of their columns, and how clicks become grades.
        known: Product id by each id that the files may name it by.
        log: Gets the rows that are left out, and warnings.
        known_queries: Ids of queries that are known already.

    Raises:
        CatalogueError: A file cannot be read, or no row is left.
    """
    columns = settings.click_columns
    if settings.judgements is not None:
        graded = read_judgements(
            settings.judgements, known, known_queries=known_queries, columns=columns, reject=log.reject
        )
    elif settings.clicks is not None:
        # With pandas, which an import of products alone does not wait for.
        from mmfusion.importers.clicks import read_clicks
        from mmfusion.importers.grades import grade

        clicks = read_clicks(settings.clicks, known, columns=columns, reject=log.reject)
        files = ", ".join(clicks.files)
        print(f"{files}: {clicks.kind}, {clicks.num_rows:,} rows, {clicks.num_merged:,} added to others")
        print("".join(f"  {role} ← {origin}\n" for role, origin in clicks.mapping.items()), end="")
        graded = grade(
            clicks,
            settings.grades,
            min_impressions=settings.min_impressions,
            signal=settings.signal,
            reject=log.reject,
        )
    else:
        return None
    # Rows that were rejected are counted already.
    log.left_out.update({why: n for why, n in graded.counts.items() if why not in log.rejected_by_reason})
    for warning in graded.warnings:
        log.warn(warning)
    return graded


def with_derived_ids(graded: Judgements) -> tuple[list[Query], list[Judgement]]:
    """Queries that are named by their texts, with ids that are the same tomorrow, and their judgements."""
    ids = {text: derived_query_id(text) for text in graded.queries}
    return [Query(name, text) for text, name in ids.items()], [
        Judgement(ids[text], product, grade) for text, product, grade in graded.rows
    ]
