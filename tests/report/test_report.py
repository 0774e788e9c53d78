"""The HTML report: what it says is what was measured, and nothing that a catalogue holds can act in it."""

import base64
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import command
from PIL import Image

from mmfusion.data.catalogue import Catalogue
from mmfusion.data.toy_catalogue import write_toy_catalogue
from mmfusion.evaluation import Evaluation, evaluate_rankings, paired_bootstrap
from mmfusion.evaluation.comparison import compare_in_order
from mmfusion.evaluation.tables import percent
from mmfusion.evaluation.tables import points as plain_points
from mmfusion.pages import shorten
from mmfusion.report import Questions, Ranking, build_report, choose, load_variants, write_page
from mmfusion.report.bars import Scale
from mmfusion.report.build import shorten_paths
from mmfusion.report.tiles import SIZE, Cards
from mmfusion.training.sources import starting_base


def points(difference: float) -> str:
    return plain_points(difference).replace("-", "−")


NASTY = '"><script>alert("1")</script>'
TITLES: list[str | None] = [
    "<script>alert(1)</script>",
    "</style></title><img src=x onerror=alert(1)>",
    "فستان أحمر طويل",
    "Dress 👗🏽 red",
    'O\'Neill "&amp;" <b>bold</b>',
    None,
    "dress\u202e evil \x00 control",
    "word " * 200,
    *(f"Plain dress {number}" for number in range(8, 14)),
]
QUERIES = [("q0", "<img src=x onerror=alert(1)>", "visual"), ("q1", "فستان أحمر", "visual"), (NASTY, "👗 red", NASTY)]
COLOURS = [(16 * row + 8, 255 - 16 * row, (90 * row) % 256) for row in range(len(TITLES))]
NO_PHOTO, BROKEN_PHOTO, TWO_PHOTOS = 3, 4, 5
GRADES = {(0, 0): 3, (0, 9): 1, (0, 10): 0, (1, 2): 3, (1, 11): 3, (2, 3): 3, (2, 12): 1}


class Node:
    """An element of a parsed page."""

    def __init__(self, name: str, attributes: dict[str, str | None]) -> None:
        self.name, self.attributes, self.children = name, attributes, list[Any]()

    def all(self, name: str | None = None, class_: str | None = None) -> list["Node"]:
        found = []
        for child in self.children:
            if isinstance(child, Node):
                classes = (child.attributes.get("class") or "").split()
                if (name is None or child.name == name) and (class_ is None or class_ in classes):
                    found.append(child)
                found += child.all(name, class_)
        return found

    def one(self, name: str | None = None, class_: str | None = None) -> "Node":
        return self.all(name, class_)[0]

    @property
    def text(self) -> str:
        return "".join(child.text if isinstance(child, Node) else child for child in self.children)


