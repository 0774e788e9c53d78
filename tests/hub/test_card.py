"""Model cards: every number is one of a file, what was not measured says so, and the snippets run as written."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import command
from huggingface_hub import HfApi, ModelCard
from loopback_hub.server import LoopbackHub
from markdown_snippets import python_snippets

from mmfusion.ablation import AblationSettings
from mmfusion.ablation.variants import all_variants
from mmfusion.evaluation import Evaluation, Slice, paired_bootstrap
from mmfusion.evaluation.comparison import Ablation, average, compare
from mmfusion.evaluation.tables import interval, percent
from mmfusion.hub import load_card
from mmfusion.hub.card import write_card
from mmfusion.hub.card_facts import fingerprint_of
from mmfusion.hub.private import CardError, public_text
from mmfusion.hub.publish import publish
from mmfusion.model.errors import HubError
from mmfusion.training import starting_base

SYNTHETIC = "synthetic queries, no human judged them"
TOKEN = "hf_" + "a1" * 17
SECTIONS = ("Results", "Ablation: what each part adds", "Slices", "Perturbed inputs")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny model that the recipes start from; tests write next to it, and never into it."""
    return Path(starting_base(None, tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="session")
def fingerprint(tiny: Path) -> str:
    return fingerprint_of(tiny)


@pytest.fixture(scope="session")
def vector_bytes(tiny: Path) -> int:
    return 4 * int(json.loads((tiny / "config.json").read_text())["embedding_dim"])


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    """A folder of its own for a test, which may add a `run.json`."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in tiny.iterdir():
        if path.is_file():
            (folder / path.name).symlink_to(path)
    return folder


def scores(level: float, seed: int, count: int = 40) -> list[float]:
    return list(np.clip(level + 0.2 * np.random.default_rng(seed).standard_normal(count), 0, 1))


def evaluation(name: str, level: float = 0.7, seed: int = 0, **changes: Any) -> Evaluation:
    """40 queries of two kinds; Recall and nDCG differ."""
    values = {"recall@100": scores(level + 0.1, seed), "ndcg@10": scores(level, seed + 100)}
    kinds = ["visual" if place % 2 else "textual" for place in range(40)]
    slices = [
        Slice("query", "kind", kind, 20, {name: float(np.mean(column[start::2])) for name, column in values.items()})
        for start, kind in enumerate(("textual", "visual"))
    ]
    slices.append(Slice("product", "sparse", "True", 12, {"recall@100": 0.4321}))
    return Evaluation(
        name=name,
        means={metric: float(np.mean(column)) for metric, column in values.items()},
        slices=slices,
        per_query=pa.table({"query_id": [f"q{place}" for place in range(40)], "kind": kinds, **values}),
        **{
            "pool": "split",
            "num_queries": 40,
            "num_products": 100,
            "num_queries_without_relevant": 0,
            "num_queries_without_gain": 0,
            "num_queries_without_ranking": 0,
            "relevant_grade": 3,
            "judgements_by_grade": {1: 50, 3: 60},
            "label_source": SYNTHETIC,
            **changes,
        },
    )


def save(result: Evaluation, folder: Path, stem: str | None = None) -> Path:
    """What `Evaluation.save` writes, without its pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem or result.name}.json"
    path.write_text(json.dumps(result.as_dict()))
    pq.write_table(result.per_query, path.with_suffix(".per_query.parquet"))
    return path


@pytest.fixture
def provenance(fingerprint: str, vector_bytes: int) -> dict[str, Any]:
    """That of an evaluation of the tiny model."""
    return {
        "model": fingerprint,
        "baseline": "none",
        "catalogue": "org/shop",
        "split": "test",
        "perturbation": "none",
        "seed": 0,
        "bytes_per_product": vector_bytes,
    }


@pytest.fixture
def results(provenance: dict[str, Any], tmp_path: Path) -> Path:
    """A folder with this model, unchanged and perturbed, and two others."""
    folder = tmp_path / "results"
    bm25 = {**provenance, "baseline": "bm25", "bytes_per_product": None}
    save(evaluation("bm25", 0.3, 1, provenance=bm25), folder)
    save(evaluation("text_only", 0.5, 2, provenance={**provenance, "model": "0" * 64}), folder)
    save(evaluation("fusion", 0.7, 3, provenance=provenance), folder)
    shuffled = {**provenance, "perturbation": "photos_shuffled"}
    save(evaluation("fusion.photos_shuffled", 0.2, 4, provenance=shuffled), folder)
    return folder


