"""A model whose projections nothing has trained knows it, and commands that search refuse it."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import tiny_encoders
import torch
from commands import as_if_trained, command

from mmfusion.data.toy_catalogue import write_toy_catalogue
from mmfusion.data.toy_encoders import write_toy_encoders
from mmfusion.model import MMFusionModel
from mmfusion.retrieval.fingerprint import model_fingerprint
from mmfusion.retrieval.query_tower import UntrainedError, check_base, load_query_tower
from mmfusion.retriever import Retriever
from mmfusion.stages import Optimization
from mmfusion.training import load_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("untrained")
    write_toy_catalogue(folder / "toy", num_products=60)
    encoders = write_toy_encoders(folder / "encoders")
    command("base")(str(encoders.text), str(encoders.vision), str(folder / "base"))
    return folder / "base"


@pytest.mark.parametrize(
    ("make", "untrained"),
    [
        (lambda: (dual := tiny_encoders.clip(), dual, {}), False),
        (lambda: (dual := tiny_encoders.siglip(), dual, {}), False),
        (lambda: (tiny_encoders.clip(), tiny_encoders.clip(), {}), True),
        (lambda: (dual := tiny_encoders.clip(), dual, {"embedding_dim": 12}), True),
        (lambda: (tiny_encoders.bert(), tiny_encoders.vit(), {}), True),
        (lambda: (tiny_encoders.bert(), tiny_encoders.vit(), {"embedding_dim": 12}), True),
        # As a sentence encoder is used: photos have no part in it.
        (lambda: (tiny_encoders.bert(), tiny_encoders.vit(), {"fusion": "text_only"}), False),
        (lambda: (tiny_encoders.bert(), tiny_encoders.vit(), {"fusion": "text_only", "embedding_dim": 12}), True),
    ],
)
def test_one_dual_encoder_is_trained_and_two_encoders_are_not(make: Any, untrained: bool, tmp_path: Path) -> None:
    text, vision, fields = make()
    model = MMFusionModel.from_backbones(text, vision, **fields)
    assert model.is_untrained is untrained
    model.save_pretrained(tmp_path)
    assert MMFusionModel.from_pretrained(tmp_path).is_untrained is untrained


def test_halves_of_one_checkpoint_are_known_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_encoders.clip().save_pretrained(tmp_path / "clip")
    monkeypatch.chdir(tmp_path)
    for text, vision in (("clip", "clip/"), ("clip", str(tmp_path / "clip"))):
        assert not MMFusionModel.from_backbones(text, vision).is_untrained
    tiny_encoders.clip().save_pretrained(tmp_path / "other")
    assert MMFusionModel.from_backbones("clip", "other").is_untrained


def test_any_change_of_the_projection_is_training(base: Path, tmp_path: Path) -> None:
    model, processor = load_base(str(base))
    assert model.is_untrained
    fingerprint = model_fingerprint(model, processor)
    model.config.untrained_projection = ""
    # What a model is made from says nothing about its vectors.
    assert model_fingerprint(model, processor) == fingerprint and not model.is_untrained
    trained, _ = load_base(str(base))
    with torch.no_grad():
        trained.query_projection.weight[0, 0] += 1e-6
    assert not trained.is_untrained
    options: dict[str, Any] = {"base": str(base), "catalogue": str(base.parent / "toy"), "steps": 1, "batch_size": 8}
    command("stage1")(**options, output=str(tmp_path / "stage1"))
    assert not load_base(str(tmp_path / "stage1"))[0].is_untrained
    frozen = Optimization(learning_rate=0, text_learning_rate=1e-3, vision_learning_rate=0)
    command("stage1")(**options, output=str(tmp_path / "frozen"), optimization=frozen)
    assert load_base(str(tmp_path / "frozen"))[0].is_untrained


def test_commands_that_search_refuse_it_with_both_ways_out(base: Path, tmp_path: Path) -> None:
    catalogue = str(base.parent / "toy")
    refused = r"never trained.*mmfusion stage1.*mmfusion fit.*CLIP or SigLIP"
    assert load_query_tower(base)[0].is_untrained
    for name in ("embed", "export"):
        given = {"catalogue": catalogue} if name == "embed" else {}
        with pytest.raises(UntrainedError, match=refused):
            command(name)(base=str(base), output=str(tmp_path / name), **given)
    before = (base / "config.json").read_text()
    as_if_trained(base)
    command("embed")(base=str(base), output=str(tmp_path / "made"), catalogue=catalogue)
    command("index")(embeddings=str(tmp_path / "made"), output=str(tmp_path / "index"))
    command("search")("dress", index=str(tmp_path / "index"))
    # As if an older version had embedded it.
    (base / "config.json").write_text(before)
    for name, given in (
        ("index", {"embeddings": str(tmp_path / "made"), "output": str(tmp_path / "other")}),
        ("search", {"query": "dress", "index": str(tmp_path / "index")}),
        ("serve", {"index": str(tmp_path / "index"), "port": 0}),
    ):
        with pytest.raises(UntrainedError, match=refused):
            command(name)(**given)
    check_base(tmp_path / "gone")


def test_a_model_of_an_older_version_counts_as_trained(base: Path, tmp_path: Path) -> None:
    model, processor = load_base(str(base))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["untrained_projection"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert not load_base(str(tmp_path))[0].is_untrained


def test_from_python_it_is_a_warning_once(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    retriever = Retriever.from_pretrained(base)
    products = [{"title": "red dress"}, {"title": "mug"}]
    with caplog.at_level(logging.WARNING, logger="mmfusion"):
        retriever.encode_queries(["dress"])
        assert "never trained" not in caplog.text
        retriever.index(products)
        retriever.encode_products(products)
    assert caplog.text.count("this model was never trained") == 1