class Parser(HTMLParser):
    """Builds the tree and refuses elements that are not closed in order."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Node("", {})
        self.open = [self.root]

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        node = Node(name, dict(attributes))
        self.open[-1].children.append(node)
        if name not in ("meta", "link", "img", "br", "hr"):
            self.open.append(node)

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop().name == name

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def parse(page: str) -> Node:
    parser = Parser()
    parser.feed(page)
    parser.close()
    assert len(parser.open) == 1
    return parser.root


def photo(row: int) -> dict[str, Any]:
    file = io.BytesIO()
    Image.new("RGB", (300, 400), COLOURS[row]).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": f"{row}.png"}


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    folder = tmp_path_factory.mktemp("catalogue")
    images: list[Any] = [[photo(row)] for row in range(len(TITLES))]
    images[NO_PHOTO], images[BROKEN_PHOTO] = None, [{"bytes": b"not a photo", "path": "x.png"}]
    images[TWO_PHOTOS] = [photo(TWO_PHOTOS), photo(0)]
    ids = [f"p{row}" for row in range(len(TITLES))]
    ids[9] = NASTY
    sparse = [row % 2 == 0 for row in range(len(TITLES))]
    pq.write_table(
        pa.table({"product_id": ids, "title": TITLES, "image": images, "sparse": sparse}), folder / "products.parquet"
    )
    columns = zip(*QUERIES, strict=True)
    pq.write_table(
        pa.table(dict(zip(("query_id", "query", "kind"), map(list, columns), strict=True))), folder / "queries.parquet"
    )
    judged = [(QUERIES[query][0], ids[product], grade) for (query, product), grade in GRADES.items()]
    names = ("query_id", "product_id", "grade")
    pq.write_table(
        pa.table(dict(zip(names, map(list, zip(*judged, strict=True)), strict=True))), folder / "qrels.parquet"
    )
    return Catalogue.load(folder, cache_dir=folder / "cache")


def evaluation(catalogue: Catalogue, name: str, seed: int, **fields: Any) -> Evaluation:
    rows = np.arange(len(TITLES))
    rng = np.random.default_rng(seed)
    result = evaluate_rankings(
        np.stack([rng.permutation(rows) for _ in QUERIES]),
        np.arange(len(QUERIES)),
        catalogue.qrels,
        queries=catalogue.queries,
        products=catalogue.products,
        product_rows=rows,
        relevant_grade=3,
        pool="all",
        product_slices=["sparse"],
        recall_at=(10, 100),
        name=name,
    )
    return replace(result, **fields)


def ranking(catalogue: Catalogue, name: str, seed: int, **fields: Any) -> Ranking:
    rng = np.random.default_rng(seed)
    photo_share = rng.random(len(TITLES)).astype(np.float32)
    photo_share[NO_PHOTO] = 0
    found = Ranking(
        name=name,
        fingerprint=f"{name:0<64}",
        products=np.stack([rng.permutation(len(TITLES))[:10] for _ in QUERIES]),
        scores=np.sort(rng.random((len(QUERIES), 10)).astype(np.float32))[:, ::-1],
        weights=np.stack([1 - photo_share, photo_share], axis=1),
        text_name="title",
        per_query={
            "query_id": [query[0] for query in QUERIES],
            "kind": [query[2] for query in QUERIES],
            "ndcg@10": rng.random(len(QUERIES)).tolist(),
        },
    )
    return replace(found, **fields)


@pytest.fixture(scope="module")
def variants(catalogue: Catalogue) -> list[Evaluation]:
    return [
        evaluation(
            catalogue, "text <only>", 1, provenance={"split": "test", "command": "--secret /root/x <b>", "seed": 7}
        ),
        evaluation(catalogue, "concat", 2, label_source="<i>nobody</i>", provenance={"model": f"{'fusion':0<64}"}),
        evaluation(catalogue, "fusion", 3),
    ]


@pytest.fixture(scope="module")
def rankings(catalogue: Catalogue) -> list[Ranking]:
    return [ranking(catalogue, "text_only", 1), ranking(catalogue, "fusion", 2)]


@pytest.fixture(scope="module")
def page(catalogue: Catalogue, variants: list[Evaluation], rankings: list[Ranking]) -> str:
    return build_report(
        variants,
        Questions.like(variants[0], catalogue, "test"),
        *rankings,
        choose(*rankings, 3, seed=0),
        queries_per_kind=3,
        seed=0,
        arguments={"results": "/a/private/place/evaluation", "seed": 0},
        records={"the baseline": None, "the fusion model": {"recipe": "stage2", "arguments": {"steps": 5}}},
    )


@pytest.fixture(scope="module")
def tree(page: str) -> Node:
    return parse(page)


def check_closed(tree: Node) -> None:
    """Nothing is loaded, nothing runs, and no style or link comes from elsewhere."""
    names = {node.name for node in tree.all()}
    assert not names & {
        "script",
        "iframe",
        "object",
        "embed",
        "base",
        "form",
        "video",
        "audio",
        "use",
        "image",
        "b",
        "i",
    }
    for node in tree.all():
        for name, value in node.attributes.items():
            assert not name.startswith("on") and name not in ("style", "srcset", "action", "poster", "xlink:href")
            if name == "src":
                assert node.name == "img" and (value or "").startswith("data:image/jpeg;base64,")
            if name == "href":
                assert (value or "").startswith("#") or value == "data:,"
    (style,) = tree.all("style")
    assert "url(" not in style.text and "@import" not in style.text and "://" not in style.text


def test_the_page_fetches_and_runs_nothing(tree: Node, page: str) -> None:
    check_closed(tree)
    assert re.search(r"https?:|(?<!data:image)/\*|javascript:", page) is None
    policies = [node for node in tree.all("meta") if node.attributes.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(tree.one("style").text.encode()).digest()).decode()
    assert (policies[0].attributes["content"] or "").split("; ") == [
        "default-src 'none'",
        "img-src data:",
        f"style-src 'sha256-{digest}'",
        "base-uri 'none'",
        "form-action 'none'",
    ]


def test_foreign_text_appears_as_text_and_keeps_its_direction_inside(tree: Node, page: str) -> None:
    shown = {node.text for node in tree.all("bdi")}
    assert {QUERIES[0][1], QUERIES[1][1], QUERIES[2][1], NASTY, "text <only>", "<i>nobody</i>"} <= shown
    assert all(node.attributes["dir"] == "auto" for node in tree.all("bdi"))
    assert "alert(1)</script" not in page and "<img src=x" not in page and "\x00" not in page
    assert "evil \ufffd control" in page
    assert shorten("x" * 500) == "x" * 300 + "…"


def test_structure_can_be_read_aloud(tree: Node) -> None:
    assert tree.one("html").attributes["lang"] == "en"
    levels = [int(node.name[1]) for node in tree.all() if re.fullmatch("h[1-6]", node.name)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all(node.attributes.get("alt", "").startswith("Photo of ") for node in tree.all("img"))  # type: ignore[union-attr]
    assert all(node.attributes.get("aria-label") or node.attributes.get("aria-hidden") for node in tree.all("svg"))
    anchors = {node.attributes.get("id") for node in tree.all("section")}
    assert {(node.attributes["href"] or "")[1:] for node in tree.all("a")} == anchors - {None}


def test_each_tile_shows_its_own_photo_grade_title_and_weights(
    tree: Node, catalogue: Catalogue, rankings: list[Ranking]
) -> None:
    articles = {article.one("h4").text: article for article in tree.all("article")}
    seen = set()
    for place, (_, query, _) in enumerate(QUERIES):
        sides = articles[query].all(class_="side")
        assert len(sides) == 2
        for side, found in zip(sides, rankings, strict=True):
            tiles = side.all("li")
            assert len(tiles) == 10
            for tile, row, score in zip(tiles, found.products[place].tolist(), found.scores[place], strict=True):
                seen.add(row)
                check_tile(tile, row, place, found, float(score), catalogue)
    assert {NO_PHOTO, BROKEN_PHOTO, TWO_PHOTOS, 9} <= seen, "the fixture no longer shows the hard cases"


def check_tile(tile: Node, row: int, query: int, found: Ranking, score: float, catalogue: Catalogue) -> None:
    text, share = found.weights[row]
    grade = GRADES.get((query, row))
    assert tile.one(class_="grade").text == ("not judged" if grade is None else f"grade {grade} of 3")
    assert f"photo {share:.2f}, title {text:.2f}" in tile.text
    assert f"score {score:.3f}" in tile.text and str(catalogue.product_ids[row]) in tile.text
    title = (TITLES[row] or "no title").replace("\x00", "\ufffd")
    assert tile.one(class_="title").text.rstrip("…") == " ".join(title.split())[:120]
    if row in (NO_PHOTO, BROKEN_PHOTO):
        assert not tile.all("img")
        assert tile.one(class_="missing").text == ("no photo" if row == NO_PHOTO else "photo unreadable")
        return
    image = tile.one("img").attributes
    small = Image.open(io.BytesIO(base64.b64decode((image["src"] or "").split(",")[1])))
    assert small.format == "JPEG" and small.size == (int(image["width"] or 0), int(image["height"] or 0))
    assert np.abs(np.asarray(small).mean((0, 1)) - COLOURS[row]).max() < 6
    assert [more.text for more in tile.all(class_="more")] == (["+1"] if row == TWO_PHOTOS else [])


def test_facts_of_a_query_are_those_of_its_rankings(tree: Node, rankings: list[Ranking]) -> None:
    articles = {article.one("h4").text: article for article in tree.all("article")}
    for place, (query_id, query, _) in enumerate(QUERIES):
        first, second = (found.per_query["ndcg@10"][place] for found in rankings)
        facts = articles[query].one(class_="facts").text
        assert f"nDCG@10 {percent(first)} → {percent(second)} ({points(second - first)})" in facts
        relevant = sum(grade == 3 for (judged, _), grade in GRADES.items() if judged == place)
        assert f"{relevant} relevant in the pool" in facts and query_id in facts
        for side, found in zip(articles[query].all(class_="side"), rankings, strict=True):
            hits = sum(GRADES.get((place, row), 0) == 3 for row in found.products[place].tolist())
            assert side.one("h5").text.endswith(f"{hits} of 10 relevant")


def cells(table: Node) -> dict[str, list[str]]:
    return {row.one("th").text: [cell.text for cell in row.all("td")] for row in table.one("tbody").all("tr")}


def test_heat_map_holds_the_values_of_the_evaluations(tree: Node, variants: list[Evaluation]) -> None:
    maps = {table.one("caption").text: table for table in tree.all("table") if "by slice" in table.one("caption").text}
    for metric, title in (("recall@100", "Recall@100"), ("ndcg@10", "nDCG@10")):
        table = maps[f"{title} in per cent, by slice"]
        assert [head.text for head in table.one("thead").all("th")] == [
            "Slice",
            *(variant.name for variant in variants),
        ]
        rows = cells(table)
        expected = {f"all queries {variants[0].num_queries} queries": [variant.means[metric] for variant in variants]}
        for parts in zip(*(variant.slices for variant in variants), strict=True):
            if metric in parts[0].metrics:
                what = "products with " if parts[0].table == "product" else ""
                count = f"{parts[0].num_queries} {'query' if parts[0].num_queries == 1 else 'queries'}"
                name = f"{what}{parts[0].column} = {parts[0].value} {count}"
                expected[name] = [part.metrics[metric] for part in parts]
        assert list(rows) == list(expected)
        assert any("sparse" in name for name in rows) == (metric == "recall@100")
        for name, values in expected.items():
            assert [cell.split()[0] for cell in rows[name]] == [percent(value) for value in values]
            first = values[0] or 0.0
            assert [cell.split()[1] for cell in rows[name][1:]] == [
                points((value or 0) - first) for value in values[1:]
            ]


def test_ablation_compares_each_variant_with_the_one_before_and_the_first(
    tree: Node, variants: list[Evaluation]
) -> None:
    rows = cells(tree.one("table"))
    assert list(rows) == [variant.name for variant in variants]
    for place, metric in ((0, "recall@100"), (3, "ndcg@10")):
        assert rows["fusion"][place] == percent(variants[2].means[metric])
        for offset, other in ((1, variants[1]), (2, variants[0])):
            found = paired_bootstrap(variants[2], other, metric, seed=0)
            written = f"{points(found.difference)} [{points(found.low)}, {points(found.high)}]"
            assert rows["fusion"][place + offset] == written
        assert rows["text <only>"][place + 1 : place + 3] == ["–", "–"]
    steps = compare_in_order(variants, "ndcg@10")
    assert steps[0].before is None and steps[1].before == steps[1].reference != steps[2].reference


def test_bars_are_as_long_as_their_values(tree: Node, variants: list[Evaluation]) -> None:
    figure = tree.all("figure")[0]
    assert "Recall@100" in figure.one("figcaption").text
    widths = [float((bar.attributes["width"] or "").rstrip("%")) for bar in figure.all("rect", "fill")]
    values = [variant.means["recall@100"] for variant in variants]
    assert np.allclose(np.array(widths) * values[0], np.array(values) * widths[0], rtol=1e-3)  # type: ignore[operator]


@pytest.mark.parametrize("values", [[0.0], [71.3, 12.0], [-3.2, 8.1], [-0.02, 0.0], [100.0], [1e-7]])
def test_an_axis_holds_zero_and_its_values_between_round_marks(values: list[float]) -> None:
    scale = Scale.around(values)
    marks = scale.marks()
    assert 2 <= len(marks) <= 8 and marks[0] == scale.low and marks[-1] == pytest.approx(scale.high)
    assert any(mark == 0 for mark in marks)
    assert all(-1e-6 <= scale.place(value) <= 100 + 1e-6 for value in [0.0, *values])


def test_provenance_seeds_labels_and_models_are_stated_without_folders_of_this_machine(tree: Node, page: str) -> None:
    assert "/a/private/place" not in page
    made = next(node for node in tree.all("section") if node.attributes.get("id") == "made").text
    assert "…/evaluation" in made and "seed7" in made and "--secret /root/x <b>" in made and "stage2" in made
    assert "Labels: <i>nobody</i> (not recorded for all variants)" in tree.one(class_="labels").text
    assert "the model of concat" in tree.text and "which no result of the ablation carries" in tree.text
    assert shorten_paths({"a": ["/x/y/", "b/c"], "n": 1}) == {"a": ["…/y", "b/c"], "n": 1}


def test_thumbnails_are_small_and_keep_their_proportions(catalogue: Catalogue) -> None:
    small = Cards(Questions.like(evaluation(catalogue, "any", 0), catalogue, None), []).thumbnail(0)
    assert (small["width"], small["height"]) == (SIZE[0], SIZE[0] * 400 // 300)
    assert len(small["uri"]) < 12_000


def many(values: list[float | None], kinds: list[str]) -> Any:
    """A ranking of which only the metrics matter."""
    ids = [f"q{place:03}" for place in range(len(values))]
    blank = np.zeros((len(values), 10), dtype=np.int64)
    per_query = {"query_id": ids, "kind": kinds, "ndcg@10": values}
    return Ranking("x", "x", blank, blank.astype(np.float32), blank.astype(np.float32), "title", per_query)


def test_choice_takes_extremes_of_both_directions_and_random_ones_by_seed() -> None:
    gains = [0.1, 0.5, -0.4, 0.0, -0.1, 0.3, 0.0, 0.0, 0.2, -0.2]
    kinds = ["b"] * 10 + ["a"]
    first = many([0.5] * 11, kinds)
    second = many([0.5 + gain for gain in gains] + [None], kinds)
    (kind,) = choose(first, second, 6, seed=0)
    assert (kind.name, kind.better, kind.equal, kind.worse) == ("b", 4, 3, 3)
    assert [(c.place, c.reason) for c in kind.chosen[:4]] == [
        (1, "largest gain"),
        (5, "largest gain"),
        (2, "largest loss"),
        (9, "largest loss"),
    ]
    assert [c.reason for c in kind.chosen[4:]] == ["drawn at random"] * 2
    assert len({c.place for c in kind.chosen}) == 6
    assert choose(first, second, 6, seed=0) == [kind]
    assert any(choose(first, second, 6, seed=seed) != [kind] for seed in range(1, 5))
    assert len(choose(first, second, 50, seed=0)[0].chosen) == 10
    assert choose(first, second, 0, seed=0)[0].chosen == []
    with pytest.raises(ValueError, match="queries_per_kind is -1"):
        choose(first, second, -1, seed=0)


def test_variants_come_in_the_order_given_or_oldest_first(variants: list[Evaluation], tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    variants[0].save(saved, "x")
    for age, name in ((3, "z"), (2, "m.seed0"), (1, "a")):
        for ending in (".json", ".per_query.parquet"):
            copy = shutil.copy(saved / f"x{ending}", tmp_path / f"{name}{ending}")
            os.utime(copy, ns=(10**18 - age * 10**9,) * 2)
    (tmp_path / "stray.json").write_text("{}")
    assert [variant.name for variant in load_variants(tmp_path, None)] == ["z", "m.seed0", "a"]
    assert [variant.name for variant in load_variants(tmp_path, ["a", "z"])] == ["a", "z"]
    with pytest.raises(ValueError, match="names 'a' twice"):
        load_variants(tmp_path, ["a", "a"])
    with pytest.raises(FileNotFoundError, match="no evaluation 'b'"):
        load_variants(tmp_path, ["b"])
    with pytest.raises(FileNotFoundError, match=r"holds no evaluation; run mmfusion evaluate"):
        load_variants(tmp_path / "empty", None)
    shutil.copy(saved / "x.per_query.parquet", tmp_path / "b.per_query.parquet")
    fields = json.loads((saved / "x.json").read_text("utf-8"))
    (tmp_path / "b.json").write_text(json.dumps({**fields, "num_products": 3}))
    with pytest.raises(ValueError, match=r"num_products.*name with --order those that are shown"):
        load_variants(tmp_path, ["a", "b"])


def test_another_catalogue_than_that_of_the_results_is_refused(
    catalogue: Catalogue, variants: list[Evaluation]
) -> None:
    with pytest.raises(ValueError, match=r"\(3, 14\).*was evaluated on \(3, 99\).*--catalogue"):
        Questions.like(replace(variants[0], num_products=99), catalogue, None)


def test_a_page_replaces_a_page_and_nothing_else(tmp_path: Path, page: str) -> None:
    path = write_page(tmp_path / "new", page)
    write_page(tmp_path / "new", page)
    assert path.read_text("utf-8") == page and [entry.name for entry in path.parent.iterdir()] == ["report.html"]
    path.write_text("my own page")
    with pytest.raises(FileExistsError, match="is not a report of mmfusion"):
        write_page(tmp_path / "new", page)
    assert path.read_text() == "my own page"


def test_recipe_reports_on_the_toy_catalogue(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = starting_base(None, tmp_path / "base")
    source = str(write_toy_catalogue(tmp_path / "catalogue", num_products=60))
    evaluate, report = command("evaluate"), command("report")
    evaluate(catalogue=source, base=base, output=str(tmp_path / "evaluation"), split="val")
    capsys.readouterr()
    before = sorted(path for path in tmp_path.rglob("*") if path.name != "report")
    options = {"results": str(tmp_path / "evaluation"), "baseline": base, "base": base, "catalogue": source}
    report(**options, output=str(tmp_path / "report"), queries_per_kind=1)
    assert "report.html" in capsys.readouterr().out
    after = sorted(path for path in tmp_path.rglob("*") if tmp_path / "report" not in (path, *path.parents))
    assert after == before
    tree = parse((tmp_path / "report" / "report.html").read_text("utf-8"))
    check_closed(tree)
    assert len(tree.all("article")) == len(tree.all("h3")) > 1 and tree.all("img")
    with pytest.raises(ValueError, match="give --feature_cache"):
        report(**options, output=str(tmp_path / "report"), freeze_vision_blocks=1)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_shows_the_page_without_a_complaint(tmp_path: Path, page: str) -> None:
    path = write_page(tmp_path, page)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command = ["chromium", *flags, "--enable-logging=stderr", "--v=0", "--dump-dom", path.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in shown.stderr
    assert shown.stdout.count("<article>") == len(QUERIES)
