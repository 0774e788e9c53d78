"""`mmfusion fit`: from a catalogue, or from products alone, to an index, in one command that goes on."""

import itertools
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from commands import command
from PIL import Image
from processes import started
from training_runs import assert_same_weights

from mmfusion import Catalogue, Retriever
from mmfusion.commands.fit import FitError
from mmfusion.data.catalogue_schema import CatalogueError
from mmfusion.data.toy_catalogue import write_toy_catalogue
from mmfusion.data.toy_encoders import write_toy_encoders
from mmfusion.model.errors import HubError
from mmfusion.retrieval import ProductIndex
from mmfusion.training import Hardware
from mmfusion.training.run import read_record

STEPS = {"steps": 4, "stage2_steps": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalogue, its products alone, and encoders."""
    folder = tmp_path_factory.mktemp("fit")
    write_toy_catalogue(folder / "catalogue", num_products=120)
    write_toy_encoders(folder / "encoders")
    (folder / "products").mkdir()
    shutil.copy(folder / "catalogue" / "products.parquet", folder / "products")
    return folder


@pytest.fixture(scope="module")
def fit(folder: Path) -> Callable[..., None]:
    def run(source: Path, output: Path, **options: Any) -> None:
        encoders = {name: str(folder / "encoders" / name) for name in ("text", "vision")}
        command("fit")(sources=[str(source)], output=str(output), **{**encoders, **STEPS, **options})

    return run


@pytest.fixture(scope="module")
def shop(folder: Path, fit: Callable[..., None]) -> Path:
    """The output of a run that nothing interrupted."""
    fit(folder / "catalogue", folder / "shop")
    return folder / "shop"


@pytest.fixture(scope="module")
def alone(folder: Path, fit: Callable[..., None]) -> Path:
    """The output of a run on products alone."""
    fit(folder / "products", folder / "alone")
    return folder / "alone"


def states(output: Path) -> dict[str, int]:
    names = (
        "stage1/model.safetensors",
        "stage2/model.safetensors",
        "index/index/description.json",
        "evaluation/fusion.json",
    )
    return {name: (output / name).stat().st_mtime_ns for name in names if (output / name).exists()}


def products_of(source: Path, output: Path, change: Callable[[pa.Table], pa.Table]) -> Path:
    output.mkdir()
    pq.write_table(change(pq.read_table(source / "products.parquet")), output / "products.parquet")
    return output


def test_a_finished_run_is_shown_again_and_left_alone(
    folder: Path, shop: Path, fit: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    before = states(shop)
    assert len(ProductIndex.load(shop / "index" / "index")) == 120 and (shop / "report" / "report.html").is_file()
    fit(folder / "catalogue", shop)
    out, errors = capsys.readouterr()
    assert states(shop) == before and errors == "" and "is complete, and nothing has changed" in out
    assert "| fusion" in out and "| text_only" in out and "fusion against text_only" in out
    assert out.splitlines()[-1] == f"next: mmfusion serve --index {shop / 'index'}"


def test_what_commands_say_is_in_the_log_alone(folder: Path, alone: Path) -> None:
    log = (alone / "fit.log").read_text()
    assert "=== stage 1" in log and "pseudo-queries from titles" in log and "val/title_to_photo/recall@10" in log


def test_products_alone_claim_nothing_about_queries(
    folder: Path, alone: Path, fit: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    fit(folder / "products", alone)
    out = capsys.readouterr().out
    assert "no queries: titles and attributes stand in for them" in out
    assert "the title finds the photo among the first ten; how well queries are answered is not known" in out
    assert "Recall@100" not in out and "ndcg" not in out.lower() and not (alone / "evaluation").exists()
    record = read_record(alone / "stage1") or {}
    assert record["arguments"]["pseudo_queries"] and record["best"]["metric"] == "val/title_to_photo/recall@10"
    assert [name for name in record["metrics"] if name.startswith("val/")] == ["val/title_to_photo/recall@10"]
    # A fusion network that is trained on titles would learn to look at texts.
    assert record["held_out_products"] > 5 and not (alone / "stage2").exists()
    page = (alone / "report" / "report.html").read_text()
    assert "Trained on products alone" in page and "title: <q>" in page and page.count("<article>") == 24
    assert len(ProductIndex.load(alone / "index" / "index")) == 120


def test_a_run_that_was_killed_ends_like_one_that_was_not(folder: Path, shop: Path, tmp_path: Path) -> None:
    output = tmp_path / "killed"
    flags = [word for name, value in STEPS.items() for word in (f"--{name}", str(value))]
    encoders = [word for name in ("text", "vision") for word in (f"--{name}", str(folder / "encoders" / name))]
    line = [sys.executable, "-m", "mmfusion", "fit", str(folder / "catalogue"), "--output", str(output)]
    for place in ("stage1/checkpoints/step=2.ckpt", "stage2/checkpoints/step=1.ckpt", None):
        with started([*line, *encoders, *flags], env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
            until = time.monotonic() + 300
            while place is not None and not (output / place).exists() and time.monotonic() < until:
                assert process.poll() is None
                time.sleep(0.01)
            if place is not None:
                os.killpg(process.pid, signal.SIGKILL)
            assert process.wait(300) == (0 if place is None else -signal.SIGKILL)
    for stage in ("stage1", "stage2", "text_only"):
        assert_same_weights(shop / stage, output / stage)
    scores = [json.loads((one / "evaluation" / "fusion.json").read_text())["means"] for one in (shop, output)]
    assert scores[0] == scores[1]


def without_photos(table: pa.Table) -> pa.Table:
    return table.drop_columns(["image"])


def without_titles(table: pa.Table) -> pa.Table:
    place = table.schema.get_field_index("title")
    return table.set_column(place, "title", pc.fill_null(pa.nulls(len(table), pa.string()), " "))


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (without_photos, {}, "No product has a photo, and there are no queries"),
        (without_titles, {}, "0 of 72 products to train on have a title"),
        (lambda table: table.slice(0, 1), {}, "1 of 1 products to train on have a title; .* at least 3"),
        (None, {"batch_size": 4096}, "fewer than one global batch of 4096 x 1"),
        (None, {"clicks": "clicks.csv"}, r"is a catalogue, whose judgements are in its table qrels; give the files"),
        (None, {"text": "org/missing"}, r"The text encoder 'org/missing' cannot be loaded: .*--text FOLDER"),
        (None, {"vision": "missing"}, r"The vision encoder 'missing' cannot be loaded: there is no such folder"),
    ],
)
def test_what_cannot_be_fitted_is_an_error(
    folder: Path, fit: Callable[..., None], tmp_path: Path, change: Any, options: dict[str, Any], message: str
) -> None:
    source = folder / "products" if change is None else products_of(folder / "products", tmp_path / "source", change)
    with pytest.raises((FitError, CatalogueError, HubError, ValueError), match=message):
        fit(source, tmp_path / "output", **options)


def test_a_hub_that_is_away_is_asked_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmfusion.data.hub_ids.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("mmfusion.data.hub_ids.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("mmfusion.data.hub_ids.getproxies", dict)
    monkeypatch.setattr("mmfusion.commands.fit.hf_hub_download", lambda *_: pytest.fail("asked again"))
    with pytest.raises(HubError, match=r"org/missing.* cannot be loaded: .*cannot be reached.*--text FOLDER"):
        command("fit")(sources=[str(folder / "products")], output=str(tmp_path / "out"), text="org/missing")


def test_another_run_and_other_arguments_keep_their_folder(folder: Path, alone: Path, fit: Callable[..., None]) -> None:
    with pytest.raises(FitError, match=r"begun with other arguments \(seed was 0, now 1\); repeat them"):
        fit(folder / "products", alone, seed=1)
    with pytest.raises(ValueError, match=r"belongs to stage1, not fit; give another --output"):
        fit(folder / "products", alone / "stage1")
    with pytest.raises(FitError, match="was trained without queries, and now there are 58; give another --output"):
        fit(folder / "catalogue", alone)
    with pytest.raises(FitError, match="fit trains on one device"):
        fit(folder / "products", alone, hardware=Hardware(devices=2))


def test_a_retriever_is_fitted_to_records_and_finds_them(folder: Path, tmp_path: Path) -> None:
    catalogue = Catalogue.load(folder / "catalogue", cache_dir=tmp_path / "cache")
    products = [catalogue.product(row) for row in range(60)]
    names = [one.pop("product_id") for one in products]
    judged = [
        {"query_id": f"q{n}", "product_id": str(n), "grade": 1}
        for n, one in enumerate(products)
        if n < 40 and one["title"]
    ]
    asked = [{"query_id": one["query_id"], "query": products[int(one["product_id"])]["title"]} for one in judged]
    encoders = [folder / "encoders" / name for name in ("text", "vision")]

    def fitted(**options: Any) -> Retriever:
        retriever = Retriever.from_encoders(*encoders, **options)
        return retriever.fit(products, queries=asked, qrels=judged, output=tmp_path / "output", **STEPS)

    retriever = fitted()
    assert names and retriever.model.config.fusion == "gated"
    (hit,) = retriever.search("red dress", k=1)
    assert 0 <= int(hit.product_id) < 60 and hit.metadata["title"] == products[int(hit.product_id)]["title"]
    assert "data:image/jpeg;base64," in retriever.search("red dress", k=5)._repr_html_()
    retriever.save_pretrained(tmp_path / "saved")
    loaded = Retriever.from_pretrained(tmp_path / "saved", device="cpu")
    assert loaded.fingerprint == retriever.fingerprint == fitted().fingerprint
    with pytest.raises(FitError, match="began with another model"):
        fitted(seed=1)
    with pytest.raises(ValueError, match="No products are indexed yet"):
        loaded.search("red dress")
    with pytest.raises(FitError, match="'stepz' is not a setting of fit; they are "):
        loaded.fit(products, output=tmp_path / "other", stepz=3)


def test_a_shops_files_and_clicks_end_in_an_index(
    folder: Path, fit: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    colours, things = ("red", "green", "blue", "white"), ("cup", "bowl", "plate", "jug", "vase", "lamp")
    (tmp_path / "photos").mkdir()
    lines, report = ["id,title,category,image"], ["search term,product id,impressions,clicks,orders"]
    for n, (thing, colour) in enumerate(itertools.product(things, colours)):
        Image.new("RGB", (64, 64), colour).save(tmp_path / "photos" / f"{n:04}.png")
        lines.append(f"{n:04},{thing.title()} number {n},{thing},{n:04}.png")
        report += [f"{colour} {thing},{n:04},90,{40 + n},9", f"{thing},{n:04},90,{20 + n},1"]
    (tmp_path / "products.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "report.csv").write_text("\n".join(report) + "\n")
    given = {"photos": str(tmp_path / "photos"), "clicks": str(tmp_path / "report.csv")}
    fit(tmp_path / "products.csv", tmp_path / "shop", **given)
    out = capsys.readouterr().out
    assert "24 products; 24 queries to train on, 3 to validate, 3 to test" in out and "| fusion" in out
    index = ProductIndex.load(tmp_path / "shop" / "index" / "index")
    assert sorted(index.product_ids)[:2] == ["0000", "0001"] and len(index) == 24
    catalogue = Catalogue.load(tmp_path / "shop" / "catalogue", cache_dir=tmp_path / "cache")
    assert set(catalogue.qrels.grade.tolist()) <= {0, 1, 2, 3}
    state = (tmp_path / "shop" / "catalogue" / "products.parquet").stat().st_mtime_ns
    fit(tmp_path / "products.csv", tmp_path / "shop", **given)
    assert "is complete, and nothing has changed" in capsys.readouterr().out
    assert (tmp_path / "shop" / "catalogue" / "products.parquet").stat().st_mtime_ns == state


# These two change what others look at, and come last.


def test_more_steps_extend_stage_1_and_train_what_follows_anew(
    folder: Path, shop: Path, fit: Callable[..., None]
) -> None:
    before = states(shop)
    fit(folder / "catalogue", shop, steps=6)
    records = {stage: read_record(shop / stage) or {} for stage in ("stage1", "stage2")}
    assert records["stage1"]["extensions"] == [{"at": 4, "steps": 4}] and records["stage1"]["steps"] == 6
    assert "extensions" not in records["stage2"] and records["stage2"]["complete"]
    after = states(shop)
    assert after.keys() == before.keys() and not [name for name, state in before.items() if after[name] == state]
    with pytest.raises(FitError, match="--steps is 3, and was 6; a run is extended by more steps alone"):
        fit(folder / "catalogue", shop, steps=3)


def test_tomorrows_products_are_embedded_by_the_same_model(
    folder: Path, alone: Path, fit: Callable[..., None], tmp_path: Path
) -> None:
    before = shutil.copytree(alone / "stage1", tmp_path / "before")

    def tomorrow(table: pa.Table) -> pa.Table:
        new = table.slice(0, 1).set_column(0, "product_id", pa.array(["new"], table.schema.field("product_id").type))
        return pa.concat_tables([table.slice(1), new])

    fit(products_of(folder / "products", tmp_path / "tomorrow", tomorrow), alone)
    ids = set(ProductIndex.load(alone / "index" / "index").product_ids)
    assert "new" in ids and len(ids) == 120
    assert_same_weights(before, alone / "stage1")