def section(text: str, heading: str) -> str:
    return text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]


def cells(text: str, first: str) -> list[str]:
    """The cells of the table row that begins with a text."""
    (row,) = (line for line in text.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_every_number_of_the_results_is_that_of_a_file(model: Path, results: Path) -> None:
    path = write_card(model, results=[results])
    found = {name: Evaluation.load(results, name) for name in ("fusion", "text_only", "fusion.photos_shuffled")}
    own, other, shuffled = found.values()
    index = {result.metric_type: result for result in load_card(path).metrics}
    assert {name: result.metric_value for name, result in index.items()} == {
        metric: round(own.means[metric], 4) for metric in ("recall@100", "ndcg@10")
    }
    assert {(r.dataset_type, r.dataset_split) for r in index.values()} == {("org/shop", "test")}
    assert index["ndcg@10"].dataset_args["labels"] == SYNTHETIC
    text = path.read_text()
    assert cells(section(text, "Results"), "text_only") == [
        "text_only",
        *(percent(other.means[metric]) for metric in ("recall@100", "ndcg@10")),
        *(interval(paired_bootstrap(own, other, metric)) for metric in ("recall@100", "ndcg@10")),
    ]
    assert cells(section(text, "Perturbed inputs"), "photos_shuffled")[-1] == interval(
        paired_bootstrap(shuffled, own, "ndcg@10")
    )
    slices = section(text, "Slices")
    assert interval(paired_bootstrap(own, other, "ndcg@10", where=("kind", "visual"))) in slices
    visual = own.part("query", "kind", "visual")
    assert visual is not None and percent(visual.metrics["ndcg@10"]) in slices
    assert percent(0.4321) in slices
    assert own.conditions() in section(text, "Results")


def test_a_baseline_is_not_the_model_whose_folder_it_was_given(model: Path, results: Path) -> None:
    text = write_card(model, results=[results]).read_text()
    rows = [line for line in section(text, "Results").splitlines() if line.startswith("| ")]
    assert [row.split("|")[1].strip() for row in rows[2:]] == ["bm25", "text_only", "**this model**"]


def test_another_pool_is_a_row_of_its_own(model: Path, results: Path, provenance: dict[str, Any]) -> None:
    save(evaluation("whole", 0.4, pool="all", num_products=900, provenance=provenance), results)
    card = load_card(write_card(model, results=[results]))
    assert {(result.dataset_name, result.dataset_config) for result in card.metrics} == {
        ("org/shop", None),
        ("org/shop, whole catalogue", "whole_catalogue"),
    }


def test_shortened_vectors_are_no_result_of_the_whole_ones(
    model: Path, results: Path, provenance: dict[str, Any]
) -> None:
    save(evaluation("short", 0.6, 9, provenance={**provenance, "bytes_per_product": 32}), results)
    path = write_card(model, results=[results])
    assert len(load_card(path).metrics) == 2
    short = Evaluation.load(results, "short")
    assert cells(path.read_text(), "32 bytes a product")[2] == percent(short.means["ndcg@10"])


def test_what_was_not_measured_says_so(model: Path) -> None:
    path = write_card(model)
    text = path.read_text()
    assert path == model / "README.md"
    assert load_card(model).metrics == []
    assert load_card(model).table() == "Not measured."
    for heading in (*SECTIONS, "Do the reported modality weights explain the scores?"):
        assert section(text, heading).strip() == "Not measured.", heading
    for heading in ("Training recipe", "Compute"):
        assert section(text, heading).strip() == "Not stated.", heading
    assert "model-index" not in text and "base_model" not in text and "language:" not in text
    assert "{{" not in text and "**Not measured.**" in text


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (SYNTHETIC, f"**Labels of org/shop, test split are synthetic**: {SYNTHETIC}."),
        ("", "**Who made the labels of org/shop, test split is not stated**"),
        ("three annotators, majority", "Labels of org/shop, test split: three annotators, majority."),
    ],
)
def test_who_judged_stands_above_the_numbers(
    source: str, said: str, model: Path, provenance: dict[str, Any], tmp_path: Path
) -> None:
    file = save(evaluation("fusion", label_source=source, provenance=provenance), tmp_path / "r")
    text = write_card(model, results=[file]).read_text()
    assert said in text.split("\n## Usage")[0]


