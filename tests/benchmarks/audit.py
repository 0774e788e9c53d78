"""How many wrong titles and photos an audit finds, and how many rightly; by hand:

    python tests/benchmarks/audit.py --bench data/fpi --base outputs/stage1 --output outputs/audit_benchmark

The model has learned from train queries and products alone; the audit learns from the titles of train and val, and from
train queries. A wrong colour word is put into some titles of test products (`mislead`, as `--perturb misleading_titles`
does). The retailer's attributes score, and are read by nothing else: a title counts as wrong if a word was put in and
it is not the retailer's colour. Vectors are kept in the output folder, so that a second run takes a minute.
"""

import argparse
import io
import json
import resource
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mmfusion.audit.audit import Judged, Settings, Texts, judge
from mmfusion.audit.photo_words import naming, word_vectors
from mmfusion.audit.same_photos import same_photos
from mmfusion.audit.thresholds import (
    disagreement,
    sample_of,
    strangeness,
    wrong_photo_threshold,
    wrong_word_threshold,
)
from mmfusion.audit.views import SIDE, product_views, query_views
from mmfusion.audit.vocabulary import ENGLISH, Attribute, used_in
from mmfusion.commands.audit import _train_queries
from mmfusion.data.catalogue import Catalogue
from mmfusion.data.photos import decode_photo
from mmfusion.evaluation.perturb import mislead
from mmfusion.pages import text_table
from mmfusion.training.sources import load_base

SEEDS, RESAMPLES = range(5), 500
SHARES = (0.0, 0.02, 0.05, 0.1, 0.3)
KEYS = {"colour": "base_colour", "pattern": "Pattern", "audience": "gender", "material": "Fabric"}
Array = np.ndarray[Any, Any]


def auc(scores: Array, wrong: Array) -> float:
    """Area under the ROC curve: how often a wrong one scores above a right one, ties being half."""
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    many = int(wrong.sum())
    return float((ranks[wrong].sum() - many * (many + 1) / 2) / (many * (len(wrong) - many)))


def interval(statistic: Callable[[Array], float], count: int) -> str:
    """A statistic of rows in per cent, with the 95 % percentile interval of a bootstrap over them."""
    rng = np.random.default_rng(0)
    drawn = [statistic(rng.integers(count, size=count)) for _ in range(RESAMPLES)]
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return f"{100 * statistic(np.arange(count)):.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def share(hits: Array, among: Array) -> Callable[[Array], float]:
    """The share of hits among some rows, as a statistic."""
    return lambda rows: float(hits[rows][among[rows]].mean()) if among[rows].any() else float("nan")


class Drawn(NamedTuple):
    """One catalogue with mistakes in it, by test product: scores (P,), what can be wrong, is wrong and is listed."""

    scores: Array
    able: Array
    wrong: Array
    listed: Array
    errors: float


def summary(drawn: Sequence[Drawn]) -> list[str]:
    """AUC, precision and recall: means over the catalogues, with intervals of these means over the products."""

    def mean_of(measure: Callable[[Drawn, Array], float], rows: Array) -> float:
        return float(np.mean([measure(one, rows[one.able[rows]]) for one in drawn]))

    measures = (
        lambda one, rows: auc(one.scores[rows], one.wrong[rows]),
        lambda one, rows: share(one.wrong, one.listed)(rows),
        lambda one, rows: share(one.listed, one.wrong)(rows),
    )
    return [interval(partial(mean_of, measure), len(drawn[0].scores)) for measure in measures]


class Bench:
    """The bench, the model's vectors of it, and what the retailer says."""

    def __init__(self, bench: str, base: str, output: Path) -> None:
        self.catalogue = Catalogue.load(bench, cache_dir=output / "cache" / "catalogue")
        self.model, self.processor = load_base(base)
        self.model.eval()
        rows = np.arange(len(self.catalogue.products))
        self.views = product_views(self.model, self.processor, self.catalogue, rows, output / "cache" / "views")
        self.titles = self.catalogue.titles(rows)
        self.audited = np.isin(rows, self.catalogue.product_rows("test"))
        query_rows, qrels = _train_queries(self.catalogue, rows)
        queries = self.catalogue.query_texts(query_rows)
        self.texts = Texts(queries, query_views(self.model, self.processor, queries), qrels)
        learned = [title for title, test in zip(self.titles, self.audited, strict=True) if not test]
        self.attributes = used_in(ENGLISH, learned, queries, 5)
        self.facts = [json.loads(one) for one in self.catalogue.products["attributes"]]

    def retailer(self, attribute: Attribute) -> Array:
        """The retailer's value of an attribute by product, -1 where it is none of the vocabulary."""
        key, place = KEYS[attribute.name], {value: number for number, value in enumerate(attribute.values)}
        said = [facts.get(key) or facts.get("article_attributes", {}).get(key) or "" for facts in self.facts]
        return np.array([place[named[0]] if (named := attribute.named_in(one)) else -1 for one in said])

    def judged(self, attribute: Attribute) -> Judged:
        return judge(attribute, self.titles, self.views, ~self.audited, self.audited, self.texts, Settings())


