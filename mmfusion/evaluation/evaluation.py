"""The result of an evaluation: numbers, what they were measured over, and where they came from."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

GAIN = "linear (gain = grade, an unjudged product has grade 0)"
PER_QUERY = ".per_query.parquet"
METRICS = ("recall@100", "ndcg@10")
"""The two metrics of every table and comparison."""

CONDITIONS = ("pool", "num_products", "num_queries", "relevant_grade", "gain", "judgements_by_grade")
"""What must be equal before numbers of two evaluations may be in one table."""


@dataclass(frozen=True)
class Slice:
    """Metrics over the part of the judgements that shares a column's value.

    Attributes:
        table: "query" (a subset of the queries) or "product" (every query, but only its relevant products with that
            value; Recall alone, because a ranking's gain cannot be split by product).
        column: Name of the column.
        value: The value as text, "(missing)" for null.
        num_queries: Queries of the slice that have a relevant product (of that value).
        metrics: Mean in [0, 1] by metric name; None where no query defines it.
    """

    table: str
    column: str
    value: str
    num_queries: int
    metrics: dict[str, float | None]


@dataclass(frozen=True)
class Evaluation:
    """Recall and nDCG of one set of rankings, with everything needed to read them.

    Attributes:
        name: What made the rankings, for example "fusion" or "bm25".
        pool: "split" (products of the queries' split) or "all" (the whole catalogue).
        num_queries: Queries asked for, with or without relevant products.
        num_products: Products in the pool, all of which compete.
        num_queries_without_relevant: Queries left out of mean Recall, as nothing in the pool has `relevant_grade`.
        num_queries_without_gain: Queries left out of mean nDCG, as nothing in the pool has a grade above 0.
        num_queries_without_ranking: Queries that got no ranking; they count 0 in every mean.
        relevant_grade: Lowest grade that Recall counts.
        judgements_by_grade: Judgements of these queries in this pool, by grade.
        means: Mean in [0, 1] by metric name ("recall@10", "ndcg@10" …).
        slices: The same by value of a column.
        per_query: One row a query: query_id, the sliced query columns as text, num_relevant, the metrics (float64 in
            [0, 1], null where undefined).
        gain: How nDCG turns a grade into a gain.
        label_source: Who or what judged, shown next to the numbers.
        provenance: How the rankings were made (command, model, catalogue …), JSON values.
    """

    name: str
    pool: str
    num_queries: int
    num_products: int
    num_queries_without_relevant: int
    num_queries_without_gain: int
    num_queries_without_ranking: int
    relevant_grade: int
    judgements_by_grade: dict[int, int]
    means: dict[str, float | None]
    slices: list[Slice]
    per_query: pa.Table
    gain: str = GAIN
    label_source: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)

    def conditions(self) -> str:
        """What the numbers were measured over, in one line, without the numbers."""
        grades = ", ".join(f"{grade}: {count}" for grade, count in sorted(self.judgements_by_grade.items()))
        parts = [
            f"pool: {self.pool}, {self.num_products} products",
            f"{self.num_queries} queries ({self.num_queries_without_relevant} without a relevant product, left out)",
            f"relevant: grade >= {self.relevant_grade}",
            f"gain: {self.gain}",
            f"judgements by grade: {grades or 'none'}",
            *([f"labels: {self.label_source}"] if self.label_source else []),
        ]
        return "; ".join(parts)

    def part(self, table: str, column: str, value: str) -> Slice | None:
        """The slice of a value of a column; `table` is "query" or "product"."""
        wanted = (table, column, value)
        return next((part for part in self.slices if (part.table, part.column, part.value) == wanted), None)

    def value(self, metric: str, where: tuple[str, str] | None = None) -> float | None:
        """A mean over all queries, or over those with a value in a column (`where`); None where there is none."""
        part = self if where is None else self.part("query", *where)
        metrics = {} if part is None else part.means if isinstance(part, Evaluation) else part.metrics
        return metrics.get(metric)

    def query_parts(self, column: str | None = None) -> list[tuple[str, str]]:
        """Columns and values of the query slices, of one column or of all."""
        return [(p.column, p.value) for p in self.slices if p.table == "query" and column in (None, p.column)]

    def save(self, folder: str | Path, name: str | None = None) -> list[Path]:
        """Writes `<name>.json` (all but the queries) and `<name>.per_query.parquet` into a folder, made if missing.

        Args:
            folder: Where to write; files of the same name are replaced.
            name: Stem of the files, by default the evaluation's name.

        Returns:
            The files written.

        Raises:
            ValueError: The name is empty or would leave the folder.
        """
        paths = _paths(folder, self.name if name is None else name)
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        paths[0].write_text(json.dumps(self.as_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")
        pq.write_table(self.per_query, paths[1])
        return paths

    def as_dict(self) -> dict[str, Any]:
        """All numbers and their conditions as JSON values, without the per-query table."""
        fields = {name: value for name, value in vars(self).items() if name != "per_query"}
        grades = {str(grade): count for grade, count in self.judgements_by_grade.items()}
        return {**fields, "judgements_by_grade": grades, "slices": [asdict(part) for part in self.slices]}

    @classmethod
    def load(cls, folder: str | Path, name: str) -> "Evaluation":
        """Reads what `save` wrote, for example to compare with a later run.

        Raises:
            FileNotFoundError: The folder holds no evaluation of that name.
        """
        numbers, per_query = paths = _paths(folder, name)
        if missing := [path.name for path in paths if not path.is_file()]:
            raise FileNotFoundError(f"no evaluation {name!r} in {folder}: {missing[0]} is missing; evaluate first")
        fields = json.loads(numbers.read_text("utf-8"))
        fields["judgements_by_grade"] = {int(grade): n for grade, n in fields["judgements_by_grade"].items()}
        fields["slices"] = [Slice(**part) for part in fields["slices"]]
        return cls(**fields, per_query=pq.read_table(per_query))


def saved_evaluations(folder: str | Path) -> list[str]:
    """Names of the evaluations in a folder, oldest first."""
    paths = sorted(Path(folder).glob(f"*{PER_QUERY}"), key=lambda path: (path.stat().st_mtime_ns, path.name))
    names = [path.name.removesuffix(PER_QUERY) for path in paths]
    return [name for name in names if (Path(folder) / f"{name}.json").is_file()]


def check_alike(evaluations: Sequence[Evaluation], names: Sequence[str] = CONDITIONS) -> None:
    """Raises an error for evaluations whose numbers cannot be compared.

    Raises:
        ValueError: There is none, or two differ in one of these attributes.
    """
    if not evaluations:
        raise ValueError("there is no evaluation to compare; pass at least one")
    first, *others = evaluations
    for other in others:
        for name in names:
            if getattr(first, name) != getattr(other, name):
                raise ValueError(
                    f"{first.name!r} has {name}={getattr(first, name)!r} but {other.name!r} has "
                    f"{name}={getattr(other, name)!r}: their numbers cannot be compared; evaluate both in the same way"
                )


def _paths(folder: str | Path, name: str) -> list[Path]:
    if not name or name in (".", "..") or any(character in name for character in "/\\\0"):
        raise ValueError(f"evaluation name {name!r} cannot name a file; pass save(folder, name) a plain file name")
    return [Path(folder) / f"{name}{ending}" for ending in (".json", PER_QUERY)]
