"""Puts the parts of a report together."""

from collections.abc import Mapping
from typing import Any

from mmfusion.evaluation import Evaluation
from mmfusion.report.ablation import ablation_table, climb
from mmfusion.report.bars import plots
from mmfusion.report.cards import Cards
from mmfusion.report.choice import MAX_KINDS, Kind
from mmfusion.report.conditions import facts, introduction
from mmfusion.report.heat_map import heat_map, legend
from mmfusion.report.html import Html, foreign, join, tag
from mmfusion.report.page import Section, build_page
from mmfusion.report.ranking import Questions, Ranking
from mmfusion.report.results import METRICS


def build_report(
    variants: list[Evaluation],
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
        variants: Evaluations in the order of the ablation.
        questions: Queries and pool of the cards.
        baseline: What the first model found.
        fusion: What the second model found.
        kinds: Chosen queries.
        queries_per_kind: How many were asked for.
        seed: Of the random queries and of the bootstrap.
        arguments: Of the command that makes the page.
        records: What each model's folder says about its training, by name; None where it says nothing.
    """
    ablations = {metric: climb(variants, metric, seed=seed) for metric in METRICS}
    sections = [
        Section(
            "ablation",
            "The ablation",
            join(ablation_table(ablations), _about_intervals(ablations, seed), plots(ablations)),
        ),
        Section("slices", "Slices", _slices(variants)),
        Section(
            "queries",
            "Queries, model beside model",
            _queries(questions, baseline, fusion, kinds, variants, queries_per_kind, seed),
        ),
        Section("made", "How this page was made", _made(variants, arguments, records)),
    ]
    return build_page("Ablation of product towers", introduction(variants, questions.split), sections)


def _about_intervals(ablations: Mapping[str, Any], seed: int) -> Html:
    found = next((step.before for steps in ablations.values() for step in steps if step.before is not None), None)
    if found is None:
        return tag("p", "A single result has nothing to be compared with.")
    return tag(
        "p",
        f"Paired bootstrap over {found.num_queries:,} queries, {found.num_resamples:,} samples, seed {seed}; bold "
        "where the interval excludes zero. It speaks of other queries of this kind, not of another training seed.",
    )


def _slices(variants: list[Evaluation]) -> Html:
    note = (
        "Each cell: the value, and its difference to the first variant in points. A product slice is Recall over each "
        "query's relevant products with that value; nDCG has no such parts."
    )
    return join(tag("p", note), legend(), *(heat_map(variants, metric) for metric in METRICS))


def _queries(
    questions: Questions,
    baseline: Ranking,
    fusion: Ranking,
    kinds: list[Kind],
    variants: list[Evaluation],
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
        tag("ul", *(tag("li", f"{role}: ", *_identity(found, variants)) for role, found in models)),
        tag("p", chosen),
        tag("p", weights),
        *(cards.section(kind) for kind in kinds),
    )


def _identity(found: Ranking, variants: list[Evaluation]) -> list[Html]:
    same = [variant.name for variant in variants if variant.provenance.get("model") == found.fingerprint]
    names = [join(", " if place else "", foreign(name)) for place, name in enumerate(same)]
    where = join("the model of ", *names) if same else "which no result of the ablation carries"
    return [foreign(found.name), join(f" (fingerprint {found.fingerprint[:12]}, ", where, ")")]


def _made(
    variants: list[Evaluation], arguments: Mapping[str, Any], records: Mapping[str, Mapping[str, Any] | None]
) -> Html:
    return join(
        facts("Arguments of mmfusion report", arguments, opened=True),
        *(facts(f"Training of {name}", record or {}) for name, record in records.items()),
        *(facts(f"Result {variant.name}", variant.provenance) for variant in variants),
    )
