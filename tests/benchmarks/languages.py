"""What photos save where titles or queries are in another language; by hand:

    python tests/benchmarks/languages.py --bench data/fpi --base outputs/stage2 --output outputs/languages_benchmark

The model has learned from English queries and titles alone, and nothing has learned from the table of translations,
which holds the words of test queries (`translations.py`). Words are replaced in their place; brands of queries stay. Of
titles "half" means that each word of the table is drawn by itself, by the product's id and the seed.

Rankers are BM25; the text view of the model, which is its own text-only tower; and the fused vectors. Vectors of each
kind of title are kept in the output folder: run again to go on.
"""

import argparse
import json
import re
import resource
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random
from zlib import crc32

import numpy as np
import torch
from torch import Tensor
from translations import LANGUAGES, known, translated

from mmfusion.audit.views import query_views
from mmfusion.data.catalogue import Catalogue
from mmfusion.data.tables import ProductTable
from mmfusion.evaluation import Evaluation, evaluate_pool, paired_bootstrap, rank, rank_bm25
from mmfusion.evaluation.evaluate import PLACES, pool_rows
from mmfusion.evaluation.tables import interval, markdown_table
from mmfusion.files import whole_file
from mmfusion.model import MMFusionModel
from mmfusion.training.features import cache_pool
from mmfusion.training.sources import load_base

METRICS = ("recall@100", "ndcg@10")
RANKERS = ("BM25", "text only", "fused")
Rewritten = Callable[[str, str], str]


def as_they_are(_: str, text: str) -> str:
    return text


def title_in(into: str, share: float, product_id: str, text: str) -> str:
    """A title with a share of its words in another language, by the product's id."""
    return translated(text, into, share, Random(crc32(f"0 {into} {product_id}".encode())))


TITLES: dict[str, Rewritten] = {
    "as they are": as_they_are,
    "half translated back": partial(title_in, "back", 0.5),
    "all translated back": partial(title_in, "back", 1.0),
    **{f"half {name}": partial(title_in, code, 0.5) for code, name in LANGUAGES.items()},
    **{f"all {name}": partial(title_in, code, 1.0) for code, name in LANGUAGES.items()},
}


@torch.inference_mode()
def embedded(model: MMFusionModel, table: ProductTable, rows: np.ndarray, file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Text views and fused vectors (P, D) of products, which a file keeps."""
    if not file.exists():
        found = []
        for start in range(0, len(rows), 64):
            batch = dict(table[rows[start : start + 64]])
            batch.pop("product_rows")
            output = model(**batch)
            found.append(np.stack([output.text_embeds.numpy(), output.product_embeds.numpy()]))
        with whole_file(file) as out:
            np.save(out, np.concatenate(found, axis=1))
    text, fused = np.load(file)
    return text, fused


def table_of(found: dict[str, dict[str, Evaluation]], first: str) -> list[list[str]]:
    """Of each row and ranker the metrics, what is lost against the first row, and what the photo saves."""
    rows = [["", "ranker", "Recall@100", "nDCG@10", f"nDCG@10 against {first}", "fused against text only"]]
    for name, by_ranker in found.items():
        for ranker, result in by_ranker.items():
            values = [f"{100 * result.means[metric]:.1f}" for metric in METRICS]
            lost = "" if name == first else interval(paired_bootstrap(result, found[first][ranker], "ndcg@10"))
            saved = interval(paired_bootstrap(result, by_ranker["text only"], "ndcg@10")) if ranker == "fused" else ""
            rows.append([name, ranker, *values, lost, saved])
    return rows


def lengths(tokenizer: Callable[..., dict[str, list[list[int]]]], texts: Sequence[str]) -> str:
    """Mean number of tokens, and of those that the tokenizer does not know."""
    ids = tokenizer(list(texts))["input_ids"]
    unknown = sum(row.count(tokenizer.unk_token_id) for row in ids)  # type: ignore[attr-defined]
    return f"{np.mean([len(row) for row in ids]):.1f} ({100 * unknown / sum(map(len, ids)):.1f} % unknown)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--bench", required=True)
    parser.add_argument("--base", required=True, help="fused model, trained on the bench's train split")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--titles", nargs="+", choices=TITLES, default=list(TITLES), help="kinds of titles")
    parser.add_argument("--feature_cache", help="folder of cached photos of the test pool; default: in the output")
    arguments = parser.parse_args()
    output: Path = arguments.output
    catalogue = Catalogue.load(arguments.bench, cache_dir=output / "cache" / "catalogue")
    model, processor = load_base(arguments.base)
    model.eval()
    query_rows, rows = pool_rows(catalogue, "test", "split")
    features = arguments.feature_cache or str(output / "cache" / "photos")
    cache = cache_pool(model, processor, catalogue, rows, model.num_vision_blocks, features)
    constraints = [json.loads(one) for one in np.array(catalogue.queries["constraints"], dtype=object)[query_rows]]
    brands = [one.get("brand", "") for one in constraints]
    english = catalogue.query_texts(query_rows)
    queries = {"English": english} | {
        name: [translated(text, code, keep=brand) for text, brand in zip(english, brands, strict=True)]
        for code, name in LANGUAGES.items()
    }
    ids = catalogue.product_ids[rows]

    embeds = {name: query_views(model, processor, texts) for name, texts in queries.items()}

    def measured(language: str, titles: Rewritten, label: str) -> dict[str, Evaluation]:
        table = ProductTable(catalogue, processor, cache=cache, rewrite=titles)
        name = re.sub(r"\W+", "_", label)
        text, fused = embedded(model, table, rows, output / f"{name}.npy")
        vectors = embeds[language]
        columns: dict[str, Tensor] = {
            "BM25": rank_bm25(queries[language], table.texts(rows), PLACES, ids)[1],
            "text only": rank(vectors, text, PLACES, ids)[1],
            "fused": rank(vectors, fused, PLACES, ids)[1],
        }
        return {ranker: evaluate_pool(columns[ranker], catalogue, "test", pool="split") for ranker in RANKERS}

    words = sum(len(known(text)) for text in english) / len(english)
    print(f"{len(english)} queries with {words:.1f} words of the table each, {len(rows):,} products\n")
    foreign = {name: measured(name, as_they_are, "as they are") for name in queries}
    print("queries in another language, English titles\n")
    print(markdown_table(table_of(foreign, "English")))
    print("\nmultilingual text encoder: not run, no weights are at hand\n", flush=True)
    tokens = [["language", "tokens of a query"]]
    tokens += [[name, lengths(processor.tokenizer, texts)] for name, texts in queries.items()]
    print(markdown_table(tokens), flush=True)
    found: dict[str, dict[str, Evaluation]] = {}
    print("\nEnglish queries, titles that were translated\n")
    for name in dict.fromkeys(["as they are", *arguments.titles]):
        found[name] = measured("English", TITLES[name], name)
    print(f"\n{markdown_table(table_of(found, 'as they are'))}")
    by_kind = [["fused against text only, nDCG@10", "mixed", "textual", "visual"]]
    for name, results in found.items():
        gains = [
            interval(paired_bootstrap(results["fused"], results["text only"], "ndcg@10", where=("kind", kind)))
            for kind in by_kind[0][1:]
        ]
        by_kind.append([name, *gains])
    print(f"\n{markdown_table(by_kind)}")
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(f"\n{used.ru_utime + used.ru_stime:.0f} CPU seconds")


if __name__ == "__main__":
    main()
