"""Search by photo, by words and by both; by hand: python tests/benchmarks/photo_queries.py --help

A catalogue with one photo a product has no second photo to search with. So a product's photo is the query, the product
itself is left out, and its siblings (the same style in other colours, as the retailer lists them in `attributes`) are
what is to be found, among all other products of the split. Two kinds of words go with it:

- title: the title of the product on the photo, as its seller wrote it. All siblings are relevant.
- colour: "in green", the colour of a sibling that is not the photo's own. Siblings of that colour are relevant.

Words and photo are combined in two ways: as the mean of two vectors (`Retriever.encode_photo_queries`), with weights of
the photo from 0 to 1, and by the product tower, which gets the words for a title. The way and the weight are chosen on
`--choose` and measured on `--split`. In fpi 24 products of val have a sibling, too few to choose by, so train is the
default: the model has seen these products, but nothing that says which of them are siblings.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmfusion.data.catalogue import Catalogue
from mmfusion.data.qrels import Qrels
from mmfusion.evaluation import Evaluation, evaluate_rankings, paired_bootstrap
from mmfusion.pages import text_table
from mmfusion.retriever import Retriever
from mmfusion.training import load_catalogue

WEIGHTS = tuple(round(0.1 * step, 1) for step in range(11))
METRICS = ("recall@10", "recall@100", "ndcg@10")
TOWER = "product tower"
LABELS = "siblings as the retailer lists them; no person judged what is alike"


class Questions:
    """Photos with words, and the products that they should find.

    Attributes:
        products: (P,) rows of the pool, int64.
        owners: (Q,) row of the product on each photo.
        words: Q texts.
        qrels: Judgements between questions and rows of the catalogue.
    """

    def __init__(self, catalogue: Catalogue, split: str, kind: str) -> None:
        self.products, self.kind = catalogue.product_rows(split), kind
        places = {str(catalogue.product_ids[row]): int(row) for row in self.products}
        attributes = catalogue.products.select_columns(["attributes"])["attributes"]
        facts = {row: json.loads(attributes[row]) for row in places.values()}
        asked: list[tuple[int, str, list[int]]] = []
        for row, own in facts.items():
            siblings = [places[str(one)] for one in own.get("sibling_styles") or () if str(one) in places]
            if kind == "title":
                asked += [(row, catalogue.titles([row])[0], siblings)] if siblings else []
                continue
            colours = {facts[one].get("base_colour") for one in siblings} - {own.get("base_colour"), None, "NA"}
            for colour in sorted(colours):
                found = [one for one in siblings if facts[one].get("base_colour") == colour]
                asked.append((row, f"in {colour.lower()}", found))
        self.owners = np.array([row for row, *_ in asked], dtype=np.int64)
        self.words = [words for _, words, _ in asked]
        pairs = [(place, one) for place, (*_, found) in enumerate(asked) for one in found]
        query, product = (np.array(column, dtype=np.int64) for column in zip(*pairs, strict=True))
        self.qrels = Qrels(query, product, np.ones(len(pairs), dtype=np.int64))

    def evaluate(self, name: str, queries: np.ndarray, products: np.ndarray, model: str) -> Evaluation:
        """Ranks the pool, without the product on the photo, by inner products."""
        scores = torch.from_numpy(queries) @ torch.from_numpy(products).T
        own = np.searchsorted(self.products, self.owners)
        scores[torch.arange(len(own)), torch.from_numpy(own)] = -torch.inf
        ranked = self.products[scores.topk(100, dim=1).indices.numpy()]
        places = np.arange(len(self.words))
        return evaluate_rankings(
            ranked,
            places,
            self.qrels,
            queries={"query_id": [str(place) for place in places]},
            product_rows=self.products,
            relevant_grade=1,
            query_slices=(),
            name=name,
            label_source=LABELS,
            provenance={"model": model},
        )


class Vectors:
    """Vectors of the products, photos and words of a split, kept in a folder, so that a run that is stopped goes on."""

    def __init__(self, retriever: Retriever, catalogue: Catalogue, folder: Path) -> None:
        self.retriever, self.catalogue, self.folder = retriever, catalogue, folder

    def _kept(self, name: str, make: Any) -> np.ndarray:
        path = self.folder / f"{name}-{self.retriever.fingerprint[:12]}.npy"
        if not path.exists():
            np.save(path, make())
        vectors: np.ndarray = np.load(path)
        return vectors

    def products(self, split: str, rows: np.ndarray) -> np.ndarray:
        return self._kept(f"{split}-products", lambda: self._by_part(rows, lambda part: self._records(part)))

    def towers(self, name: str, rows: np.ndarray, words: Sequence[str]) -> np.ndarray:
        """Photos of products with words in place of their titles, from the product tower."""
        columns = self.retriever.processor.template_columns

        def record(place: int) -> dict[str, Any]:
            image = self.catalogue.product(rows[place])["image"]
            return {**dict.fromkeys(columns), columns[0]: words[place], "image": image}

        places = np.arange(len(rows))
        return self._kept(name, lambda: self._by_part(places, lambda part: [record(int(one)) for one in part]))

    def photos(self, name: str, rows: np.ndarray) -> np.ndarray:
        def make() -> np.ndarray:
            unique, places = np.unique(rows, return_inverse=True)
            parts = [
                self.retriever.encode_photo_queries([self.catalogue.product(row)["image"] for row in part])
                for part in np.array_split(unique, max(1, len(unique) // 256))
            ]
            return np.concatenate(parts)[places]

        return self._kept(name, make)

    def _records(self, rows: np.ndarray) -> list[dict[str, Any]]:
        return [self.catalogue.product(row) for row in rows]

    def _by_part(self, rows: np.ndarray, records: Any) -> np.ndarray:
        parts = np.array_split(rows, max(1, len(rows) // 256))
        return np.concatenate([self.retriever.encode_products(records(part)) for part in parts])


def mixed(photos: np.ndarray, words: np.ndarray, weight: float) -> np.ndarray:
    """What `Retriever.encode_photo_queries` makes of both."""
    found = weight * photos + (1 - weight) * words
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), dtype=np.float32)


def measured(vectors: Vectors, split: str, kind: str) -> dict[str, Evaluation]:
    """All ways to search, by name."""
    questions = Questions(vectors.catalogue, split, kind)
    products = vectors.products(split, questions.products)
    photos = vectors.photos(f"{split}-{kind}-photos", questions.owners)
    words = vectors.retriever.encode_queries(questions.words)
    tower = vectors.towers(f"{split}-{kind}-tower", questions.owners, questions.words)
    queries = {f"mean, photo {weight}": mixed(photos, words, weight) for weight in WEIGHTS} | {TOWER: tower}
    model = vectors.retriever.fingerprint
    return {name: questions.evaluate(name, embeds, products, model) for name, embeds in queries.items()}


def page(
    args: argparse.Namespace,
    chosen: str,
    choices: dict[str, dict[str, Evaluation]],
    tests: dict[str, dict[str, Evaluation]],
) -> str:
    """What was found, as Markdown."""
    first = next(iter(tests.values()))[chosen]
    about = (__doc__ or "").strip().split("\n\n")
    lines = [
        "# Searching by photo, by words, and by both",
        f"`{args.command}`",
        *about[1:],
        f"Split `{args.split}` of `{Path(args.catalogue).name}`, a pool of {first.num_products:,} products; labels: "
        f"{LABELS}. Model: {args.name} (fingerprint {first.provenance['model'][:12]}), trained on the train products "
        f"alone; torch {torch.__version__}, on a CPU. Chosen on `{args.choose}`: **{chosen}**. Values in per cent; "
        "intervals of 95 % in points, by a paired bootstrap over queries of 10,000 samples, seed 0.",
    ]
    for kind, found in tests.items():
        alone = {"photo alone": found["mean, photo 1.0"], "words alone": found["mean, photo 0.0"]}
        both = {f"both: {name}": found[name] for name in dict.fromkeys([chosen, _best_mean(choices), TOWER])}
        rows = [["query", *METRICS, *(f"nDCG@10 against {name}" for name in alone)]]
        for name, one in {**alone, **both}.items():
            gains = ["" if one is other else _gain(one, other) for other in alone.values()]
            rows.append([name, *(f"{100 * one.means[metric]:.1f}" for metric in METRICS), *gains])
        lines += [f"## Words: {kind}", f"{found[chosen].num_queries:,} queries."]
        lines.append(text_table(rows))
    rows = [["way", *choices, "mean"]]
    for name in (*(f"mean, photo {weight}" for weight in WEIGHTS), TOWER):
        values = [found[name].means["ndcg@10"] for found in choices.values()]
        rows.append([name, *(f"{100 * value:.1f}" for value in (*values, float(np.mean(values))))])
    counts = ", ".join(f"{found[chosen].num_queries:,} of {kind}" for kind, found in choices.items())
    lines += ["## How it was chosen", f"nDCG@10 on `{args.choose}` ({counts}), by kind of words.", text_table(rows)]
    return "\n\n".join(lines) + "\n"


def _gain(one: Evaluation, other: Evaluation) -> str:
    found = paired_bootstrap(one, other, "ndcg@10")
    return f"{100 * found.difference:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def _best_mean(choices: dict[str, dict[str, Evaluation]]) -> str:
    return best(choices, [f"mean, photo {weight}" for weight in WEIGHTS])


def best(choices: dict[str, dict[str, Evaluation]], names: Sequence[str]) -> str:
    """The way with the highest nDCG@10, averaged over the kinds of words."""
    return max(names, key=lambda name: sum(found[name].means["ndcg@10"] for found in choices.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--catalogue", required=True, help="folder with products whose attributes name sibling_styles")
    parser.add_argument("--base", required=True, help="a model that was trained on its train products")
    parser.add_argument("--name", default="gated", help="what the page calls the model")
    parser.add_argument("--split", default="test")
    parser.add_argument("--choose", default="train", help="split on which way and weight are chosen")
    parser.add_argument("--work", type=Path, required=True, help="folder for vectors")
    parser.add_argument("--output", type=Path, help="page to write")
    args = parser.parse_args()
    args.command = shlex.join(["python", "tests/benchmarks/photo_queries.py", *sys.argv[1:]])
    args.work.mkdir(parents=True, exist_ok=True)
    vectors = Vectors(
        Retriever.from_pretrained(args.base, device="cpu"), load_catalogue(args.catalogue, None, args.work), args.work
    )
    kinds = ("title", "colour")
    choices = {kind: measured(vectors, args.choose, kind) for kind in kinds}
    chosen = best(choices, [*choices["title"]])
    text = page(args, chosen, choices, {kind: measured(vectors, args.split, kind) for kind in kinds})
    print(text)
    if args.output:
        args.output.write_text(text)


if __name__ == "__main__":
    main()
