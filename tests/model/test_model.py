"""The model as a whole: configuration, saving and loading, checkpoints of another architecture, frozen statistics."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_to_end
from safetensors.torch import load_file, save_file
from tiny_encoders import TEXT_ENCODERS, VISION_ENCODERS, bert, clip, photos, texts, tiny_model, vit
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, BertConfig

from mmfusion import MMFusionConfig, MMFusionModel, MMFusionOutput
from mmfusion.model import FUSIONS
from mmfusion.model.configuration_mmfusion import own_fields

TINY_CONFIG: dict[str, Any] = {
    "text_config": {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1},
    "vision_config": {"model_type": "vit", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1},
}


def _batch() -> dict[str, Tensor]:
    query, product = texts([3, 6], seed=4), texts([5, 0, 4])
    return {
        **{f"query_{name}": value for name, value in query.items()},
        **{f"product_{name}": value for name, value in product.items()},
        "pixel_values": photos(3, 2),
        "photo_mask": torch.tensor([[True, True], [True, False], [False, False]]),
    }


def _embed(model: nn.Module) -> MMFusionOutput:
    with torch.no_grad():
        output: MMFusionOutput = model.eval()(**_batch())
    return output


# --- Configuration -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("fusion", "concatenation"),
        ("fusion", ""),
        ("text_pooling", "median"),
        ("image_pooling", "first"),
        ("embedding_dim", 0),
        ("embedding_dim", -4),
        ("embedding_dim", 2.5),
        ("embedding_dim", "256"),
        ("fusion_hidden_size", 0),
        ("fusion_hidden_size", 10),
        ("fusion_layers", 0),
        ("fusion_heads", 0),
        ("fusion_latents", 0),
        ("fusion_dropout", 1.0),
        ("fusion_dropout", -0.1),
        ("fusion_dropout", float("nan")),
        ("fusion_dropout", "0.1"),
        ("fusion_text_weight", 0.0),
        ("fusion_text_weight", 1.0),
        ("fusion_text_weight", float("nan")),
        ("fusion_learned_weights", 1),
        ("fusion_experts", 0),
        ("fusion_experts", 2.5),
        ("fusion_balance_weight", -0.01),
        ("fusion_balance_weight", float("inf")),
        ("logit_scale_init", 0.0),
        ("logit_scale_init", -1.0),
        ("logit_scale_init", float("inf")),
        ("logit_scale_init", float("nan")),
        ("initializer_range", 0.0),
        ("initializer_range", float("nan")),
        ("share_text_encoder", "no"),
        ("role_embedding", "yes"),
        ("freeze_batch_norm", 3),
        ("query_prompt", None),
        ("product_prompt", 3),
        ("product_template", None),
    ],
)
def test_a_value_out_of_range_names_the_field(field: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=field) as caught:
        MMFusionConfig(**{field: value})
    assert repr(value) in str(caught.value)


def test_unknown_fusion_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="fusoin") as caught:
        MMFusionConfig(fusion="fusoin")
    assert all(kind in str(caught.value) for kind in FUSIONS)


@pytest.mark.parametrize("name", ["fusoin", "embeding_dim", "layers", "txt_config", "hidden_size"])
def test_misspelled_field_is_an_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"no field '{name}'"):
        MMFusionConfig(**{name: 4})
    MMFusionConfig(**TINY_CONFIG).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: 4}))
    for load in (MMFusionConfig.from_pretrained, AutoConfig.from_pretrained):
        with pytest.raises(ValueError, match=f"no field '{name}'"):
            load(tmp_path)


# What transformers, its Trainer and those who build on them leave in configs.
OF_OTHERS: dict[str, Any] = {
    **{"use_cache": False, "pad_token_id": 3, "eos_token_id": [1, 2], "tokenizer_class": "BertTokenizer"},
    **{"gradient_checkpointing": True, "torch_dtype": "float32", "num_labels": 3, "problem_type": "regression"},
    **{"tie_word_embeddings": True, "temperature": 0.7, "task_specific_params": {}, "attn_implementation": "eager"},
}


def test_keys_of_others_are_read_and_not_written(tmp_path: Path) -> None:
    config = MMFusionConfig(**TINY_CONFIG, **OF_OTHERS)
    for name, value in {"use_cache": False, "name_of_a_newer_tool": 1, "pad_token_id": 3}.items():
        setattr(config, name, value)
    config.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    written = json.loads(path.read_text())
    assert not written.keys() & {"use_cache", "pad_token_id", "temperature", "name_of_a_newer_tool"}
    path.write_text(json.dumps({**written, **OF_OTHERS}))
    for load in (MMFusionConfig.from_pretrained, AutoConfig.from_pretrained):
        assert load(tmp_path).embedding_dim == config.embedding_dim
    assert MMFusionConfig.from_pretrained(tmp_path, use_cache=False).fusion == config.fusion


def test_misspelled_override_of_from_pretrained_is_an_error(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises((ValueError, TypeError), match="fusoin"):
        MMFusionModel.from_pretrained(tmp_path, fusoin="concat")
    with pytest.raises(ValueError, match=r"fusion is 'conact'.*cross_attention"):
        MMFusionModel.from_pretrained(tmp_path, fusion="conact")
    with pytest.raises(ValueError, match=r"fusion_dropout is 2"):
        AutoModel.from_pretrained(tmp_path, fusion_dropout=2)
    with pytest.raises((ValueError, TypeError), match="fusoin"):
        MMFusionConfig.from_pretrained(tmp_path, fusoin="concat")
    with pytest.raises(ValueError, match="fusoin"):
        MMFusionModel.from_backbones(bert(), vit(), fusoin="concat")


def test_config_survives_the_round_trip(tmp_path: Path) -> None:
    changed: dict[str, Any] = {
        **{
            "embedding_dim": 12,
            "fusion": "concat",
            "fusion_kwargs": {},
            "fusion_hidden_size": 24,
            "fusion_layers": 3,
            "fusion_heads": 3,
        },
        **{"fusion_latents": 5, "fusion_dropout": 0.25, "text_pooling": "cls", "image_pooling": "pooler"},
        **{"share_text_encoder": False, "role_embedding": True, "query_prompt": "q: ", "product_prompt": "p: "},
        **{"product_template": "{title} {brand}", "freeze_batch_norm": False, "logit_scale_init": 5.0},
        **{"matryoshka_dims": [4, 8], "query_router": True, "query_only": True, "query_tower_of": "abc"},
        **{"untrained_projection": "0f"},
        **{"initializer_range": 0.01, "vision_feature_layers": [1, 0], "neck_hidden_size": 16, "neck_heads": 3},
        **{
            "matryoshka_dims": [4, 8],
            "query_router": True,
            "projection_hidden_size": 7,
            "projection_dropout": 0.3,
            "fusion_text_weight": 0.2,
        },
        **{"fusion_learned_weights": True, "fusion_experts": 3, "fusion_balance_weight": 0.5},
        "text_head": [{"kind": "dense", "size": 9, "bias": True, "activation": "tanh"}],
    }
    assert {*changed, "text_config", "vision_config", "schema_version"} == set(own_fields())
    config = MMFusionConfig(**TINY_CONFIG, **changed)
    config.save_pretrained(tmp_path)
    for again in (
        MMFusionConfig.from_dict(config.to_dict()),
        MMFusionConfig.from_pretrained(tmp_path),
        AutoConfig.from_pretrained(tmp_path),
        MMFusionConfig(**config.to_dict()),
    ):
        assert type(again) is MMFusionConfig
        assert {name: getattr(again, name) for name in changed} == changed
        assert again.text_config.to_dict() == config.text_config.to_dict()
        assert again.vision_config.model_type == "vit"
        assert again.vision_config.hidden_size == 8
    assert config.get_text_config() is config.text_config


def test_nested_config_without_a_type_is_an_error() -> None:
    with pytest.raises(ValueError, match="model_type"):
        MMFusionConfig(text_config={"hidden_size": 8})


def test_default_config_can_be_built_and_printed() -> None:
    assert isinstance(MMFusionConfig().text_config, BertConfig)
    assert "gated" in repr(MMFusionConfig())


def test_config_on_disk_names_no_local_path(tmp_path: Path) -> None:
    bert().save_pretrained(tmp_path / "text")
    clip().save_pretrained(tmp_path / "vision")
    model = MMFusionModel.from_backbones(str(tmp_path / "text"), str(tmp_path / "vision"))
    model.save_pretrained(tmp_path / "out")
    MMFusionModel.from_pretrained(tmp_path / "out").save_pretrained(tmp_path / "again")
    for folder in ("out", "again"):
        written = (tmp_path / folder / "config.json").read_text()
        assert str(tmp_path) not in written
        assert not any(nested["_name_or_path"] for nested in _nested_configs(written) if "_name_or_path" in nested)


def _nested_configs(written: str) -> list[dict[str, Any]]:
    config = json.loads(written)
    return [config, config["text_config"], config["vision_config"]]


# --- Saving and loading --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "vision"),
    [*((name, "vit") for name in TEXT_ENCODERS), *(("bert", name) for name in VISION_ENCODERS), ("clip", "clip")],
)
def test_loaded_model_gives_the_same_embeddings(text: str, vision: str, tmp_path: Path) -> None:
    model = tiny_model(text, vision)
    model.save_pretrained(tmp_path)
    expected = _embed(model)
    for loaded in (MMFusionModel.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert type(loaded) is MMFusionModel
        assert not loaded.training
        assert loaded.state_dict().keys() == model.state_dict().keys()
        for name, value in model.state_dict().items():
            assert torch.equal(value, loaded.state_dict()[name]), name
        actual = _embed(loaded)
        for name in ("query_embeds", "product_embeds", "modality_weights"):
            assert torch.equal(actual[name], expected[name]), name


PROCESS = """
import sys, torch
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(1)
import mmfusion
from transformers import AutoConfig, AutoModel
from safetensors.torch import load_file, save_file
for folder in sys.argv[2:]:
    assert type(AutoConfig.from_pretrained(folder)) is mmfusion.MMFusionConfig
    model = AutoModel.from_pretrained(folder)
    assert type(model) is mmfusion.MMFusionModel
    with torch.no_grad():
        output = model(**load_file(folder + "/batch.safetensors"))
    embeds = {name: output[name].contiguous() for name in ("query_embeds", "product_embeds")}
    save_file(embeds, folder + "/out.safetensors")
