"""Puts the parts of a report together."""

from collections.abc import Mapping
from typing import Any

from mmfusion.evaluation import Evaluation
from mmfusion.report.bars import plots
from mmfusion.report.cards import Cards
from mmfusion.report.choice import MAX_KINDS, Kind
from mmfusion.report.conditions import facts, introduction
from mmfusion.report.heat_map import heat_map, legend
from mmfusion.report.html import Html, foreign, join, tag
from mmfusion.report.ladder import climb, ladder_table
from mmfusion.report.page import Section, build_page
from mmfusion.report.ranking import Questions, Ranking
from mmfusion.report.results import METRICS


def build_report(
    rungs: list[Evaluation],
    questions: Questions,
    baseline: Ranking,
    fusion: Ranking,
    kinds: list[Kind],
    *,
    queries_per_kind: int,
    seed: int,
    arguments: Mapping[str, Any],
    records: Mapping[str, Mapping[str, Any] | None],
) -> Html:
    """The page.

    Args:
        rungs: Evaluations in the order of the ladder.
        questions: Queries and pool of the cards.
        baseline: What the first model found.
        fusion: What the second model found.
        kinds: Chosen queries.
        queries_per_kind: How many were asked for.
        seed: Of the random queries and of the bootstrap.
        arguments: Of the command that makes the page.
        records: What each model's folder says about its training, by name; None where it says nothing.
    """
    ladders = {metric: climb(rungs, metric, seed=seed) for metric in METRICS}
    sections = [
        Section("ladder", "The ladder", join(ladder_table(ladders), _about_intervals(ladders, seed), plots(ladders))),
        Section("slices", "Slices", _slices(rungs)),
        Section(
            "queries",
            "Queries, model beside model",
            _queries(questions, baseline, fusion, kinds, rungs, queries_per_kind, seed),
        ),
        Section("made", "How this page was made", _made(rungs, arguments, records)),
    ]
    return build_page("Ladder of product towers", introduction(rungs, questions.split), sections)


def _about_intervals(ladders: Mapping[str, Any], seed: int) -> Html:
    found = next((step.before for steps in ladders.values() for step in steps if step.before is not None), None)
    if found is None:
        return tag("p", "A single result has nothing to be compared with.")
    return tag(
        "p",
        f"Paired bootstrap over {found.num_queries:,} queries, {found.num_resamples:,} samples, seed {seed}; bold "
        "where the interval excludes zero. It speaks of other queries of this kind, not of another training seed.",
    )


def _slices(rungs: list[Evaluation]) -> Html:
    note = (
        "Each cell: the value, and its difference to the first rung in points. A product slice is Recall over each "
        "query's relevant products with that value; nDCG has no such parts."
    )
    return join(tag("p", note), legend(), *(heat_map(rungs, metric) for metric in METRICS))


def _queries(
    questions: Questions,
    baseline: Ranking,
    fusion: Ranking,
    kinds: list[Kind],
    rungs: list[Evaluation],
    queries_per_kind: int,
    seed: int,
) -> Html:
    models = [("Baseline", baseline), ("Fusion", fusion)]
    chosen = (
        f"{queries_per_kind} of each kind were chosen: a third with the largest gain of nDCG@10 from baseline to "
        f"fusion, a third with the largest loss, and the rest drawn at random (seed {seed}) from the others; where too "
        f"few gain or lose, more are drawn. They are examples, not a sample: the extremes are the most unlike. At most "
        f"{MAX_KINDS} kinds, those with the most queries."
    )
    weights = (
        "Below each photo: its grade, its title, how much the product vector draws on photo (blue) and text (sand) as "
        "the model reports it, its id, and the score. A product that nobody judged counts as grade 0."
    )
    cards = Cards(questions, [(f"{role}: {found.name}", found) for role, found in models])
    return join(
        tag("ul", *(tag("li", f"{role}: ", *_identity(found, rungs)) for role, found in models)),
        tag("p", chosen),
        tag("p", weights),
        *(cards.section(kind) for kind in kinds),
    )


def _identity(found: Ranking, rungs: list[Evaluation]) -> list[Html]:
    same = [rung.name for rung in rungs if rung.provenance.get("model") == found.fingerprint]
    names = [join(", " if place else "", foreign(name)) for place, name in enumerate(same)]
    where = join("the model of ", *names) if same else "which no result of the ladder carries"
    return [foreign(found.name), join(f" (fingerprint {found.fingerprint[:12]}, ", where, ")")]


def _made(
    rungs: list[Evaluation], arguments: Mapping[str, Any], records: Mapping[str, Mapping[str, Any] | None]
) -> Html:
    return join(
        facts("Arguments of recipes/report.py", arguments, opened=True),
        *(facts(f"Training of {name}", record or {}) for name, record in records.items()),
        *(facts(f"Result {rung.name}", rung.provenance) for rung in rungs),
    )