def test_weights_that_explain_nothing_are_printed(model: Path, results: Path) -> None:
    agreement = {"photo": 0.0412, "text": None, "balance": -0.5, "num_products": 7, "num_pairs": 9}
    (results / "fusion.weights.json").write_text(json.dumps(agreement))
    text = write_card(model, results=[results]).read_text()
    assert "photo +0.04, text undefined, balance -0.50 over 7 products (9 pairs)" in text


@pytest.mark.parametrize(("kind", "with_results"), [("empty", False), ("measured", True)])
def test_a_card_passes_the_validation_of_the_hub(
    kind: str, with_results: bool, model: Path, results: Path, hub: LoopbackHub, hub_client_environment: Path
) -> None:
    path = write_card(
        model,
        results=[results] if with_results else [],
        base_model=["org/text", "org/vision"],
        language=["en"],
        datasets=["org/shop"],
        output=model.parent / kind / "README.md",
    )
    card = ModelCard.load(path)
    if int(version("huggingface_hub").split(".")[0]) >= 2:  # 1.x asks huggingface.co, whatever the endpoint
        card.validate()
    fields = card.data.to_dict()
    assert (fields["library_name"], fields["pipeline_tag"]) == ("transformers", "feature-extraction")
    assert (fields["base_model"], fields["base_model_relation"]) == (["org/text", "org/vision"], "finetune")
    assert (fields["datasets"], fields["language"], fields["license"]) == (["org/shop"], ["en"], "apache-2.0")
    assert ("model-index" in fields) == with_results


def test_a_card_takes_the_language_of_an_imported_catalogue(model: Path, tmp_path: Path) -> None:
    (tmp_path / "products.csv").write_text('id,title,price\n1,Rotes Kleid,"1.299,95"\n2,Blaue Hose,20\n')
    command("import-files")(sources=[str(tmp_path / "products.csv")], output=str(tmp_path / "shop"), locale="de-CH")
    record = {"recipe": "stage2", "arguments": {}, "catalogue": str(tmp_path / "shop"), "complete": True}
    (model / "run.json").write_text(json.dumps(record))
    try:
        assert "language:\n- de\n" in write_card(model, output=tmp_path / "card.md").read_text()
        assert "language:\n- fr\n" in write_card(model, output=tmp_path / "card.md", language=["fr"]).read_text()
    finally:
        (model / "run.json").unlink()


def records(folder: Path, **arguments: Any) -> None:
    """A stage 2 in a folder, which started from a base next to it."""
    base = folder.parent / "base"
    base.mkdir()
    recipe = {"text": "org/text-encoder", "vision": "org/vision-encoder", "seed": 0}
    (base / "run.json").write_text(json.dumps({"recipe": "base", "arguments": recipe, "complete": True}))
    record = {
        "recipe": "stage2",
        "arguments": {
            "base": str(base),
            "catalogue": "org/shop-train",
            "seed": 0,
            "optimization": {"learning_rate": 0.00123},
            "hardware": {"accelerator": "cpu", "precision": "32-true"},
            **arguments,
        },
        "catalogue": "org/shop-train",
        "fit_seconds": 372.0,
        "steps": 321,
        "cpu_count": 2,
        "python": "3.11.7",
        "versions": {"torch": "2.13.0"},
        "metrics": {"val/fused/ndcg@10": 0.8765, "train/loss": 0.3},
    }
    (folder / "run.json").write_text(json.dumps(record))


def test_recipe_and_compute_are_those_of_the_runs(model: Path) -> None:
    records(model)
    path = write_card(model)
    text, data = path.read_text(), load_card(path).data
    assert data.base_model == ["org/text-encoder", "org/vision-encoder"]
    assert data.datasets == ["org/shop-train"]
    assert cells(text, "`optimization.learning_rate`") == ["`optimization.learning_rate`", "", "0.00123"]
    assert cells(text, "minutes of fitting") == ["minutes of fitting", "6.2"]
    assert cells(text, "val/fused/ndcg@10")[1] == percent(0.8765)
    assert cells(text, "steps") == ["steps", "321"]
    assert "torch 2.13.0" in text and "one training seed (0)" in text


