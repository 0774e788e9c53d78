"""What training learns from products alone, from clicks, and from judgements, on the same budget; and one shop's fit.

    python tests/benchmarks/fit.py --bench data/fpi --text minilm --vision mobilenet --output outputs/fit --part train

trains, `--part shop` fits a shop's export, and `--part page` writes docs/benchmarks/fit.md from both. Both encoders are
frozen and photos are 80 x 60 pixels, so that it takes minutes a run on one core. Everything that is written besides, a
shop's export with its photos included, stays below the output folder.

Clicks are simulated from the train and val judgements: a shop that ranks by BM25 over titles shows 20 products; who
searches looks at rank r with probability 1/r (position-based model, Craswell et al., WSDM 2008), clicks a product that
was looked at by its grade (0.8 where it is all that was asked, 0.2 where almost, else 0.03), and buys one that was
clicked with probability 0.2, 0.05 or 0.01. Visits of queries follow Zipf's law.
"""

import argparse
import csv
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from commands import command

from mmfusion.data.catalogue import Catalogue
from mmfusion.evaluation import Evaluation, format_comparison
from mmfusion.evaluation.bootstrap import paired_bootstrap
from mmfusion.evaluation.tables import interval, markdown_table, percent, results_table
from mmfusion.importers.clicks import read_clicks
from mmfusion.importers.grades import grade
from mmfusion.stages import Optimization

CHECKOUT = Path(__file__).resolve().parents[2]
SHOWN, VISITS = 20, 60
LOOK_AND_CLICK, BUY = {0: 0.03, 1: 0.2, 3: 0.8}, {0: 0.01, 1: 0.05, 3: 0.2}
STAGE1, STAGE2 = {"steps": 200, "batch_size": 256}, {"steps": 100, "batch_size": 256, "extra_products": 256}
FROZEN = {"text_learning_rate": 0.0, "vision_learning_rate": 0.0}
RANKERS = (("bm25", "stage2", "bm25"), ("text_only", "text_only", "model"), ("fusion", "stage2", "model"))
NAMES = {
    "zero": "untrained",
    "products": "products alone, stage 1",
    "products2": "products alone, stage 2",
    "clicks": "simulated clicks",
    "qrels": "judgements",
}


def not_of_test(rows: Any) -> np.ndarray:
    """Rows of train and val, by what gives those of a split."""
    return np.concatenate([rows(one) for one in ("train", "val")])


def simulate(catalogue: Catalogue, path: Path, seed: int, rows: np.ndarray, queries: np.ndarray) -> None:
    """Writes an aggregated search report of queries in a shop that has these products."""
    rng = np.random.default_rng(seed)
    index = bm25s.BM25()
    index.index(bm25s.tokenize(catalogue.titles(rows), show_progress=False), show_progress=False)
    texts = catalogue.query_texts(queries)
    found, _ = index.retrieve(bm25s.tokenize(texts, show_progress=False), k=SHOWN, show_progress=False)
    popularity = 1 / (1 + rng.permutation(len(queries)))
    visits = rng.poisson(20 + (VISITS - 20) * popularity * len(queries) / popularity.sum())
    look = 1 / np.arange(1, SHOWN + 1)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["search_term", "product_id", "position", "impressions", "clicks", "orders"])
        for text, row, places, count in zip(texts, queries, found, visits.tolist(), strict=True):
            shown = rows[places.astype(np.int64)]
            grades = catalogue.qrels.grades([row], shown)[0]
            clicks = rng.binomial(count, look * [LOOK_AND_CLICK[int(one)] for one in grades])
            orders = rng.binomial(clicks, [BUY[int(one)] for one in grades])
            numbers = zip(catalogue.product_ids[shown], clicks.tolist(), orders.tolist(), strict=True)
            for place, (product, *counts) in enumerate(numbers, start=1):
                writer.writerow([text, product, place, count, *counts])


