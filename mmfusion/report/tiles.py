"""What the card of a query shows: the products that two models found for it, with photos, grades and weights."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from mmfusion.data.catalogue import Catalogue
from mmfusion.data.photos import PhotoReader
from mmfusion.pages import thumbnail
from mmfusion.report.queries import METRIC, Chosen, Questions, Ranking

SIZE = (132, 176)
"""Largest width and height of a thumbnail in pixels, enough for a sharp picture on a dense screen."""


class Cards:
    """Gathers what the template needs to draw cards of queries that two models answered.

    Args:
        questions: The queries and their pool.
        rankings: What the models found; the first is the baseline.
    """

    def __init__(self, questions: Questions, rankings: Sequence[Ranking]) -> None:
        self._questions, self._catalogue, self._rankings = questions, questions.catalogue, rankings
        self._highest_grade = int(questions.catalogue.qrels.grade.max(initial=0))
        # The same product is found for many queries.
        self.thumbnail = lru_cache(maxsize=4096)(Thumbnails(questions.catalogue))

    def card(self, choice: Chosen) -> dict[str, Any]:
        """One query with both top tens."""
        row, pool = int(self._questions.query_rows[choice.place]), self._questions.product_rows
        products, grades = self._catalogue.qrels.for_query(row)
        judged = dict(zip(products.tolist(), grades.tolist(), strict=True))
        competing = np.isin(products, pool)
        first, second = (ranking.per_query[METRIC][choice.place] for ranking in self._rankings)
        return {
            "reason": choice.reason,
            "query": self._catalogue.query_texts([row])[0],
            "query_id": str(self._catalogue.query_ids[row]),
            "first": first,
            "second": second,
            "relevant": int((competing & (grades >= self._questions.relevant_grade)).sum()),
            "tops": [self._top(found, choice.place, judged) for found in self._rankings],
        }

    def _top(self, found: Ranking, place: int, judged: dict[int, int]) -> dict[str, Any]:
        rows = [int(row) for row in found.products[place] if row >= 0]
        shares = found.weights[np.searchsorted(self._questions.product_rows, rows)].tolist()
        titles = self._catalogue.titles(rows)
        tiles = []
        for row, title, score, (text, photo) in zip(rows, titles, found.scores[place].tolist(), shares, strict=False):
            grade = judged.get(row)
            relevant = grade is not None and grade >= self._questions.relevant_grade
            tiles.append(
                {
                    "thumbnail": self.thumbnail(row),
                    "title": title,
                    "product_id": str(self._catalogue.product_ids[row]),
                    "grade": "not judged" if grade is None else f"grade {grade} of {self._highest_grade}",
                    "shade": "full" if relevant else "part" if grade else "none",
                    "relevant": relevant,
                    "text": text,
                    "photo": photo,
                    "score": score,
                }
            )
        return {"tiles": tiles, "hits": sum(tile["relevant"] for tile in tiles), "text_name": found.text_name}


class Thumbnails:
    """Small pictures of products.

    Args:
        catalogue: Where the rows point.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._read = PhotoReader(max_photos=1, min_size=(SIZE[1], SIZE[0]), root=catalogue.photo_root)

    def __call__(self, row: int) -> dict[str, Any]:
        """A product's first readable photo as a small JPEG in a data URI, or why there is none."""
        product = self._catalogue.product(row)
        image = product.get("image")
        stored = len(image) if isinstance(image, list) else int(image is not None)
        photos = self._read(product["product_id"], image)
        if not photos:
            return {"missing": "photo unreadable" if stored else "no photo"}
        return {**thumbnail(photos[0], SIZE), "others": stored - 1}