@pytest.mark.parametrize("alone", [False, True])
def test_a_model_of_products_alone_says_so(model: Path, alone: bool) -> None:
    records(model, pseudo_queries=alone)
    said = "It was trained on products alone: titles and attributes stood in for queries (pseudo-queries)"
    assert (said in section(write_card(model).read_text("utf-8"), "Limits and biases")) == alone


def test_no_folder_user_host_or_token_of_the_runs_is_in_the_card(
    model: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "trainbox7.lan")
    monkeypatch.setenv("LOGNAME", "adalovelace")
    records(
        model,
        feature_cache="/home/adalovelace/data/cache",
        catalogue="s3://secret-bucket/data/shop?X-Signature=abc",
        log_to=f"https://ada:{TOKEN}@example.org/log",
        note="run by adalovelace on trainbox7, from ada@trainbox7.lan:/srv/data",
        token=TOKEN,
        password="open sesame",
        fusion_config={"path": "/opt/weights/clip"},
    )
    text = write_card(model, results=[results]).read_text()
    training = section(text, "Training recipe")
    assert "…/cache" in training and "…/clip" in training and "…/shop" in training
    for private in (
        "/home",
        "adalovelace",
        "trainbox7",
        "secret-bucket",
        "Signature",
        TOKEN,
        "open sesame",
        "/opt",
        "/srv",
    ):
        assert private not in text, private
    assert str(model.parent) not in text


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("Recall@100 / nDCG@10, 30/70 and/or", "Recall@100 / nDCG@10, 30/70 and/or"),
        ("recipes/card.py of org/mm-ecom", "recipes/card.py of org/mm-ecom"),
        ("see https://huggingface.co/org/mm-ecom", "see https://huggingface.co/org/mm-ecom"),
        ("/data/x/shop", "…/shop"),
        ("--cache=/data/x/shop,~/y/z", "--cache=…/shop,…/z"),
        (r"C:\Users\ada\shop", "…/shop"),
        ("/data/My Documents/shop", "…/shop"),
        ("file:///data/x/shop", "…/shop"),
        ("…/shop", "…/shop"),
        ("ada@example.org", "…"),
    ],
)
def test_paths_and_addresses_are_shortened_and_nothing_else(text: str, public: str) -> None:
    assert public_text(text) == public


def test_the_author_is_quoted_word_for_word(model: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes.md"
    notes.write_text("### What is doubtful\n\n- `{{ results }}` | <b>and</b> {% this %} ---\n")
    text = write_card(model, notes=notes).read_text()
    assert notes.read_text().strip() in section(text, "Notes of the author")


def test_a_token_in_the_notes_is_refused_and_not_repeated(model: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes.md"
    notes.write_text(f"fine\nlog in with {TOKEN}\n")
    with pytest.raises(CardError, match=r"notes\.md, line 2: .*revoke") as refusal:
        write_card(model, notes=notes)
    assert TOKEN not in str(refusal.value) and not (model / "README.md").exists()


def test_the_token_of_this_machine_is_refused_whatever_it_looks_like(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_TOKEN", "correct horse battery")
    notes = tmp_path / "notes.md"
    notes.write_text("the password is correct horse battery\n")
    with pytest.raises(CardError, match="access token"):
        write_card(model, notes=notes)


def test_a_card_written_by_hand_is_not_replaced(model: Path) -> None:
    (model / "README.md").write_text("# My own words\n")
    with pytest.raises(CardError, match=r"README\.md.*not written by mmfusion card.*--notes"):
        write_card(model)
    (model / "README.md").unlink()
    first = write_card(model).read_text()
    assert write_card(model).read_text() == first


def edited(path: Path, **fields: Any) -> None:
    record = json.loads(path.read_text())
    for name, value in fields.items():
        part = record
        *outer, last = name.split("__")
        for key in outer:
            part = part[key]
        part[last] = value
        if value is None:
            del part[last]
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"means": {"recall@100": 0.9, "ndcg@10": 0.99}}, r"'means\.recall@100'.*says 0\.9, but the mean of"),
        ({"means": {"recall@100": 0.9}}, r"'means\.ndcg@10'.*no number.*mmfusion evaluate"),
        ({"means": {"recall@100": 97.2, "ndcg@10": 85.6}}, r"'means\.recall@100'.*97\.2 where"),
        ({"relevant_grade": None}, r"damaged.*missing.*'relevant_grade'"),
        ({"surprise": 1}, r"damaged.*surprise"),
        ({"provenance__split": None}, r"'provenance\.split'.*missing"),
        ({"provenance__split": 7}, r"'provenance\.split'.*7 where a text"),
        ({"provenance__catalogue": None}, r"'provenance\.catalogue'.*--dataset NAME"),
        ({"provenance__bytes_per_product": None}, r"'provenance\.bytes_per_product'.*missing"),
        ({"provenance__bytes_per_product": -3}, r"'provenance\.bytes_per_product'.*-3 where"),
        ({"provenance__model": "f" * 64}, r"'provenance\.model': none of 1 results is of this model.*ffffffffffff"),
        (
            {"slices": [{"table": "query", "column": "k", "value": "v", "num_queries": 1, "metrics": {"ndcg@10": 2}}]},
            "k=v",
        ),
    ],
)
def test_a_result_that_is_wrong_is_refused_by_file_and_field(
    fields: dict[str, Any], message: str, model: Path, provenance: dict[str, Any], tmp_path: Path
) -> None:
    file = save(evaluation("fusion", provenance=provenance), tmp_path / "r")
    edited(file, **fields)
    with pytest.raises(CardError, match=message) as refusal:
        write_card(model, results=[file])
    assert "fusion.json" in str(refusal.value) or "provenance.model" in message
    assert not (model / "README.md").exists()


