"""The result of an evaluation: numbers, what they were measured over, and where they came from."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmfusion.evaluation.slices import Slice

GAIN = "linear (gain = grade, an unjudged product has grade 0)"

# What must be alike before numbers of two evaluations may stand in one table.
CONDITIONS = ("pool", "num_products", "num_queries", "relevant_grade", "gain", "judgements_by_grade")


@dataclass(frozen=True)
class Evaluation:
    """Recall and nDCG of one set of rankings, with everything needed to read them.

    Attributes:
        name: what made the rankings, for example "fusion" or "bm25".
        pool: "split" (products of the queries' split) or "all" (the whole catalogue).
        num_queries: queries asked for, with or without relevant products.
        num_products: products in the pool, all of which compete.
        num_queries_without_relevant: queries left out of mean Recall, as nothing in the pool has `relevant_grade`.
        num_queries_without_gain: queries left out of mean nDCG, as nothing in the pool has a grade above 0.
        num_queries_without_ranking: queries that got no ranking; they count 0 in every mean.
        relevant_grade: lowest grade that Recall counts.
        judgements_by_grade: judgements of these queries in this pool, by grade.
        means: mean in [0, 1] by metric name ("recall@10", "ndcg@10" …).
        slices: the same by value of a column.
        per_query: one row a query: query_id, the sliced query columns as text, num_relevant, the metrics (float64 in
            [0, 1], null where undefined).
        gain: how nDCG turns a grade into a gain.
        label_source: who or what judged, shown beside the numbers.
        provenance: how the rankings were made (command, model, catalogue …), JSON values.
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
        ]
        if self.label_source:
            parts.append(f"labels: {self.label_source}")
        return "; ".join(parts)

    def save(self, folder: str | Path, name: str | None = None) -> list[Path]:
        """Write `<name>.json`, `.slices.csv`, `.per_query.parquet`, `.md` and `.png` into a folder, made if missing.

        Args:
            folder: where to write; files of the same name are replaced.
            name: stem of the files, by default the evaluation's name.

        Returns:
            The files written.

        Raises:
            ValueError: the name is empty or would leave the folder.
        """
        from mmfusion.evaluation.report import draw_bars, markdown, slices_csv

        stem = _file_stem(self.name if name is None else name)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{stem}{ending}" for ending in (".json", ".slices.csv", ".per_query.parquet", ".md", ".png")]
        paths[0].write_text(json.dumps(self.as_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")
        paths[1].write_text(slices_csv(self), "utf-8")
        pq.write_table(self.per_query, paths[2])
        paths[3].write_text(markdown(self), "utf-8")
        draw_bars(self, paths[4])
        return paths

    def part(self, table: str, column: str, value: str) -> Slice | None:
        """The slice of a value of a column; `table` is "query" or "product"."""
        wanted = (table, column, value)
        return next((part for part in self.slices if (part.table, part.column, part.value) == wanted), None)

    def as_dict(self) -> dict[str, Any]:
        """All numbers and their conditions as JSON values, without the per-query table."""
        fields = {name: value for name, value in vars(self).items() if name != "per_query"}
        return {
            **fields,
            "judgements_by_grade": {str(grade): count for grade, count in self.judgements_by_grade.items()},
            "slices": [asdict(part) for part in self.slices],
        }

    @classmethod
    def load(cls, folder: str | Path, name: str) -> "Evaluation":
        """Read what `save` wrote, for example to compare with a later run.

        Raises:
            FileNotFoundError: the folder holds no evaluation of that name.
        """
        folder, stem = Path(folder), _file_stem(name)
        path = folder / f"{stem}.json"
        if not path.is_file():
            raise FileNotFoundError(f"no evaluation {name!r} in {folder}: {path.name} is missing; run the evaluation")
        fields = json.loads(path.read_text("utf-8"))
        fields["judgements_by_grade"] = {int(grade): n for grade, n in fields["judgements_by_grade"].items()}
        fields["slices"] = [Slice(**part) for part in fields["slices"]]
        return cls(**fields, per_query=pq.read_table(folder / f"{stem}.per_query.parquet"))


def _file_stem(name: str) -> str:
    if not name or name in (".", "..") or any(character in name for character in "/\\\0"):
        raise ValueError(f"evaluation name {name!r} cannot name a file; pass save(folder, name) a plain file name")
    return name
