"""One card a query: what two models found for it, side by side."""

from collections.abc import Sequence

import numpy as np

from mmfusion.data.tables import Rows
from mmfusion.evaluation.tables import percent
from mmfusion.report.ablation import points
from mmfusion.report.choice import METRIC, Chosen, Kind
from mmfusion.report.html import Html, foreign, join, tag
from mmfusion.report.ranking import PLACES, Questions, Ranking
from mmfusion.report.thumbnails import Thumbnail, Thumbnails


class Cards:
    """Draws cards for queries that two models answered.

    Args:
        questions: The queries and their pool.
        rankings: What the models found, with the title of each; the first is the baseline.
    """

    def __init__(self, questions: Questions, rankings: Sequence[tuple[str, Ranking]]) -> None:
        self._questions = questions
        self._rankings = rankings
        self._thumbnails = Thumbnails(questions.catalogue)
        self._highest_grade = int(questions.catalogue.qrels.grade.max(initial=0))

    def section(self, kind: Kind) -> Html:
        """All cards of one kind of query, under how the models compare on that kind."""
        total = kind.better + kind.equal + kind.worse
        summary = (
            f"Of {total:,} {'query' if total == 1 else 'queries'}, nDCG@10 is higher with the fusion model for "
            f"{kind.better:,}, equal for {kind.equal:,} and lower for {kind.worse:,}."
        )
        return tag(
            "section",
            tag("h3", join("Kind: ", foreign(kind.name, 80))),
            tag("p", summary),
            *(self.card(choice) for choice in kind.chosen),
        )

    def card(self, choice: Chosen) -> Html:
        """One query with both top tens."""
        row = int(self._questions.query_rows[choice.place])
        catalogue = self._questions.catalogue
        products, grades = catalogue.qrels.for_query(row)
        judged = dict(zip(products.tolist(), grades.tolist(), strict=True))
        competing = self._questions.product_rows[self._column(products)] == products
        relevant = int((competing & (grades >= self._questions.relevant_grade)).sum())
        first, second = (ranking.per_query[METRIC][choice.place] for _, ranking in self._rankings)
        facts = [
            tag("span", choice.reason, class_="reason"),
            f" · nDCG@10 {percent(first)} → {percent(second)} ({points(second - first)}) · {relevant:,} relevant in "
            "the pool · query ",
            foreign(str(catalogue.query_ids[row]), 80),
        ]
        return tag(
            "article",
            tag("h4", tag("q", foreign(catalogue.query_texts([row])[0]))),
            tag("p", *facts, class_="facts"),
            tag(
                "div",
                *(self._top(title, found, choice.place, judged) for title, found in self._rankings),
                class_="pair",
            ),
        )

    def _top(self, title: str, found: Ranking, place: int, judged: dict[int, int]) -> Html:
        rows = [int(row) for row in found.products[place] if row >= 0]
        titles = self._questions.catalogue.titles(rows)
        hits = sum(judged.get(row, 0) >= self._questions.relevant_grade for row in rows)
        tiles = [
            self._tile(row, text, found, float(score), judged.get(row))
            for row, text, score in zip(rows, titles, found.scores[place], strict=False)
        ]
        heading = tag("h5", title, " ", tag("span", f"{hits} of {len(rows)} relevant", class_="count"))
        label = f"First {PLACES} of {title}"
        box = tag("div", tag("ol", *tiles), class_="strip", role="region", aria_label=label, tabindex=0)
        return tag("div", heading, box, class_="side")

    def _tile(self, row: int, title: str, found: Ranking, score: float, grade: int | None) -> Html:
        product_id = str(self._questions.catalogue.product_ids[row])
        text, photo = (float(share) for share in found.weights[self._column(np.array([row]))[0]])
        return tag(
            "li",
            _picture(self._thumbnails.of(row), title or product_id),
            self._grade(grade),
            tag("p", foreign(title, 120) if title else tag("em", "no title"), class_="title"),
            _weights(photo, text, found.text_name),
            tag("p", foreign(product_id, 60), tag("br"), f"score {score:.3f}", class_="small"),
        )

    def _column(self, rows: Rows) -> Rows:
        """Columns of product rows in the pool, whose rows ascend; that of a row outside it is another one's."""
        pool = self._questions.product_rows
        return np.minimum(np.searchsorted(pool, rows), len(pool) - 1)

    def _grade(self, grade: int | None) -> Html:
        if grade is None:
            return tag("p", "not judged", class_="grade none")
        shade = "full" if grade >= self._questions.relevant_grade else "part" if grade > 0 else "none"
        return tag("p", f"grade {grade} of {self._highest_grade}", class_=f"grade {shade}")


def _picture(thumbnail: Thumbnail, name: str) -> Html:
    if thumbnail.uri is None:
        return tag("div", tag("span", thumbnail.missing), class_="photo missing")
    alt = f"Photo of {name[:120]}"
    size = {"width": thumbnail.width, "height": thumbnail.height}
    more = tag("span", f"+{thumbnail.others}", class_="more", title="further photos") if thumbnail.others > 0 else None
    return tag("div", tag("img", src=thumbnail.uri, alt=alt, decoding="async", **size), more, class_="photo")


def _weights(photo: float, text: float, text_name: str) -> Html:
    words = tag("span", f"photo {photo:.2f},"), " ", tag("span", f"{text_name} {text:.2f}")
    share = tag("rect", x=0, y=0, width=f"{round(100 * photo, 2)}%", height=6, class_="share")
    whole = tag("rect", x=0, y=0, width="100%", height=6, class_="whole")
    return join(
        tag("svg", whole, share, width="100%", height=6, aria_hidden="true", class_="weights"),
        tag("p", *words, class_="small"),
    )