def test_files_that_are_missing_or_twice_are_refused(model: Path, provenance: dict[str, Any], tmp_path: Path) -> None:
    file = save(evaluation("fusion", provenance=provenance), tmp_path / "r")
    again = save(evaluation("again", provenance=provenance), tmp_path / "r")
    with pytest.raises(CardError, match=r"again\.json: .*fusion\.json has numbers.*only one"):
        write_card(model, results=[file, again])
    again.with_suffix(".per_query.parquet").unlink()
    with pytest.raises(CardError, match=r"again\.json: damaged .*again\.per_query\.parquet is missing"):
        write_card(model, results=[again])
    again.write_text("{")
    with pytest.raises(CardError, match=r"again\.json: damaged"):
        write_card(model, results=[again])
    with pytest.raises(CardError, match=r"nowhere: there is no such file"):
        write_card(model, results=[tmp_path / "nowhere"])
    with pytest.raises(CardError, match=r"holds no evaluation; run `mmfusion evaluate"):
        write_card(model, results=[model])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_model": ["/data/minilm"]}, "'base_model': the value is '/data/minilm'"),
        ({"language": ["English"]}, "'language': the value is 'English'"),
        ({"license": "Apache 2"}, "'license': the value is 'Apache 2'"),
        ({"repo": 'org/x"; import os'}, "'repo'"),
        ({"revision": 'main"; import os'}, "'revision'"),
    ],
)
def test_metadata_that_the_hub_does_not_take_is_refused(changes: dict[str, Any], message: str, model: Path) -> None:
    with pytest.raises(CardError, match=message):
        write_card(model, **changes)


def test_a_template_with_an_unknown_place_is_refused(model: Path, tmp_path: Path) -> None:
    template = tmp_path / "mine.md"
    template.write_text("---\n{{ card_data }}\n---\n# {{ titel }}\n")
    with pytest.raises(CardError, match=r"mine\.md: it names the place 'titel'; the places are card_data, title"):
        write_card(model, template=template)
    template.write_text("---\n{{ card_data }}\n---\n# {{ title }}\n")
    assert write_card(model, template=template, repo="org/shop").read_text().rstrip().endswith("# shop")


def test_a_folder_that_holds_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CardError, match=r"config\.json is missing"):
        write_card(tmp_path)


