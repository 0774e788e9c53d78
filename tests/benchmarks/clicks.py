"""How well grades from clicks recover known relevance; by hand: python tests/benchmarks/clicks.py

Logs are simulated: queries of which few are frequent, a page of 20 products, and shoppers of two kinds. Position-based
ones look at position k with probability 1 / k^eta; cascading ones read from the top, may stop when they clicked
something good, and may leave at any time. The ranker is good or poor, and fixed or changing (eight rankings a query).
"""

import argparse
import shlex
import sys
from collections.abc import Iterator
from itertools import product as combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from mmfusion.importers.clicks import COUNTS, ClickLog
from mmfusion.importers.grades import PRIOR_STRENGTH, grade, relative_grades, smoothed_rate

QUERIES, PRODUCTS, PAGE, RANKINGS = 200, 30, 20, 8
SHARES_OF_GRADES = (0.5, 0.25, 0.15, 0.1)
# By grade: chance of a click on a product that is looked at, of being content with it, and of a cart after a click.
ATTRACTIVENESS = np.array([0.03, 0.12, 0.35, 0.7])
SATISFACTION = np.array([0.1, 0.3, 0.6, 0.9])
CARTS = np.array([0.04, 0.06, 0.1, 0.16])
PURCHASES, STAYING = 0.4, 0.9
# Name, method, min_impressions, signal, and whether the log is a report: one row per pair, with its average position.
METHODS: tuple[tuple[str, str, int, str | None, bool], ...] = (
    ("pbm", "pbm", 1, None, False),
    ("pbm, from a report", "pbm", 1, None, True),
    ("rate", "rate", 1, None, False),
    ("rate, of orders", "rate", 1, "orders", False),
    ("funnel", "funnel", 1, None, False),
    ("funnel, of clicks", "funnel", 1, "clicks", False),
    ("coec", "coec", 1, None, False),
    ("sdbn", "sdbn", 1, None, False),
    ("linear", "linear", 1, None, False),
    ("pbm, min_impressions 20", "pbm", 20, None, False),
    ("funnel, min_impressions 20", "funnel", 20, None, False),
)
KNOWN = "(examination known)"

IntArray = npt.NDArray[np.int64]


class World(NamedTuple):
    """What a log comes from: kind of shopper, quality of the ranker, and whether its rankings change."""

    shopper: str
    ranker: str
    change: str


class Visits(NamedTuple):
    """Visits [V] with their page [V, 20]: query, products, and what became of each."""

    query: IntArray
    shown: IntArray
    clicked: npt.NDArray[np.bool_]
    carted: npt.NDArray[np.bool_]
    bought: npt.NDArray[np.bool_]


