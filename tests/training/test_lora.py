"""Low-rank adapters: where they are, what they train, and the ordinary model that comes of them."""

import json
import os
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_encoders import TEXT_ENCODERS, VISION_ENCODERS, photos, texts, tiny_model
from torch import Tensor, nn

from mmfusion.extras import MissingLibraryError
from mmfusion.model import MMFusionModel
from mmfusion.stages import Lora, Optimization, Stage1, Stage2, add_adapters, whole_model
from mmfusion.stages.lora import adapted_layers
from mmfusion.training.hardware import checkpoint_activations

# What has no linear layers, and the layers that are adapted instead.
CONVOLUTIONS = {"mobilenet_v2": ["expand_1x1", "layer.*.reduce_1x1.convolution"], "resnet": ["convolution"]}
FAMILIES = list(zip([*TEXT_ENCODERS, "bert", "bert"], VISION_ENCODERS, strict=True))


def inputs() -> dict[str, Tensor]:
    sides = {"product": texts([4, 3, 5, 2]), "query": texts([2, 3, 1, 4], seed=3)}
    rows = {f"{side}_{name}": value for side, batch in sides.items() for name, value in batch.items()}
    return {**rows, "pixel_values": photos(4)}


def trained(model: MMFusionModel) -> dict[str, nn.Parameter]:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def as_if_trained(model: MMFusionModel) -> None:
    for name, value in model.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(value, std=0.1)


def gradients(model: MMFusionModel) -> tuple[Tensor, dict[str, Tensor]]:
    """Product vectors, and gradients of a loss over all views, with the dropout of one seed."""
    torch.manual_seed(5)
    output = model(**inputs())
    views = torch.cat([output[name] for name in ("query_embeds", "product_embeds", "text_embeds", "image_embeds")])
    (views @ views.T * torch.linspace(-1, 1, len(views))).square().sum().backward()
    found = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    return output.product_embeds.detach(), found


@pytest.mark.parametrize(("text", "vision"), FAMILIES)
def test_each_adapter_learns_and_the_saved_model_embeds_as_it_did_with_them(
    tmp_path: Path, text: str, vision: str
) -> None:
    model = tiny_model(text, vision).double()
    model.save_pretrained(tmp_path / "plain")
    before = model(**inputs()).product_embeds
    add_adapters(model, Lora(rank=2, targets="all-linear", vision_targets=CONVOLUTIONS.get(vision)))
    torch.testing.assert_close(model(**inputs()).product_embeds, before, rtol=0, atol=1e-12)
    _, found = gradients(model)
    adapters = [name for name in trained(model) if ".lora_B." in name]
    assert len(adapters) == len(adapted_layers(model)) > 10
    assert not [name for name in adapters if not found[name].any()]
    as_if_trained(model)
    model.eval()
    whole_model(model).save_pretrained(tmp_path / "merged")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "merged"))
    assert one.keys() == other.keys()
    one, other = ((tmp_path / name / "config.json").read_text() for name in ("plain", "merged"))
    assert one == other and sorted(os.listdir(tmp_path / "plain")) == sorted(os.listdir(tmp_path / "merged"))
    again, expected = MMFusionModel.from_pretrained(tmp_path / "merged"), model(**inputs())
    for name in ("query_embeds", "product_embeds", "image_embeds"):
        torch.testing.assert_close(again(**inputs())[name], expected[name], rtol=0, atol=1e-9)
    assert not torch.allclose(expected.product_embeds, before, atol=1e-4)