def write_synthetic_ablation(
    folder: Path, provenance: dict[str, Any]
) -> dict[tuple[str, str], dict[int | None, Evaluation]]:
    """Two seeds of three variants; the model is seed 1 of the last one. Gives the evaluations."""
    settings = AblationSettings(
        output=folder,
        seeds=(0, 1),
        base="b",
        fusions=("gated",),
        default_fusion="gated",
        vision_blocks=4,
        embedding_dim=32,
    )
    found: dict[tuple[str, Any], dict[int | None, Evaluation]] = {}
    for variant, level in (("text_only", 0.5), ("concat", 0.45), ("gated", 0.7)):
        for seed in (0, 1):
            of_ours = variant == "gated" and seed == 1
            own = {**provenance, "seed": seed, "model": provenance["model"] if of_ours else f"{variant}{seed}"}
            result = evaluation(f"{variant}.seed{seed}", level, seed + 10, provenance=own)
            found.setdefault((variant, "none"), {})[seed] = result
            save(result, folder / "test")
    typos = evaluation("gated.seed1.typos", 0.3, 50, provenance={**provenance, "seed": 1, "perturbation": "typos"})
    found["gated", "typos"] = {1: typos}
    save(typos, folder / "test")
    rows = compare(all_variants(settings), found, {"larger_generic": "no --larger_base was given"}, num_resamples=200)
    first = found["gated", "none"][0]
    Ablation(
        split="test",
        rows=tuple(rows),
        perturbed=[{"variant": "gated", "perturbation": "typos", "means": average({1: typos}, "gated").means}],
        results=[
            {"variant": variant, "perturbation": kind, "seed": seed, "model": one.provenance["model"]}
            | {"file": f"test/{one.name}.json"}
            for (variant, kind), by_seed in found.items()
            for seed, one in by_seed.items()
        ],
        conditions={n: getattr(first, n) for n in ("pool", "num_products", "num_queries", "relevant_grade")},
        label_source=SYNTHETIC,
        measured_with={"hardware": "2 cores", "else": "/srv/x"},
    ).save(folder / "ablation.test.json")
    return found


def test_the_ablation_is_that_of_its_file_and_the_model_is_found_on_it(
    model: Path, provenance: dict[str, Any], tmp_path: Path
) -> None:
    found = write_synthetic_ablation(tmp_path / "ablation", provenance)
    path = write_card(model, ablation=tmp_path / "ablation")
    text = path.read_text()
    ablation = section(text, "Ablation: what each part adds")
    assert "this repository is variant *gated*, seed 1." in ablation
    row = cells(ablation, "gated: fusion gated after stage 1, the default")
    mean = np.mean([one.means["ndcg@10"] for one in found["gated", "none"].values()])
    assert (row[1], row[5], row[8]) == ("0, 1", percent(float(mean)), "concat")
    assert row[6].startswith("+") and "[" in row[6]
    assert "out of order" in cells(ablation, "concat: concatenation after stage 1 (domain fine-tuned)")[-1]
    assert (
        cells(ablation, "larger_generic: concatenation over larger frozen encoders")[-1]
        == "not run: no --larger_base was given"
    )
    assert SYNTHETIC in ablation and "- hardware: 2 cores" in ablation and "- else" not in ablation
    perturbed = section(text, "Perturbed inputs")
    assert cells(perturbed, "gated, typos")[2] == percent(found["gated", "typos"][1].means["ndcg@10"])
    # The model-index has the weights of this repository, not the mean over seeds.
    values = {result.metric_type: result.metric_value for result in load_card(path).metrics}
    assert values["ndcg@10"] == round(found["gated", "none"][1].means["ndcg@10"], 4)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"by_seed"', '"seeds_by"', r"ablation\.test\.json: damaged \(.*'seeds_by'.*mmfusion ablation"),
        ('"mean": 0.', '"mean": 7.', r"ablation\.test\.json: damaged \(recall@100 is 7\..* where a share"),
        ('"mean": 0.', '"mean": NaN, "m": 0.', r"ablation\.test\.json: damaged"),
        ('"mean": 0.', '"mean": "high", "m": 0.', r"ablation\.test\.json: damaged"),
        ("{", "[", r"ablation\.test\.json: damaged"),
    ],
)
def test_an_ablation_that_is_damaged_is_an_error(
    old: str, new: str, message: str, model: Path, provenance: dict[str, Any], tmp_path: Path
) -> None:
    write_synthetic_ablation(tmp_path / "ablation", provenance)
    file = tmp_path / "ablation" / "ablation.test.json"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(CardError, match=message):
        write_card(model, ablation=file.parent)


def test_a_folder_without_an_ablation_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(CardError, match=r"no ablation.*run `mmfusion ablation"):
        write_card(model, ablation=tmp_path)


def test_snippets_are_found_with_their_headings() -> None:
    text = "# A\n```python\nx = 1\n```\n```bash\nls\n```\n## B\n````python\n'''\n```\n'''\n````\n"
    found = [(snippet.heading, snippet.code, snippet.line) for snippet in python_snippets(text)]
    assert found == [("A", "x = 1\n", 3), ("B", "'''\n```\n'''\n", 10)]


