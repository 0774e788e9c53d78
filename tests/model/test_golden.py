"""What commit f4b0012 saved still loads and means the same: the files of `golden/`, see its `make.py`."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from bare_environment import build_bare_environment, run_bare
from commands import command
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from mmfusion import MMFusionModel, MMFusionProcessor
from mmfusion.embedding import EmbeddedCatalogue
from mmfusion.retrieval import ProductIndex, Searcher, fingerprint
from mmfusion.retrieval.fingerprint import model_fingerprint
from mmfusion.retrieval.query_tower import load_query_tower
from mmfusion.retriever import Retriever
from mmfusion.training import Hardware

GOLDEN = Path(__file__).parents[1] / "golden"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())
VECTORS = load_file(GOLDEN / "vectors.safetensors")
CPU = Hardware(accelerator="cpu")
# Other processors and other builds of torch add up in another order; with those of f4b0012 the bits are the same.
TOLERANCE = 1e-6
KINDS = ("query_embeds", "product_embeds", "modality_weights")

# The products and queries of make.py, for whatever loads the model.
PRODUCTS = """
from PIL import Image
large, plain, grey = (Image.open(f"photos/{name}").convert("RGB") for name in ("large.jpg", "plain.png", "grey.jpg"))
queries = ["red dress", "a small blue mug", "lamp", "striped shoe with yellow"]
products = [
    {"title": "red dress", "description": "a soft dress", "image": large},
    {"title": "small round lamp", "description": "", "image": None},
    {"title": "", "description": "", "image": plain},
    {"title": "striped shoe", "description": "large", "image": [plain, grey]},
]
"""
WITHOUT_MMFUSION = (
    PRODUCTS
    + """
import sys, torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoProcessor
torch.set_num_threads(1)
model = AutoModel.from_pretrained("published", trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained("published", trust_remote_code=True)
tower = AutoModel.from_pretrained("published/query", trust_remote_code=True).eval()
with torch.inference_mode():
    output = model(**processor(queries=queries, products=products))
    alone = tower.get_query_features(**processor(queries=queries))
found = {name: output[name].contiguous() for name in ("query_embeds", "product_embeds", "modality_weights")}
save_file({**found, "alone": alone.contiguous()}, "found.safetensors")
print([name for name in sys.modules if name == "mmfusion" or name.startswith("mmfusion.")])
"""
)


@pytest.fixture
def golden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files, which is the current folder: their records name each other by relative paths."""
    folder = tmp_path / "golden"
    shutil.copytree(GOLDEN, folder)
    for path in (folder / "published").glob("*_mmfusion.py"):
        # It was published twice, and is kept once.
        shutil.copyfile(path, folder / "published" / "query" / path.name)
    (folder / "published" / "query" / "sentence_transformers_mmfusion.py").unlink()
    monkeypatch.chdir(folder)
    return folder


def assert_close(found: Tensor, expected: Tensor, what: str, tolerance: float = TOLERANCE) -> None:
    assert found.shape == expected.shape, what
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance, msg=lambda text: f"{what}: {text}")


def products_and_queries() -> dict[str, Any]:
    values: dict[str, Any] = {}
    exec(PRODUCTS, values)
    return {name: values[name] for name in ("queries", "products")}


@pytest.mark.parametrize("name", ["model", "dual", "published"])
def test_a_saved_model_gives_the_same_vectors_under_the_same_name(golden: Path, name: str) -> None:
    model = MMFusionModel.from_pretrained(name).eval()
    processor = MMFusionProcessor.from_pretrained(name)
    assert model_fingerprint(model, processor) == EXPECTED["fingerprints"][name]
    with torch.inference_mode():
        output = model(**processor(**products_and_queries()))
    for kind in KINDS:
        assert_close(output[kind], VECTORS[f"{name}.{kind}"], f"{kind} of {name}")


@pytest.mark.parametrize("name", ["model", "dual", "published"])
def test_a_query_tower_is_known_by_the_name_of_its_model(golden: Path, name: str) -> None:
    tower, processor = load_query_tower(name)
    assert tower.config.query_only
    assert model_fingerprint(tower, processor) == EXPECTED["fingerprints"][name]
    with torch.inference_mode():
        found = tower.get_query_features(**processor(queries=products_and_queries()["queries"]))
    assert_close(found, VECTORS[f"{name}.query_embeds"], f"queries by the tower of {name}")


def test_saving_again_changes_neither_name_nor_meaning(golden: Path) -> None:
    for name in ("model", "dual", "published"):
        MMFusionModel.from_pretrained(name).save_pretrained("again")
        MMFusionProcessor.from_pretrained(name).save_pretrained("again")
        model, processor = MMFusionModel.from_pretrained("again"), MMFusionProcessor.from_pretrained("again")
        assert model_fingerprint(model, processor) == EXPECTED["fingerprints"][name], name
        shutil.rmtree("again")