def rankings(world: World, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
    """True grades [Q, 30], and the products of each page [8, Q, 20]."""
    truth = rng.choice(4, size=(QUERIES, PRODUCTS), p=SHARES_OF_GRADES)
    moving = 0.6 if world.change == "changing" else 0.0
    score = {"good": 1.0, "poor": 0.25}[world.ranker] * truth + rng.normal(0, 1 - moving**2, truth.shape)
    scores = score + rng.normal(0, moving, (RANKINGS, *truth.shape))
    return truth, np.argsort(-scores, axis=2, kind="stable")[:, :, :PAGE]


def visit(world: World, truth: IntArray, pages: IntArray, visits: int, eta: float, rng: np.random.Generator) -> Visits:
    """Simulated visits; the query of rank r comes with a probability of 1 / r."""
    popularity = 1 / np.arange(1, QUERIES + 1)
    query = rng.choice(QUERIES, visits, p=popularity / popularity.sum())
    shown = pages[rng.integers(0, RANKINGS, visits), query]
    grades = truth[query[:, None], shown]
    clicked = rng.random(grades.shape) < ATTRACTIVENESS[grades]
    if world.shopper == "position-based":
        clicked &= rng.random(grades.shape) < 1 / np.arange(1, PAGE + 1) ** eta
    else:
        content = clicked & (rng.random(grades.shape) < SATISFACTION[grades])
        ends = content | (rng.random(grades.shape) > STAYING)
        clicked &= (np.cumsum(ends, axis=1) - ends) == 0
    carted = clicked & (rng.random(grades.shape) < CARTS[grades])
    return Visits(query, shown, clicked, carted, carted & (rng.random(grades.shape) < PURCHASES))


def click_log(visits: Visits, report: bool) -> ClickLog:
    """The log as `read_clicks` makes it."""
    count = len(visits.query)
    sessions = pd.DataFrame(
        {
            "session": np.repeat(np.arange(count), PAGE),
            "query": np.repeat(visits.query, PAGE),
            "product": visits.shown.ravel(),
            "position": np.tile(np.arange(1, PAGE + 1), count),
            "clicked": visits.clicked.ravel(),
            "add_to_cart": visits.carted.ravel(),
            "purchased": visits.bought.ravel(),
        }
    )
    counts = sessions.assign(impressions=1, clicks=sessions["clicked"], purchases=sessions["purchased"], line=0, file=0)
    if report:
        counts["position"] = counts.groupby(["query", "product"])["position"].transform("mean").round().astype(int)
    cells = counts.groupby(["query", "product", "position"], as_index=False)[list(COUNTS)].sum()
    names = [str(number) for number in range(max(QUERIES, PRODUCTS))]
    return ClickLog("", {}, names, names, cells.assign(file=0, line=0), None if report else sessions, ["log"], True)


def recovered(visits: Visits, eta: float) -> Iterator[tuple[str, IntArray]]:
    """Grades [Q, 30] by each method, 0 where there is none."""
    logs = {report: click_log(visits, report) for report in (False, True)}
    for name, method, least, signal, report in METHODS:
        grades = np.zeros((QUERIES, PRODUCTS), np.int64)
        try:
            rows = grade(logs[report], method, min_impressions=least, signal=signal).rows  # type: ignore[arg-type]
        except ValueError:
            rows = []  # nothing was shown, or bought, often enough
        for query, item, found in rows:
            grades[int(query), int(item)] = found
        yield name, grades
    cells = logs[False].cells.assign(looks=lambda frame: frame["impressions"] / frame["position"] ** eta)
    pairs = cells.groupby(["query", "product"], as_index=False)[["clicks", "looks"]].sum()
    score = smoothed_rate(pairs["clicks"], pairs["looks"], PRIOR_STRENGTH)
    grades = np.zeros((QUERIES, PRODUCTS), np.int64)
    grades[pairs["query"], pairs["product"]] = relative_grades(pairs["query"].to_numpy(), score, pairs["clicks"])
    yield KNOWN, grades


def tau_b(first: IntArray, second: IntArray) -> float:
    """Kendall's tau-b of two lists of grades; 0 where all of one are equal."""
    signs = [np.sign(values[:, None] - values) for values in (first, second)]
    ties = np.sqrt(float((signs[0] != 0).sum()) * float((signs[1] != 0).sum()))
    return float((signs[0] * signs[1]).sum() / ties) if ties else 0.0


def measure(world: World, visits: int, seed: int, eta: float) -> Iterator[dict[str, object]]:
    """Tau by method: the mean over queries that were asked, over the products that were shown for each."""
    truth, pages = rankings(world, np.random.default_rng([seed, 0]))
    log = visit(world, truth, pages, visits, eta, np.random.default_rng([seed, visits]))
    shown = np.zeros(truth.shape, bool)
    shown[log.query[:, None], log.shown] = True
    judged = [row for row in range(QUERIES) if len(set(truth[row][shown[row]])) > 1]
    for name, grades in recovered(log, eta):
        taus = [tau_b(truth[row][shown[row]], grades[row][shown[row]]) for row in judged]
        yield {**world._asdict(), "visits": visits, "seed": seed, "method": name, "tau": np.mean(taus)}


def page(results: pd.DataFrame, command: str) -> str:
    """The tables as Markdown."""
    where = list(World._fields)
    by_world = results.groupby(["method", "visits", *where], sort=False)["tau"].agg(["mean", "std"]).reset_index()
    names, sizes = list(dict.fromkeys(results["method"])), sorted(set(results["visits"]))
    lines = [
        "# Grades from clicks",
        "",
        f"`{command}`",
        "",
        f"{results['seed'].nunique()} seeds, {QUERIES} queries of {PRODUCTS} products, pages of {PAGE}. Kendall's "
        "tau-b of the grades (0 to 3, none is 0) with the true ones: the mean over queries that were asked, of the "
        "products that were shown. Worst: the lowest of eight worlds (two kinds of shoppers, a good or a poor ranker, "
        "changing or fixed), mean ± standard deviation over seeds; mean: over the worlds. The last row knows how often "
        "position-based shoppers look at each position, which no log tells.",
        "",
        "| method | " + " | ".join(f"worst, {size:,} visits | mean" for size in sizes) + " |",
        "|---|" + "---:|---:|" * len(sizes),
    ]
    for name in names:
        cells = []
        for size in sizes:
            part = by_world[(by_world["method"] == name) & (by_world["visits"] == size)]
            worst = part.loc[part["mean"].idxmin()]
            cells += [f"{worst['mean']:.2f} ± {worst['std']:.2f}", f"{part['mean'].mean():.2f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    largest = by_world[by_world["visits"] == sizes[-1]].pivot_table("mean", "method", where, sort=False)
    lines += [
        "",
        f"Each world, at {sizes[-1]:,} visits:",
        "",
        "| method | " + " | ".join(", ".join(world) for world in largest.columns) + " |",
        "|---|" + "---:|" * len(largest.columns),
        *(f"| {name} | " + " | ".join(f"{tau:.2f}" for tau in largest.loc[name]) + " |" for name in names),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--visits", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="sizes of the logs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--eta", type=float, default=1.0, help="how fast position-based shoppers lose interest")
    parser.add_argument("--output", type=Path, help="Markdown file to write, e.g. docs/benchmarks/clicks.md")
    arguments = parser.parse_args()
    worlds = [
        World(*one) for one in combinations(("position-based", "cascading"), ("good", "poor"), ("changing", "fixed"))
    ]
    rows = [
        row
        for world, visits, seed in combinations(worlds, arguments.visits, range(arguments.seeds))
        for row in measure(world, visits, seed, arguments.eta)
    ]
    text = page(pd.DataFrame(rows), f"python tests/benchmarks/clicks.py {shlex.join(sys.argv[1:])}".strip())
    print(text)
    if arguments.output:
        arguments.output.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
