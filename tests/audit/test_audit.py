"""What an audit finds: on vectors that are made up, where it is known what there is to find, and by its command."""

import csv
import hashlib
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import as_if_trained, command
from PIL import Image

from mmfusion.audit import views as views_module
from mmfusion.audit.audit import (
    MISSING_WORD,
    SAME_PHOTO,
    WRONG_PHOTO,
    WRONG_WORD,
    Audit,
    AuditError,
    Settings,
    Texts,
    audit,
)
from mmfusion.audit.page import findings_csv
from mmfusion.audit.photo_words import labels_of_queries, log_shares, naming
from mmfusion.audit.same_photos import same_photos
from mmfusion.audit.thresholds import disagreement, sureness_for, threshold_for, wrong_word_threshold
from mmfusion.audit.views import SIDE, Views
from mmfusion.audit.vocabulary import ENGLISH
from mmfusion.data.qrels import Qrels
from mmfusion.data.toy_catalogue import write_toy_catalogue
from mmfusion.training.sources import starting_base

COLOUR = ENGLISH[0].only(["red", "green", "blue"])
NAMES = list(COLOUR.values)
NO_QUERIES = Texts([], np.zeros((0, 16), np.float32), Qrels([], [], []))


def made_up(count: int, seed: int = 0) -> tuple[list[str], np.ndarray, Views]:
    """Titles, half of which name the colour of the product, the colours, and vectors that show them."""
    rng = np.random.default_rng(seed)
    colours = rng.integers(3, size=count)
    says = rng.random(count) < 0.5
    types = rng.integers(3, 8, size=count)
    titles = [f"thing {row}" for row in range(count)]
    for row in np.flatnonzero(says):
        titles[row] = f"{NAMES[colours[row]]} {titles[row]}"
    text, photo = (0.1 * rng.normal(size=(count, 16)) for _ in range(2))
    rows = np.arange(count)
    for one in (text, photo):
        one[rows, types] += 1
    text[rows[says], colours[says]] += 1
    photo[rows, colours] += 1
    unit = [(one / np.linalg.norm(one, axis=1, keepdims=True)).astype(np.float32) for one in (text, photo)]
    tiny = rng.random((count, SIDE * SIDE * 3)).astype(np.float32)
    return titles, colours, Views(*unit, tiny, np.ones(count, bool), np.ones(count, bool))


def audited(titles: list[str], views: Views, first: int, **settings: Any) -> Audit:
    """An audit of the products from `first` on, learned from those before it."""
    rows = np.arange(len(titles))
    parts = {"learned": rows < first, "audited": rows >= first}
    return audit([COLOUR], titles, views, **parts, texts=NO_QUERIES, settings=Settings(**settings))


def found(result: Audit, kind: str) -> set[int]:
    return {one.row for one in result.findings if one.kind == kind}


def test_wrong_and_missing_words_and_wrong_photos_are_found() -> None:
    titles, colours, views = made_up(1200)
    wrong = [row for row in range(800, 1000) if titles[row].startswith(NAMES[colours[row]])][:20]
    for row in wrong:
        titles[row] = f"{NAMES[(colours[row] + 1) % 3]} thing {row}"
    # Photos of products of other types, exchanged.
    by_type = np.argsort(views.text[1000:, 3:8].argmax(1), kind="stable") + 1000
    strange = [*by_type[:15].tolist(), *by_type[-15:].tolist()]
    photo = np.array(views.photo)
    photo[strange] = photo[strange[::-1]]
    result = audited(titles, views._replace(photo=photo), 800)
    assert found(result, WRONG_WORD) - set(strange) == set(wrong)
    one = next(one for one in result.findings if one.row == wrong[0])
    assert (one.photo_says, one.title_says) == (NAMES[colours[one.row]], (NAMES[(colours[one.row] + 1) % 3],))
    missing = [one for one in result.findings if one.kind == MISSING_WORD and one.row not in strange]
    assert len(missing) > 150 and all(one.photo_says == NAMES[colours[one.row]] for one in missing)
    assert not any(titles[one.row].startswith(tuple(NAMES)) for one in missing)
    assert len(set(strange) & found(result, WRONG_PHOTO)) > 20 and len(found(result, WRONG_PHOTO) - set(strange)) < 20
    assert min(one.row for one in result.findings) >= 800, "only what is audited is listed"
    assert result.judged[0].wrong.precision >= 0.8