def wrong_words(bench: Bench) -> None:
    """Wrong colours in a tenth of all titles, and in shares of those that name a colour."""
    colour = bench.attributes[0]
    retailer, judged = bench.retailer(colour), bench.judged(colour)
    shares, names, photos = judged.log_shares, judged.naming.named.any(1), bench.audited & bench.views.has_photo
    test = np.flatnonzero(bench.audited)
    rows = [["wrong words put into", "titles", "wrong", "estimated", "AUC", "listed", "precision", "recall"]]
    cases = [("10 % of all titles", test, 0.1)]
    cases += [(f"{100 * one:g} % of titles that name one", test[names[test]], one) for one in SHARES]
    for name, pool, part in cases:
        drawn: list[Drawn] = []
        for seed in SEEDS:
            rng = Random(seed)
            chosen = rng.sample(pool.tolist(), round(part * len(pool)))
            titles = list(bench.titles)
            for row in chosen:
                titles[row] = mislead(titles[row], rng)
            # What photos show is learned from titles of train and val, which stay as they are.
            naming_now = naming(colour, titles).named
            threshold = wrong_word_threshold(shares[photos], naming_now[photos], Settings().precision, seed)
            # A word that was put in may happen to be right.
            fits = naming_now[np.arange(len(titles)), retailer] & (retailer >= 0)
            wrong = np.isin(np.arange(len(titles)), chosen) & ~fits
            scores = disagreement(shares, naming_now)
            able = naming_now.any(1)
            found = Drawn(scores, able, wrong, threshold.reached(scores), threshold.errors)
            drawn.append(Drawn(*(one[photos] for one in found[:-1]), threshold.errors))
        wrong = np.concatenate([one.wrong[one.able] for one in drawn])
        listed = sum(int(one.listed.sum()) for one in drawn) / len(SEEDS)
        estimated = np.mean([one.errors for one in drawn])
        cells = summary(drawn) if wrong.any() else ["–"] * 3
        count = int(drawn[0].able.sum())
        parts = [f"{100 * one:.1f}" for one in (wrong.mean(), estimated)]
        rows.append([name, f"{count:,}", *parts, cells[0], f"{listed:.0f}", *cells[1:]])
    print(text_table(rows), flush=True)


def nearest_word(bench: Bench) -> None:
    """The same AUC where a photo's value is simply the word whose vector is nearest."""
    colour = bench.attributes[0]
    titles, queries = naming(colour, bench.titles), naming(colour, bench.texts.queries)
    words = word_vectors(
        len(colour.values),
        np.concatenate([np.where(bench.audited, -1, titles.labels), queries.labels]),
        np.concatenate([bench.views.text, bench.texts.vectors]),
    )
    rng, test = Random(0), np.flatnonzero(bench.audited).tolist()
    changed = {row: mislead(bench.titles[row], rng) for row in rng.sample(test, round(0.1 * len(test)))}
    named = naming(colour, [changed.get(row, title) for row, title in enumerate(bench.titles)]).named
    rows = np.flatnonzero(bench.audited & named.any(1))
    scores, wrong = disagreement(bench.views.photo[rows] @ words.T, named[rows]), np.isin(rows, list(changed))
    print(f"nearest word alone: AUC {interval(lambda drawn: auc(scores[drawn], wrong[drawn]), len(rows))}")