def with_clicks(bench: Path, catalogue: Catalogue, report: Path, folder: Path) -> str:
    """A catalogue whose train and val judgements come from clicks; those of test stay. Returns the rule."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("products", "queries"):
        (folder / f"{name}.parquet").unlink(missing_ok=True)
        (folder / f"{name}.parquet").symlink_to((bench / f"{name}.parquet").resolve())
    graded = grade(read_clicks([str(report)], {str(name): str(name) for name in catalogue.product_ids}))
    asked = {" ".join(text.lower().split()): at for at, text in enumerate(catalogue.queries["query"])}
    rows = [(str(catalogue.query_ids[asked[text]]), product, value) for text, product, value in graded.rows]
    test = catalogue.split_qrels("test")
    rows += [
        (str(catalogue.query_ids[query]), str(catalogue.product_ids[product]), int(value))
        for query, product, value in zip(test.query, test.product, test.grade, strict=True)
    ]
    columns = zip(*rows, strict=True)
    table = pa.table(dict(zip(("query_id", "product_id", "grade"), map(list, columns), strict=True)))
    pq.write_table(table, folder / "qrels.parquet")
    return graded.rule


def train(arguments: argparse.Namespace, catalogues: dict[str, Path], seed: int) -> None:
    output, base = arguments.output / f"seed{seed}", str(arguments.output / "base")
    for name in ("products", "clicks", "qrels"):
        first, second = str(output / f"{name}1"), str(output / f"{name}2")
        alone = name == "products"
        shared: dict[str, Any] = {
            "catalogue": str(catalogues[name]),
            "seed": seed,
            "keep": "best",
            "validate_every": 20,
            "checkpoint_every": 50,
            "pseudo_queries": alone,
            "feature_cache": str(arguments.output / f"features_{f'alone{seed}' if alone else 'judged'}"),
        }
        command("stage1")(base=base, output=first, optimization=Optimization(1e-3, **FROZEN), **STAGE1, **shared)
        command("stage2")(
            base=first,
            output=second,
            optimization=Optimization(2e-3, weight_decay=0.3, **FROZEN),
            modality_dropout=0.5 if alone else 0.1,
            **STAGE2,
            **shared,
        )
        for label, model in ((name, first if alone else second), *([("products2", second)] if alone else [])):
            evaluate(arguments, model, f"{label}.{seed}")


def evaluate(arguments: argparse.Namespace, base: str, name: str) -> None:
    if (arguments.output / "evaluation" / f"{name}.json").exists():
        return
    command("evaluate")(
        catalogue=str(arguments.bench),
        base=base,
        output=str(arguments.output / "evaluation"),
        name=name,
        label_source="the retailer's attributes",
        freeze_vision_blocks=arguments.blocks,
        feature_cache=str(arguments.output / "features_test"),
    )


def export(catalogue: Catalogue, folder: Path, rows: np.ndarray) -> None:
    """A shop's export of products: a CSV and a folder of photos."""
    photos = folder / "photos"
    photos.mkdir(parents=True, exist_ok=True)
    with (folder / "products.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "title", "category", "image"])
        for row in rows:
            product = catalogue.product(int(row))
            photo = product["image"][0] if isinstance(product["image"], list) else product["image"]
            name = f"{product['product_id']}.jpg"
            (photos / name).write_bytes(photo["bytes"])
            writer.writerow([product["product_id"], product["title"], product["category"], name])


def table(arguments: argparse.Namespace, seeds: list[int]) -> str:
    """Means over seeds, and what is gained over the untrained model, with intervals over queries."""
    folder, rows = arguments.output / "evaluation", []
    rows.append(["trained with", "Recall@100", "nDCG@10", "gain in nDCG@10, 95 % interval"])
    zero = Evaluation.load(folder, "zero")
    for name, title in NAMES.items():
        found = [zero] if name == "zero" else [Evaluation.load(folder, f"{name}.{seed}") for seed in seeds]
        means = [percent(float(np.mean([one.means[metric] for one in found]))) for metric in ("recall@100", "ndcg@10")]
        gain = None if name == "zero" else paired_bootstrap(mean_of(found), zero, "ndcg@10")
        rows.append([title, *means, "" if gain is None else interval(gain)])
    own = [replace(Evaluation.load(folder, f"{name}.{seeds[0]}"), name=NAMES[name]) for name in list(NAMES)[1:]]
    kinds = results_table([replace(zero, name=NAMES["zero"]), *own])
    return f"{markdown_table(rows)}\n\nBy kind of query, seed {seeds[0]}:\n\n{kinds}"


def comparison(folder: Path, slice_by: str = "kind") -> str:
    """BM25, text only and fusion, with intervals."""
    return format_comparison(
        [Evaluation.load(folder, name) for name in ("bm25", "text_only", "fusion")], slice_by=slice_by
    )


def page(arguments: argparse.Namespace, rows: np.ndarray, queries: np.ndarray) -> None:
    """Writes the page from what has been measured."""
    folder = arguments.output / "fitted" / "evaluation"
    rule = json.loads((arguments.output / "rule.json").read_text())
    text = PAGE.format(
        **STAGE1,
        steps2=STAGE2["steps"],
        rule=rule,
        table=table(arguments, arguments.seeds),
        seeds=", ".join(map(str, arguments.seeds)),
        shop_products=len(rows),
        shop_queries=len(queries),
        shop=comparison(folder, slice_by=""),
        judged=comparison(arguments.output / "judged"),
    )
    (CHECKOUT / "docs" / "benchmarks" / "fit.md").write_text(text)


def mean_of(evaluations: list[Evaluation]) -> Evaluation:
    """Seeds as one: each query has the mean of its values."""
    first = evaluations[0]
    by_query = [
        dict(zip(one.per_query["query_id"].to_pylist(), one.per_query["ndcg@10"].to_pylist(), strict=True))
        for one in evaluations
    ]
    values = [float(np.mean([one[name] for one in by_query])) for name in first.per_query["query_id"].to_pylist()]
    place = first.per_query.column_names.index("ndcg@10")
    return replace(first, per_query=first.per_query.set_column(place, "ndcg@10", pa.array(values)))


PAGE = """\
# What training learns from products, clicks and judgements

Most shops have products and no judgements. How far does training get with what is there? One base model, the same steps
and the same test queries, trained on products alone (`--pseudo_queries true`), on simulated clicks, and on the
judgements themselves.

5,315 fashion products to train on and 4,696 others to find; 670 test queries, which are synthetic and judged by the
retailer's attributes. MiniLM and MobileNetV2, **both frozen**, photos of 80 x 60 pixels, so that a run takes minutes on
one core. Stage 1 takes {steps} steps of {batch_size} pairs, stage 2 {steps2}. The best model by validation is kept: by
nDCG@10 of val queries, or, of products alone, by Recall@10 from held-out titles to their photos. The untrained model
has pretrained encoders and new projections. `tests/benchmarks/fit.py` says how clicks are simulated; their grades are
"{rule}".

Seeds: {seeds}. Intervals are over queries, and know nothing of another seed.

{table}

Stage 2 makes a model of products alone worse, above all for queries that ask for what only the photo shows: as each
title finds its own text, the fusion network learns to look at texts. `mmfusion fit` therefore stops after stage 1 where
there are no queries, and the vector of a product is the mean of its two views.

## A shop in one command

All but the test split of the same data, written out as a shop's export: {shop_products:,} products as a CSV, a
folder of photos and a search report of {shop_queries:,} queries. `mmfusion fit` splits these queries, and its
judgements are grades of simulated clicks, in its test split, too: what its own table measures is how well clicks are
predicted.

```bash
mmfusion fit shop/products.csv --photos shop/photos --clicks shop/report.csv --output outputs/shop \\
             --text encoders/text --vision encoders/vision --image_size '[80,60]' --steps 200 --stage2_steps 100 \\
             --optimization.text_learning_rate 0 --optimization.vision_learning_rate 0 \\
             --model_config '{{"vision_feature_layers": [5, 11], "projection_hidden_size": 512}}'
```

{shop}

Only what the shop's own ranking has shown can be judged by clicks, and that was BM25, which these judgements favour. On
the 670 test queries and their complete judgements, over test products that the shop does not have, the same models
come to:

{judged}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("bench", "text", "vision", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--part", choices=["train", "shop", "page"], required=True)
    arguments = parser.parse_args()
    arguments.output = arguments.output.absolute()
    arguments.output.mkdir(parents=True, exist_ok=True)
    catalogue = Catalogue.load(arguments.bench, cache_dir=arguments.output / "cache")
    rows, queries = not_of_test(catalogue.product_rows), not_of_test(catalogue.query_rows)
    fields = {"vision_feature_layers": [5, 11], "projection_hidden_size": 512}
    encoders = {"text": str(arguments.text), "vision": str(arguments.vision), "image_size": (80, 60)}
    if arguments.part == "train":
        if not (arguments.output / "base" / "config.json").exists():
            command("base")(output=str(arguments.output / "base"), model_config=fields, **encoders)
        arguments.blocks = 16
        clicked, report = arguments.output / "clicked", arguments.output / "report.csv"
        simulate(catalogue, report, 0, rows, queries)
        rule = with_clicks(arguments.bench, catalogue, report, clicked)
        (arguments.output / "rule.json").write_text(json.dumps(rule))
        evaluate(arguments, str(arguments.output / "base"), "zero")
        for seed in arguments.seeds:
            bench = arguments.bench.absolute()
            train(arguments, {"products": bench, "clicks": clicked, "qrels": bench}, seed)
        print(table(arguments, arguments.seeds))
    if arguments.part == "page":
        page(arguments, rows, queries)
    if arguments.part == "shop":
        shop = arguments.output / "shop"
        if not (shop / "report.csv").exists():
            export(catalogue, shop, rows)
            simulate(catalogue, shop / "report.csv", 0, rows, queries)
        command("fit")(
            sources=[str(shop / "products.csv")],
            photos=str(shop / "photos"),
            clicks=str(shop / "report.csv"),
            output=str(arguments.output / "fitted"),
            model_config=fields,
            optimization=Optimization(1e-3, **FROZEN),
            steps=STAGE1["steps"],
            stage2_steps=STAGE2["steps"],
            **encoders,
        )
        for name, model, ranker in RANKERS:
            command("evaluate")(
                catalogue=str(arguments.bench),
                base=str(arguments.output / "fitted" / model),
                output=str(arguments.output / "judged"),
                name=name,
                ranker=ranker,
                label_source="the retailer's attributes",
            )


if __name__ == "__main__":
    main()
