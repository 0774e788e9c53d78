"""Judgements: what grading clicks and reading a file of ratings both come to."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Judgements:
    """Grades of queries and products.

    Attributes:
        queries: Queries that have a judgement, each once, in the order of the source: normalised texts, or ids where
            `by_id`.
        rows: (query, product id, grade), each pair once; grades are at least 0, and higher is better.
        rule: How the grades came about, with the source of the method; to be printed and stored.
        warnings: Sentences for the report.
        counts: Rows and pairs that were left out, by reason.
        by_id: Whether queries are named by ids.
        method: Name of the method that graded clicks; "" where a file gave the grades.
    """

    queries: list[str]
    rows: list[tuple[str, str, int]]
    rule: str
    warnings: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    by_id: bool = False
    method: str = ""