def test_photos_that_show_nothing_of_an_attribute_lead_to_no_findings() -> None:
    titles, _, views = made_up(600)
    photo = np.random.default_rng(1).normal(size=(600, 16)).astype(np.float32)
    result = audited(titles, views._replace(photo=photo / np.linalg.norm(photo, axis=1, keepdims=True)), 400)
    assert result.judged[0].wrong.score is None and result.judged[0].missing.score is None
    assert not result.findings


def test_no_title_is_judged_by_what_it_says_itself() -> None:
    rng = np.random.default_rng(0)
    photos, labels = rng.normal(size=(60, 300)).astype(np.float32), rng.integers(2, size=60)
    # With more components than products, each product could be learned by heart.
    shares = log_shares(photos / 17, np.zeros((2, 300), np.float32), labels, seed=0)
    assert np.exp(shares).sum(1) == pytest.approx(1, abs=1e-5)
    assert (shares.argmax(1) == labels).mean() < 0.8
    unlabelled = np.concatenate([labels, np.full(60, -1)])
    learned = log_shares(np.concatenate([photos, photos]) / 17, np.zeros((2, 300), np.float32), unlabelled, seed=0)
    assert (learned[60:].argmax(1) == labels).mean() > 0.9, "others are judged by all labels"


def test_queries_label_the_products_that_they_ask_for() -> None:
    queries = naming(COLOUR, ["red shirt", "blue shirt", "shirt", "red or blue"])
    qrels = Qrels([0, 0, 1, 1, 2, 3], [0, 1, 2, 0, 3, 4], [3, 1, 3, 3, 3, 3])
    assert labels_of_queries(queries, qrels, 6).tolist() == [-1, -1, NAMES.index("blue"), -1, -1, -1]


def test_precision_follows_from_what_is_found_of_titles_made_wrong() -> None:
    rng = np.random.default_rng(0)
    # A tenth is wrong. Of those a score above 1 finds 80 %, and one above 0.5 all, with a fifth of the right ones.
    right, wrong = np.r_[np.zeros(720), rng.uniform(0.5, 1, 180)], np.r_[rng.uniform(1, 2, 80), rng.uniform(0.5, 1, 20)]
    made_wrong = np.r_[rng.uniform(1, 2, 8000), rng.uniform(0.5, 1, 2000)]
    scores = np.r_[right, wrong].astype(np.float32)
    taken = threshold_for(scores, made_wrong, 0.9)
    assert taken.errors == pytest.approx(0.1, abs=0.01) and taken.score == pytest.approx(1, abs=0.05)
    assert taken.precision >= 0.9 and taken.recall == pytest.approx(0.8, abs=0.05)
    more = threshold_for(scores, made_wrong, 0.3)
    assert more.score == pytest.approx(0.5, abs=0.05) and more.precision == pytest.approx(100 / 280, abs=0.03)
    assert threshold_for(scores[:720], made_wrong, 0.1).score is None, "no title disagrees"
    assert threshold_for(made_wrong[:500], made_wrong, 0.1).score is None, "titles are as wrong as when made wrong"
    assert not taken.reached(np.array([-np.inf, 0.5], np.float32)).any()


def test_photos_are_sure_enough_where_titles_agree_with_them() -> None:
    sureness = np.repeat(np.array([0.9, 0.7, 0.5], np.float32), 20)
    right = np.r_[np.ones(20), np.arange(20) < 14, np.zeros(20)].astype(bool)
    taken = sureness_for(sureness, right, 0.0, 0.8)
    assert (taken.score, taken.precision) == (pytest.approx(0.7), pytest.approx(34 / 40))
    assert sureness_for(sureness, right, 0.1, 0.9).score == pytest.approx(0.7), "a tenth of the titles is wrong"
    assert sureness_for(sureness, ~right, 0.0, 0.8).score is None