"""


def test_a_new_process_gives_the_same_embeddings_bit_for_bit(tmp_path: Path) -> None:
    models = {pair: tiny_model(*pair) for pair in (("bert", "mobilenet_v2"), ("siglip", "siglip2"))}
    for pair, model in models.items():
        model.save_pretrained(tmp_path / pair[0])
        save_file(_batch(), tmp_path / pair[0] / "batch.safetensors")
    folders = [str(tmp_path / text) for text, _ in models]
    command = [sys.executable, "-c", PROCESS, str(Path(__file__).parents[2]), *folders]
    done = run_to_end(command)
    assert done.returncode == 0, done.stderr
    for (text, _), model in models.items():
        actual, expected = load_file(tmp_path / text / "out.safetensors"), _embed(model)
        for name in ("query_embeds", "product_embeds"):
            assert torch.equal(actual[name], expected[name]), (text, name)


def test_separate_query_encoder_starts_equal_and_is_saved(tmp_path: Path) -> None:
    model = tiny_model(share_text_encoder=False)
    text = texts([4, 3])
    start = model.get_query_features(**text)
    assert torch.equal(start, tiny_model().get_query_features(**text))
    with torch.no_grad():
        for value in model.query_model.parameters():
            value.mul_(1.5)
    assert not torch.allclose(model.get_query_features(**text), start)
    model.save_pretrained(tmp_path)
    loaded = MMFusionModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.get_query_features(**text), model.get_query_features(**text))


def test_backbones_may_be_folders_and_keep_their_weights(tmp_path: Path) -> None:
    text, vision = bert(), clip()
    text.save_pretrained(tmp_path / "text")
    vision.save_pretrained(tmp_path / "vision")
    model = MMFusionModel.from_backbones(str(tmp_path / "text"), str(tmp_path / "vision"))
    for name, value in text.state_dict().items():
        assert torch.equal(model.text_model.state_dict()[name], value), name
    for name, value in vision.vision_model.state_dict().items():
        assert torch.equal(model.vision_model.state_dict()[name], value), name
    assert torch.equal(model.text_projection.weight, torch.eye(24))
    assert model.dtype == torch.float32


def test_backbones_in_memory_are_left_alone() -> None:
    text, vision = bert(), vit()
    before = {name: value.clone() for name, value in text.state_dict().items()}
    model = MMFusionModel.from_backbones(text, vision)
    with torch.no_grad():
        for value in model.parameters():
            value.zero_()
    assert all(torch.equal(value, before[name]) for name, value in text.state_dict().items())
    assert all(value.requires_grad for value in text.parameters())


# --- Checkpoints of another architecture ---------------------------------------------------------------------------


def _assert_sane(model: MMFusionModel) -> None:
    for name, value in model.state_dict().items():
        assert value.float().isfinite().all(), name
    for name, value in [*model.fusion.named_parameters(), *model.named_parameters(recurse=False)]:
        assert value.abs().max() < 10, name
    for name, module in model.fusion.named_modules():
        if isinstance(module, nn.LayerNorm):
            assert torch.equal(module.weight, torch.ones_like(module.weight)), name
            assert torch.equal(module.bias, torch.zeros_like(module.bias)), name


@pytest.mark.parametrize(
    ("saved", "wanted"),
    [
        *((kind, kind) for kind in FUSIONS),
        *(("text_only", kind) for kind in [*FUSIONS][1:]),
        *(("cross_attention", "concat"), ("concat", "cross_attention"), ("moe", "gated")),
    ],
)
def test_new_fusion_network_is_initialised(saved: str, wanted: str, tmp_path: Path) -> None:
    model = tiny_model(fusion=saved)
    model.save_pretrained(tmp_path)
    for _ in range(2):
        # Memory that was just freed is what an uninitialised parameter would show.
        garbage = [torch.full((size,), float("nan")) for size in (16, 24, 32, 48, 256, 384, 512, 768, 1024)]
        del garbage
        loaded = MMFusionModel.from_pretrained(tmp_path, fusion=wanted)
        assert loaded.config.fusion == wanted
        _assert_sane(loaded)
        if saved != wanted:
            for name, value in loaded.fusion.named_parameters():
                if name.rpartition(".")[0] in FUSIONS[wanted].zero_start or ".output." in name:
                    assert not value.any(), name
                elif value.ndim == 2:
                    assert 0.005 < value.std() < 0.08, name
        # What the checkpoint holds is loaded, not initialised anew.
        for part in ("text_model", "vision_model", "query_projection", "text_projection", "image_projection"):
            for name, value in getattr(model, part).state_dict().items():
                assert torch.equal(getattr(loaded, part).state_dict()[name], value), (part, name)
        assert torch.equal(loaded.logit_scale, model.logit_scale)


def test_learned_scale_and_projections_survive_a_change_of_fusion(tmp_path: Path) -> None:
    model = tiny_model(fusion="concat", role_embedding=True)
    with torch.no_grad():
        model.logit_scale.fill_(1.25)
        model.roles.weight.normal_()
        model.image_projection.weight.mul_(3)
    model.save_pretrained(tmp_path)
    loaded = MMFusionModel.from_pretrained(tmp_path, fusion="cross_attention")
    assert loaded.logit_scale.item() == 1.25
    assert torch.equal(loaded.roles.weight, model.roles.weight)
    assert torch.equal(loaded.image_projection.weight, model.image_projection.weight)


def test_role_embedding_added_to_a_checkpoint_starts_at_zero(tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path)
    for _ in range(2):
        loaded = MMFusionModel.from_pretrained(tmp_path, role_embedding=True)
        assert not loaded.roles.weight.any()
        assert torch.allclose(_embed(loaded).product_embeds, _embed(model).product_embeds, atol=1e-6)


def test_new_embedding_width_is_initialised(tmp_path: Path) -> None:
    tiny_model(fusion="concat").save_pretrained(tmp_path)
    loaded = MMFusionModel.from_pretrained(tmp_path, embedding_dim=10, ignore_mismatched_sizes=True)
    _assert_sane(loaded)
    assert loaded.image_projection.weight.shape == (10, 24)
    assert torch.allclose(loaded.image_projection.weight @ loaded.image_projection.weight.T, torch.eye(10), atol=1e-5)


def test_zero_start_of_cross_attention_survives_a_new_embedding_width(tmp_path: Path) -> None:
    model = tiny_model(fusion="cross_attention")
    with torch.no_grad():
        model.fusion.gate.weight.normal_()
    model.save_pretrained(tmp_path)
    loaded = MMFusionModel.from_pretrained(tmp_path, embedding_dim=10, ignore_mismatched_sizes=True)
    assert not loaded.fusion.correction.weight.any()
    assert torch.equal(loaded.fusion.gate.weight, model.fusion.gate.weight)
    assert torch.equal(loaded.fusion.latents, model.fusion.latents)


# --- Roles and prompts ---------------------------------------------------------------------------------------------


def test_role_embedding_tells_queries_from_products() -> None:
    model = tiny_model(role_embedding=True)
    text = texts([4, 3])
    with torch.no_grad():
        plain = model.get_query_features(**text)
        assert torch.allclose(plain, model.forward_products(**text).text_embeds, atol=1e-6)
        model.roles.weight[0].normal_()
        query, product = model.get_query_features(**text), model.forward_products(**text).text_embeds
        assert torch.allclose(product, plain, atol=1e-6)
        assert not torch.allclose(query, plain, atol=1e-3)


@pytest.mark.parametrize("name", ["bert", "xlm_roberta", "modernbert"])
def test_role_embedding_does_not_depend_on_padding(name: str) -> None:
    model = tiny_model(text=name, role_embedding=True)
    with torch.no_grad():
        model.roles.weight.normal_()
        short = model.get_query_features(**texts([4, 6]))
        padded = model.get_query_features(**texts([4, 6], padded=12))
    assert torch.allclose(short, padded, atol=1e-5)


def test_role_embedding_equals_plain_token_embeddings_while_zero() -> None:
    with_roles, without = tiny_model("xlm_roberta", role_embedding=True), tiny_model("xlm_roberta")
    assert torch.allclose(_embed(with_roles).query_embeds, _embed(without).query_embeds, atol=1e-5)


@pytest.mark.parametrize("name", ["clip", "siglip", "siglip2"])
def test_role_embedding_for_an_encoder_that_takes_none_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match=r"inputs_embeds.*query_prompt and product_prompt"):
        tiny_model(text=name, role_embedding=True)


# --- Training mode -------------------------------------------------------------------------------------------------


def _statistics(model: MMFusionModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.named_buffers() if "running" in name or "tracked" in name}


@pytest.mark.parametrize("vision", ["mobilenet_v2", "resnet"])
def test_batch_norm_statistics_stay_frozen_in_training(vision: str) -> None:
    model = tiny_model(vision=vision)
    model.freeze_vision(1)
    inputs = {**texts([4, 3, 5]), "pixel_values": photos(3)}
    expected = model.forward_products(**inputs).image_embeds
    before = _statistics(model)
    assert before
    model.train()
    assert model.training and model.text_model.training
    model.get_vision_activations(photos(3)[:, 0])
    trained = model.forward_products(**inputs).image_embeds
    assert all(torch.equal(value, before[name]) for name, value in _statistics(model).items())
    if vision == "resnet":  # which has no dropout
        assert torch.allclose(trained, expected, atol=1e-6)


def test_batch_norm_may_be_unfrozen() -> None:
    model = tiny_model(vision="resnet", freeze_batch_norm=False)
    before = _statistics(model)
    model.train()
    model.forward_products(**texts([4, 3, 5]), pixel_values=photos(3))
    after = _statistics(model)
    assert any(not torch.equal(value, before[name]) for name, value in after.items())


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    results = []
    for switch in (False, True):
        model = tiny_model(fusion_dropout=0.0)
        for encoder in (model.text_model, model.vision_model):
            for module in encoder.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
        model.text_model.config.attention_probs_dropout_prob = 0.0
        if switch:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable()
        model.train()
        torch.manual_seed(0)
        model(**_batch()).product_embeds[:, 0].sum().backward()
        results.append({name: value.grad for name, value in model.named_parameters() if value.grad is not None})
    assert results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        assert torch.allclose(value, results[1][name], atol=1e-5), name


# --- Calls ---------------------------------------------------------------------------------------------------------


def test_forward_gives_both_sides_or_one() -> None:
    model, batch = tiny_model(embedding_dim=10), _batch()
    both = _embed(model)
    assert both.query_embeds.shape == (2, 10) and both.product_embeds.shape == (3, 10)
    assert both.modality_weights.shape == (3, 2) and both.text_embeds.shape == both.image_embeds.shape == (3, 10)
    queries = model(**{name: value for name, value in batch.items() if name.startswith("query")})
    assert queries.product_embeds is None and torch.equal(queries.query_embeds, both.query_embeds)
    products = model(**{name: value for name, value in batch.items() if not name.startswith("query")})
    assert products.query_embeds is None and torch.equal(products.product_embeds, both.product_embeds)
    values = model(**batch, return_dict=False)
    assert isinstance(values, tuple) and len(values) == 7
    of_mixtures = {"fusion_penalty", "expert_load", "query_weights"}
    fields = [field.name for field in dataclasses.fields(MMFusionOutput)]
    assert list(both) == [name for name in fields if name not in of_mixtures]
    assert all(torch.equal(value, both[name]) for value, name in zip(values, both, strict=True))


def test_logit_scale_starts_where_the_config_says() -> None:
    assert math.isclose(tiny_model(logit_scale_init=7.0).logit_scale.exp().item(), 7.0, rel_tol=1e-5)


def test_product_features_are_the_product_embeds_of_forward() -> None:
    model, batch = tiny_model(), _batch()
    features = model.get_product_features(
        batch["product_input_ids"], batch["product_attention_mask"],
        pixel_values=batch["pixel_values"], photo_mask=batch["photo_mask"],
    )  # fmt: skip
    assert torch.equal(features, _embed(model).product_embeds)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixel_values": photos(2, 2)}, "photos of 2 products"),
        ({"photo_mask": torch.ones(3, 1, dtype=torch.bool)}, "photo_mask has shape"),
        ({"pixel_values": photos(3)[:, 0]}, "pixel_values has shape"),
        ({"pixel_values": None}, "photo_mask"),
        ({"product_attention_mask": None}, "product_attention_mask"),
        ({"query_attention_mask": None}, "query_attention_mask"),
        ({"product_attention_mask": torch.ones(3, 2)}, "attention_mask has shape"),
        ({"vision_activations": torch.zeros(3, 2, 17, 24)}, "freeze_vision"),
    ],
)
def test_inputs_that_do_not_fit_are_errors(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_model()(**{**_batch(), **change})


def test_one_product_and_one_query_make_a_batch() -> None:
    model = tiny_model()
    assert model.get_query_features(**texts([1])).isfinite().all()
    assert model.get_product_features(**texts([1]), pixel_values=photos(1)).isfinite().all()