def missing_words(bench: Bench) -> None:
    """What photos add to titles that name no value, beside what the retailer says."""
    rows = [["attribute", "titles without", "suggested", "known", "equal", "equal of all known", "by the measure"]]
    for attribute in bench.attributes:
        judged, retailer = bench.judged(attribute), bench.retailer(attribute)
        without = np.flatnonzero(bench.audited & ~judged.naming.named.any(1))
        equal, known = judged.log_shares.argmax(1)[without] == retailer[without], retailer[without] >= 0
        suggested = judged.missing.reached(np.exp(judged.log_shares.max(1)))[without]
        measured = "–" if judged.missing.score is None else f"{100 * judged.missing.precision:.1f}"
        cells = [interval(share(equal, among), len(without)) for among in (suggested & known, known)]
        counts = [f"{int(one.sum()):,}" for one in (suggested, suggested & known)]
        rows.append([attribute.name, f"{len(without):,}", *counts, *cells, measured])
    print(text_table(rows), flush=True)


def wrong_photos(bench: Bench) -> None:
    """Photos exchanged among a tenth of the test products."""
    rows = np.flatnonzero(bench.audited & bench.views.has_photo & bench.views.has_text)
    text, sample = bench.views.text[rows], sample_of(np.asarray(bench.views.text[rows]), 0)
    drawn = []
    for seed in SEEDS:
        rng, shown = np.random.default_rng(seed), np.arange(len(rows))
        chosen = rng.choice(len(rows), len(rows) // 10, replace=False)
        shown[chosen] = np.roll(chosen, 1)
        photo = bench.views.photo[rows[shown]]
        scores = strangeness(text, photo, sample)
        threshold = wrong_photo_threshold(text, photo, sample, Settings().precision, seed)
        able, wrong = np.ones(len(rows), dtype=bool), shown != np.arange(len(rows))
        drawn.append(Drawn(scores, able, wrong, threshold.reached(scores), threshold.errors))
    estimated = np.mean([one.errors for one in drawn])
    head = ["photos exchanged among", "products", "estimated", "AUC", "precision", "recall"]
    print(text_table([head, ["10 %", f"{len(rows):,}", f"{100 * estimated:.1f}", *summary(drawn)]]), flush=True)


def same(bench: Bench) -> None:
    """Copies of photos that were made smaller and compressed again, and photos of other products."""
    test = np.flatnonzero(bench.audited & bench.views.has_photo)
    picked = np.random.default_rng(0).choice(test, min(300, len(test)), replace=False)
    copies = []
    for row in picked.tolist():
        image = bench.catalogue.product(row)["image"]
        photo, file = decode_photo(image[0] if isinstance(image, list) else image), io.BytesIO()
        photo.resize((photo.width * 2 // 3, photo.height * 2 // 3), Image.Resampling.LANCZOS).save(
            file, "JPEG", quality=60
        )
        small = Image.open(file).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
        copies.append(np.asarray(small, np.float32).ravel() / 255)
    tiny = np.concatenate([bench.views.tiny[test], np.stack(copies)])
    for distance in (0.03, 0.06, 0.09, 0.12):
        groups = same_photos(tiny, np.ones(len(tiny), bool), distance)
        group_of = {place: number for number, group in enumerate(groups) for place in group}
        places = np.searchsorted(test, picked)
        hit = [group_of.get(len(test) + one, -1) == group_of.get(int(place), -2) for one, place in enumerate(places)]
        others = sum(len([place for place in group if place < len(test)]) > 1 for group in groups)
        print(
            f"photo_distance {distance}: {100 * np.mean(hit):.1f} % of {len(copies)} copies found; {others} groups of "
            f"several of the {len(test):,} products",
            flush=True,
        )


PARTS = {
    "wrong_words": wrong_words,
    "nearest_word": nearest_word,
    "missing_words": missing_words,
    "wrong_photos": wrong_photos,
    "same": same,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--bench", required=True)
    parser.add_argument("--base", required=True, help="model of stage 1 or stage 2, trained on the bench's train split")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    arguments = parser.parse_args()
    bench = Bench(arguments.bench, arguments.base, arguments.output)
    colours = ", ".join(bench.attributes[0].values)
    print(
        f"{bench.audited.sum():,} test products; learned from {(~bench.audited).sum():,} others and "
        f"{len(bench.texts.queries):,} train queries; colours: {colours}",
        flush=True,
    )
    for part in arguments.parts:
        PARTS[part](bench)
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(f"{used.ru_utime + used.ru_stime:.0f} CPU seconds in all")


if __name__ == "__main__":
    main()