def test_two_colours_in_a_title_do_not_disagree_with_either() -> None:
    shares = np.log(np.array([[0.8, 0.15, 0.05], [0.8, 0.15, 0.05]], np.float32))
    named = np.array([[True, False, True], [False, False, False]])
    assert disagreement(shares, named).tolist() == [0.0, -np.inf]


@pytest.mark.parametrize("errors", [0.05, 0.3])
def test_the_share_of_wrong_titles_is_told(errors: float) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=3000)
    shares = rng.normal(size=(3000, 3)).astype(np.float32)
    shares[np.arange(3000), labels] += 5
    said = np.where(rng.random(3000) < errors, (labels + 1) % 3, labels)
    found = wrong_word_threshold(shares, np.arange(3) == said[:, None], 0.8, seed=0)
    assert found.errors == pytest.approx(errors, abs=0.05)
    listed = found.reached(disagreement(shares, np.arange(3) == said[:, None]))
    assert (said != labels)[listed].mean() > 0.8 and listed[said != labels].mean() > 0.8


def test_copies_of_a_photo_are_found_and_similar_photos_are_not() -> None:
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (8, 6, 3), np.uint8)).resize((120, 160)) for _ in range(4)]
    small = io.BytesIO()
    pictures[0].resize((60, 80)).save(small, "JPEG", quality=80)
    shown = [*pictures, Image.open(small), pictures[2], pictures[3].point(lambda value: min(255, value + 20))]
    resized = [one.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX) for one in shown]
    tiny = np.stack([np.asarray(one, np.float32).ravel() / 255 for one in resized])
    has_photo = np.ones(7, bool)
    assert same_photos(tiny, has_photo, 0.06) == [[0, 4], [2, 5]]
    has_photo[4] = False
    assert same_photos(tiny, has_photo, 0.06) == [[2, 5]]
    assert same_photos(tiny, has_photo & False, 0.06) == []


def test_small_things_on_white_are_no_copies_of_each_other() -> None:
    tiny = np.ones((4, SIDE, SIDE, 3), np.float32)
    tiny[0, 3, 3], tiny[1, 9, 9] = 0.7, 0.7
    assert same_photos(tiny.reshape(4, -1), np.ones(4, bool), 0.06) == [[2, 3]], "blank ones are the same"


def test_one_photo_under_one_title_is_no_finding() -> None:
    titles, _, views = made_up(600)
    tiny = np.array(views.tiny)
    tiny[501], tiny[503] = tiny[500], tiny[502]
    titles[500], titles[501], titles[502], titles[503] = "Red thing", " red  Thing", "red thing", "blue thing"
    result = audited(titles, views._replace(tiny=tiny), 400)
    (one,) = (one for one in result.findings if one.kind == SAME_PHOTO)
    assert (one.row, one.others) == (502, (503,))


@pytest.mark.parametrize("name", ["precision", "photo_distance"])
@pytest.mark.parametrize("value", [0.0, -1.0, 1.5, float("nan")])
def test_settings_out_of_range_are_one_line(name: str, value: float) -> None:
    with pytest.raises(AuditError, match=f"--{name} is {value}; give a share between 0 and 1"):
        Settings(**{name: value})