def test_snippets_name_repository_revision_and_columns_of_the_template(model: Path) -> None:
    fields = json.loads((model / "processor_config.json").read_text())
    (model / "processor_config.json").unlink()
    (model / "processor_config.json").write_text(json.dumps({**fields, "product_template": "{title}, {brand}"}))
    text = write_card(model, repo="shop/search", revision="v1.2").read_text()
    snippets = python_snippets(text)
    assert len(snippets) == 5
    for snippet in snippets:
        compile(snippet.code, snippet.heading, "exec")
        assert 'repo, revision = "shop/search", "v1.2"' in snippet.code
        assert "revision=revision" in snippet.code
    assert sum('"brand": ""' in snippet.code for snippet in snippets) == 4


def test_every_snippet_runs_as_written_and_all_give_the_same_scores(
    model: Path, hub: LoopbackHub, hub_client_environment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = hub.unique()
    tag = publish(model, name).tag
    later = {**json.loads((model / "config.json").read_text()), "initializer_range": 0.5}
    HfApi().upload_file(path_or_fileobj=json.dumps(later).encode(), path_in_repo="config.json", repo_id=name)
    card = load_card(name)
    assert all(f'repo, revision = "{name}", "{tag}"' in snippet.code for snippet in python_snippets(card.text))
    scores: dict[str, list[float]] = {}
    for snippet in python_snippets(card.text):
        values: dict[str, Any] = {}
        exec(compile(snippet.code, f"README.md, {snippet.heading}", "exec"), values)
        if hasattr(values["model"], "config"):
            assert values["model"].config.initializer_range != 0.5, "the revision is not pinned"
        queries, products = values["query_vectors"], values.get("product_vectors")
        assert products is None or len(products) == len(values["products"])
        scores[snippet.heading] = np.asarray(queries @ (queries if products is None else products).T)[0].tolist()
    front_end = scores.pop("A search front end: the query tower alone")
    assert front_end == pytest.approx([1.0], abs=1e-5)
    assert len(scores) == 4
    first = scores["With mmfusion installed"]
    assert all(found == pytest.approx(first, abs=1e-5) for found in scores.values())
    printed = capsys.readouterr().out
    assert f"{max(first):.3f} {{" in printed and "tensor([[" in printed


def test_a_card_is_loaded_from_the_hub_by_revision(
    model: Path, results: Path, hub: LoopbackHub, hub_client_environment: Path
) -> None:
    name = hub.unique()
    measured = write_card(model, results=[results], repo=name).read_bytes()
    hub.create_repo(name, {"README.md": measured})
    HfApi().create_tag(name, tag="v1")
    empty = write_card(model, repo=name).read_bytes()
    HfApi().upload_file(path_or_fileobj=empty, path_in_repo="README.md", repo_id=name)
    card = load_card(name, revision="v1")
    own = Evaluation.load(results, "fusion")
    assert cells(card.table(), "org/shop") == ["org/shop", "test", *map(percent, own.means.values())]
    assert load_card(name).table() == "Not measured."
    assert card.data.library_name == "transformers" and "## Usage" in card.text
    with pytest.raises(HubError, match="no revision 'v9'"):
        load_card(name, revision="v9")
    with pytest.raises(HubError, match="does not exist"):
        load_card("org/nowhere")


@pytest.mark.parametrize("content", ["---\nlicense: [\n---\n", "---\n- a list\n---\n", "---\nmodel-index: [1]\n---\n"])
def test_metadata_that_cannot_be_read_is_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(content)
    with pytest.raises(CardError, match=r"README\.md: the metadata cannot be read") as refusal:
        load_card(tmp_path)
    assert "\n" not in str(refusal.value)


def test_a_folder_without_a_card_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CardError, match=r"README\.md: there is no such card"):
        load_card(tmp_path)


def test_the_recipe_writes_and_shows(
    model: Path, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cards" / "release.md"
    command("card")(base=str(model), results=[str(results)], output=str(file), language=["en"])
    written = capsys.readouterr().out
    command("card")(show=str(file))
    assert capsys.readouterr().out.strip() == load_card(file).table()
    assert load_card(file).table() in written and str(file) in written