def test_what_others_set_on_a_config_does_not_rename_a_model(golden: Path) -> None:
    model, processor = MMFusionModel.from_pretrained("model"), MMFusionProcessor.from_pretrained("model")
    others = {"use_cache": False, "pad_token_id": 7, "problem_type": "regression", "output_hidden_states": True}
    for name, value in {**others, "num_labels": 5, "of_some_tool": 1}.items():
        setattr(model.config, name, value)
    model.save_pretrained("model")
    for one in (model, MMFusionModel.from_pretrained("model")):
        assert model_fingerprint(one, processor) == EXPECTED["fingerprints"]["model"]
    model.config.fusion_heads += 1
    assert model_fingerprint(model, processor) != EXPECTED["fingerprints"]["model"]


def test_a_field_that_is_added_renames_models_that_use_it_and_no_other(
    golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = MMFusionModel.from_pretrained("model"), MMFusionProcessor.from_pretrained("model")
    for fields in ("_FIRST_CONFIG_FIELDS", "_FIRST_PROCESSOR_FIELDS"):
        monkeypatch.setattr(fingerprint, fields, getattr(fingerprint, fields) - {"fusion_experts", "max_photos"})
    as_if_new = model_fingerprint(model, processor)
    assert "fusion_experts" not in fingerprint._config_fields(model.config)
    assert "max_photos" not in fingerprint.processor_fields(processor)
    model.config.fusion_experts += 1
    with_config = model_fingerprint(model, processor)
    processor.max_photos += 1
    assert len({as_if_new, with_config, model_fingerprint(model, processor)}) == 3


def test_an_index_knows_its_model_and_finds_the_same_products(golden: Path) -> None:
    index = ProductIndex.load("index/index")
    index.check_model(EXPECTED["fingerprints"]["model"])
    queries = products_and_queries()["queries"]
    found = Searcher(Retriever(*load_query_tower("model")), index).search(queries, 5)
    for query, hits, expected in zip(queries, found, EXPECTED["hits"], strict=True):
        assert [hit.product_id for hit in hits] == [product_id for product_id, _ in expected], query
        assert [hit.score for hit in hits] == pytest.approx([score for _, score in expected], abs=TOLERANCE), query
    with pytest.raises(ValueError, match="model"):
        index.check_model(EXPECTED["fingerprints"]["dual"])


def test_search_goes_by_what_an_index_says_of_its_model(golden: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command("search")("red dress", index="index", k=2)
    printed = capsys.readouterr().out
    assert [product_id in printed for product_id in ("p12", "p03", "p07")] == [True, True, False]


def test_embedding_the_same_catalogue_embeds_nothing_anew(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(*_: Any, **__: Any) -> None:
        raise AssertionError("a product is embedded anew")

    before = {path.name: path.read_bytes() for path in Path("embeddings").glob("shard-*")}
    assert len(before) == 2
    monkeypatch.setattr(MMFusionModel, "forward", forward)
    command("embed")(
        catalogue="catalogue", base="model", output="embeddings", shard_size=10, batch_size=4, hardware=CPU
    )
    assert {path.name: path.read_bytes() for path in Path("embeddings").glob("shard-*")} == before
    embedded = EmbeddedCatalogue.open("embeddings")
    embedded.check()
    assert len(embedded) == 16


def test_embedding_it_elsewhere_gives_the_same_vectors_and_digests(golden: Path) -> None:
    command("embed")(catalogue="catalogue", base="model", output="fresh", shard_size=10, batch_size=4, hardware=CPU)
    old, new = EmbeddedCatalogue.open("embeddings"), EmbeddedCatalogue.open("fresh")
    for column in ("product_id", "content"):
        assert sorted(old.column(column).to_pylist()) == sorted(new.column(column).to_pylist())
    vectors = [
        dict(zip(one.column("product_id").to_pylist(), torch.cat([*map(torch.from_numpy, one.vectors())]), strict=True))
        for one in (old, new)
    ]
    for product_id, vector in vectors[0].items():
        assert_close(vectors[1][product_id], vector, product_id)


def test_a_training_that_was_killed_ends_with_the_same_weights(
    golden: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command("stage2")(**EXPECTED["training"], hardware=CPU)
    assert "resuming from step=3.ckpt" in capsys.readouterr().out
    found, expected = load_file("run/model.safetensors"), load_file("run_final.safetensors")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # The bias of keys has no gradient but for rounding, which Adam makes as large as any.
        assert_close(found[name], value, name, 1e-4 if name.endswith("key.bias") else TOLERANCE)


def test_a_published_repository_works_by_its_own_code(golden: Path, tmp_path: Path) -> None:
    python = build_bare_environment(tmp_path / "bare")
    # Code of another repository of this name must not be taken from the cache of modules.
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    printed = run_bare(python, WITHOUT_MMFUSION, environment=environment, cwd=golden)
    assert printed.splitlines()[-1] == "[]"
    found = load_file("found.safetensors")
    for kind in KINDS:
        assert_close(found[kind], VECTORS[f"published.{kind}"], kind)
    assert_close(found["alone"], VECTORS["published.query_embeds"], "queries by the query tower alone")


def test_photos_of_the_golden_catalogue_are_decoded_as_they_are() -> None:
    # The fixtures are ordinary photos: nothing in them asks for a correction.
    for path in sorted((GOLDEN / "photos").iterdir()):
        with Image.open(path) as photo:
            assert not photo.getexif() and "icc_profile" not in photo.info and photo.mode in ("RGB", "L")