def test_a_model_in_training_keeps_its_weights_when_it_is_saved_and_is_not_saved_with_adapters(tmp_path: Path) -> None:
    model = tiny_model()
    add_adapters(model, Lora(rank=2))
    as_if_trained(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    whole_model(model).save_pretrained(tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match=r"has LoRA adapters beside its weights.*mmfusion\.stages\.whole_model"):
        model.save_pretrained(tmp_path / "other")


def test_attention_is_all_of_attention_and_nothing_else() -> None:
    model = tiny_model("bert", "siglip")
    add_adapters(model, Lora(rank=2))
    names = {name.rpartition(".")[2] for name in adapted_layers(model)}
    # The output of BERT's attention is called dense, as are the layers of its MLPs.
    assert names == {"query", "key", "value", "dense", "q_proj", "k_proj", "v_proj", "out_proj"}
    assert not [name for name in adapted_layers(model) if "intermediate" in name or "mlp" in name]
    # The attention that pools reads its weights without calling the layer.
    assert not [name for name in adapted_layers(model) if "head." in name]


def test_what_is_frozen_gets_no_adapters() -> None:
    model = tiny_model()
    model.freeze_vision(2)
    Stage1(model, Optimization(text_learning_rate=0.0))
    add_adapters(model, Lora(rank=2, targets="all-linear"))
    adapted = set(adapted_layers(model))
    assert adapted and all(".2." in name and name.startswith("vision_model.") for name in adapted)
    in_encoders = [name for name in trained(model) if name.startswith(("text_model.", "vision_model."))]
    assert len(in_encoders) == 2 * len(adapted) and all(".lora_" in name for name in in_encoders)
    # Photos that no loss looks at.
    model = tiny_model()
    Stage1(model, query_image_weight=0.0, title_image_weight=0.0)
    add_adapters(model, Lora(rank=2))
    assert {name.partition(".")[0] for name in adapted_layers(model)} == {"text_model"}


def test_towers_with_encoders_of_their_own_and_blocks_by_name() -> None:
    model = tiny_model(share_text_encoder=False)
    add_adapters(model, Lora(rank=3, alpha=12.0, targets=["query", "layer.2.intermediate"], vision_targets=["*.0.mlp"]))
    layers = adapted_layers(model)
    assert {name.partition(".")[0] for name in layers} == {"text_model", "query_model", "vision_model"}
    of_queries = {name.partition("layer.")[2] for name in layers if name.startswith("query_model.")}
    assert of_queries == {*(f"{block}.attention.self.query" for block in range(3)), "2.intermediate.dense"}
    assert all(".0.mlp." in name for name in layers if name.startswith("vision_model."))
    assert {(layer.r["default"], layer.scaling["default"]) for layer in layers.values()} == {(3, 4.0)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, r"lora.rank is 0; give at least 1"),
        ({"alpha": 16.0}, r"lora.alpha is given without a rank.*give lora.rank 8"),
        ({"targets": "all-linear"}, r"lora.targets is given without a rank"),
        ({"rank": 4, "alpha": 0.0}, r"lora.alpha is 0.0; give a number above 0"),
        ({"rank": 4, "alpha": float("nan")}, r"lora.alpha is nan"),
        ({"rank": 4, "dropout": 1.0}, r"lora.dropout is 1.0; give a number in \[0, 1\)"),
        ({"rank": 4, "targets": []}, r"lora.targets is empty"),
        ({"rank": 4, "targets": ["query", "q_proj"]}, r"lora.targets 'q_proj' names no layer of BertModel.*"
         r"encoder.layer.\*.attention.self.query, .*Give parts of these names, or freeze"),
        ({"rank": 4, "targets": ["all-linear"], "vision_targets": "self"}, "lora.vision_targets 'self' .* ViTModel"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        add_adapters(tiny_model(), Lora(**settings))


def test_adapters_of_frozen_encoders_are_refused() -> None:
    model = tiny_model()
    Stage2(model, Optimization(text_learning_rate=0.0, vision_learning_rate=0.0))
    with pytest.raises(ValueError, match=r"lora.rank is 8, but no encoder trains.*text_learning_rate.*above 0"):
        add_adapters(model, Lora(rank=8))


def test_a_missing_library_is_named_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmfusion.commands import stage1

    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingLibraryError, match=r"library peft .*pip install 'mmfusion\[lora\]'"):
        stage1.main(stage1.Config(output=str(tmp_path / "run"), lora=Lora(rank=8)))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("text", "vision"), FAMILIES)
def test_normalised_states_are_not_kept_and_gradients_are_the_same(
    monkeypatch: pytest.MonkeyPatch, text: str, vision: str
) -> None:
    model = tiny_model(text, vision).double()
    lora = Lora(rank=2, vision_targets=CONVOLUTIONS.get(vision, "all-linear"))
    keeping = adapted_beside_twin(model, lora, monkeypatch)
    (vectors, found), (expected, wanted) = gradients(model), gradients(keeping)
    assert torch.equal(vectors, expected) and found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-15, msg=name)
    # T5 has norms of its own.
    assert kept(model) < kept(keeping) or (text, vision) == ("t5", "mobilenet_v2")
    with torch.autocast("cpu", torch.bfloat16):
        assert gradients(model.float())[1].keys() == wanted.keys()


def test_normalised_states_that_are_changed_in_place_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model().double()
    for norm in model.text_model.modules():
        if isinstance(norm, nn.LayerNorm):
            norm.register_forward_hook(lambda module, given, states: states.mul_(0.5))
    keeping = adapted_beside_twin(model, Lora(rank=2), monkeypatch)
    (_, found), (_, wanted) = gradients(model), gradients(keeping)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-15, msg=name)


def adapted_beside_twin(model: MMFusionModel, lora: Lora, monkeypatch: pytest.MonkeyPatch) -> MMFusionModel:
    """Adds adapters to a model, and returns the slow twin with the same ones, which keeps normalised states."""
    twin = deepcopy(model)
    add_adapters(model, lora)
    as_if_trained(model)
    with monkeypatch.context() as patched:
        patched.setattr("mmfusion.stages.lora._normalised", nn.LayerNorm.forward)
        add_adapters(twin, lora)
    twin.load_state_dict(model.state_dict())
    return twin


def kept(model: MMFusionModel) -> int:
    """Bytes of what the backward pass needs."""
    tensors: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: (tensors.append(one), one)[1], lambda one: one):
        output = model(**inputs())
    del output
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}
    return sum(storages.values())


@pytest.mark.parametrize("lora", [Lora(), Lora(rank=2, dropout=0.5, targets="all-linear")])
def test_activation_checkpointing_draws_the_same_dropout_and_ends_in_the_same_gradients(lora: Lora) -> None:
    model = tiny_model(fusion_dropout=0.3).double()
    add_adapters(model, lora)
    as_if_trained(model)
    model.train()
    expected, wanted = gradients(model)
    in_encoders = [name for name in wanted if name.startswith(("text_model.", "vision_model."))]
    assert in_encoders and all((".lora_" in name) == (lora.rank is not None) for name in in_encoders)
    checkpoint_activations(model)
    vectors, found = gradients(model)
    assert torch.equal(vectors, expected) and found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12, msg=name)
    model.eval()
    assert not torch.allclose(gradients(model)[0], expected)


def test_the_record_says_how_and_a_training_without_adapters_is_recorded_as_before() -> None:
    from mmfusion.commands import stage1
    from mmfusion.training import recorded_arguments

    assert "lora" not in recorded_arguments(stage1.Config())
    recorded = recorded_arguments(stage1.Config(lora=Lora(rank=4, targets=["query", "value"])))
    expected = {"rank": 4, "alpha": None, "dropout": 0.0, "targets": ["query", "value"], "vision_targets": None}
    assert json.loads(json.dumps(recorded["lora"])) == expected