def test_titles_are_no_formulas_in_a_spreadsheet() -> None:
    titles, _, views = made_up(600)
    titles[500], titles[501] = '=HYPERLINK("http://evil")', "plain, with a comma"
    tiny = np.array(views.tiny)
    tiny[501] = tiny[500]
    result = audited(titles, views._replace(tiny=tiny), 400)
    rows = list(csv.DictReader(io.StringIO(findings_csv(result, titles, [f"p{row}" for row in range(600)]))))
    row = next(row for row in rows if row["finding"] == SAME_PHOTO)
    assert row["title"] == '\'=HYPERLINK("http://evil")' and row["same_photo_as"] == "p501"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a toy catalogue and a model of random weights."""
    folder = tmp_path_factory.mktemp("shop")
    write_toy_catalogue(folder / "catalogue", num_products=150)
    os.rename(as_if_trained(starting_base(None, folder / "made")), folder / "model")
    return folder


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rewritten(shop: Path, folder: Path, **columns: Any) -> Path:
    """A copy of the catalogue with other columns."""
    folder.mkdir()
    for name in ("queries", "qrels"):
        (folder / f"{name}.parquet").write_bytes((shop / "catalogue" / f"{name}.parquet").read_bytes())
    table = pq.read_table(shop / "catalogue" / "products.parquet")
    for name, values in columns.items():
        at, kind = table.column_names.index(name), table.schema.field(name).type
        table = table.remove_column(at) if values is None else table.set_column(at, name, pa.array(values, kind))
    pq.write_table(table, folder / "products.parquet")
    return folder


def test_the_command_writes_below_its_output_alone_and_embeds_what_is_new(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    titles = pq.read_table(shop / "catalogue" / "products.parquet", columns=["title"])["title"].to_pylist()
    titles[0], titles[1] = "<script>alert(1)</script> red", "فستان أحمر"
    catalogue = rewritten(shop, tmp_path / "catalogue", title=titles)
    before = contents(catalogue) | contents(shop / "model")
    settings = {"base": str(shop / "model"), "catalogue": str(catalogue), "output": str(tmp_path / "out")}
    command("audit")(**settings, min_texts=2)
    assert contents(catalogue) | contents(shop / "model") == before
    assert {path.name for path in tmp_path.iterdir()} == {"catalogue", "out"}
    assert {"audit.csv", "audit.html", "cache"} <= {path.name for path in (tmp_path / "out").iterdir()}
    page = (tmp_path / "out" / "audit.html").read_text()
    assert "<script" not in page and "http" not in page.replace("http-equiv", "")
    assert (tmp_path / "out" / "audit.csv").read_text("utf-8").startswith("\ufefffinding,product_id,title,")
    assert "| colour" in capsys.readouterr().out
    embedded: list[int] = []
    original = views_module._embedded

    def counted(model: Any, inputs: Any, rows: Any, *sizes: int) -> Any:
        embedded.append(len(rows) if inputs.photos else 0)
        return original(model, inputs, rows, *sizes)

    monkeypatch.setattr(views_module, "_embedded", counted)
    command("audit")(**settings, min_texts=2)
    assert (tmp_path / "out" / "audit.html").read_text() == page and not embedded
    titles[2] = "Another title"
    changed = rewritten(shop, tmp_path / "changed", title=titles)
    command("audit")(**settings | {"catalogue": str(changed)}, min_texts=2)
    assert embedded == [0], "no photo is embedded again for a new title"
    command("audit")(**settings, queries=False, split="test", min_texts=2)
    assert "products were audited" in (tmp_path / "out" / "audit.html").read_text()


def test_what_cannot_be_audited_is_one_line(shop: Path, tmp_path: Path) -> None:
    def ends_with(message: str, **changes: Any) -> None:
        settings = {"base": str(shop / "model"), "catalogue": str(shop / "catalogue"), "output": str(tmp_path / "out")}
        with pytest.raises(ValueError, match=message) as raised:
            command("audit")(**settings | changes)
        assert "\n" not in str(raised.value)

    words = tmp_path / "words.csv"
    words.write_text("colour,red\n")
    ends_with("one value, 'red'", vocabulary=str(words))
    words.write_text("Farbe,rot\nFarbe,blau\n")
    ends_with("--vocabulary", vocabulary=str(words))
    ends_with("--min_texts is 0", min_texts=0)
    ends_with("--precision is 1.0", precision=1.0)
    nothing = [None] * 150
    ends_with("no column 'image'", catalogue=str(rewritten(shop, tmp_path / "no_column", image=None)))
    without = str(rewritten(shop, tmp_path / "no_photos", image=nothing))
    ends_with("has a photo that can be read", catalogue=without, min_texts=1)
    ends_with("has a title", catalogue=str(rewritten(shop, tmp_path / "no_titles", title=nothing)))
    base = starting_base(None, tmp_path / "made")
    ends_with("was never trained", base=base)
