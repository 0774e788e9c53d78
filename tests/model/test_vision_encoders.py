"""Vision encoders of every family: what they were trained to make of a photo is what a new model makes of it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from tiny_encoders import bert, texts
from tiny_vision_encoders import ENCODERS, photo_size, vision_encoder
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from mmfusion import MMFusionModel
from mmfusion.model import vision_encoders as backbones
from mmfusion.model.families import VISION_FAMILIES
from mmfusion.model.heads import Encoded, VisionNeck

_SMALL: dict[str, Any] = {
    "text_pooling": "mean",
    "fusion_hidden_size": 16,
    "fusion_heads": 2,
    "fusion_layers": 1,
    "fusion_latents": 2,
}


def assemble(vision: PreTrainedModel | str, **fields: object) -> MMFusionModel:
    torch.manual_seed(0)
    return MMFusionModel.from_backbones(bert(), vision, **{**_SMALL, **fields}).eval()  # type: ignore[arg-type]


def pixels_for(model: PreTrainedModel, count: int = 5) -> Tensor:
    return torch.randn(count, 3, *photo_size(model), generator=torch.Generator().manual_seed(3))


def projected(model: MMFusionModel, pixels: Tensor, width: int) -> Tensor:
    """Vectors of photos in the model; through its projection where the encoder brought one."""
    pooled = model._encode_vision(pixels).pooled
    return model.image_projection(pooled) if pooled.shape[1] != width else pooled


@pytest.mark.parametrize("name", ENCODERS)
def test_photos_are_pooled_as_their_encoder_was_trained(name: str, caplog: pytest.LogCaptureFixture) -> None:
    source = vision_encoder(name)
    _, own_vectors, pooling = ENCODERS[name]
    pixels = pixels_for(source)
    with torch.no_grad(), caplog.at_level(logging.WARNING, "mmfusion"):
        own = own_vectors(source, pixels)
        model = assemble(source, embedding_dim=20)
        encoded, ours = model._encode_vision(pixels), projected(model, pixels, own.shape[1])
        alone = torch.cat([projected(model, one, own.shape[1]) for one in pixels.split(1)])
    assert model.config.image_pooling == pooling
    assert not [record for record in caplog.records if record.name.startswith("mmfusion")]
    assert ours.std(0).max() > 1e-3

    random_state = torch.get_rng_state()
    sizes = backbones.photo_sizes(model.config.vision_config, pooling)
    assert sizes == (encoded.pooled.shape[-1], encoded.tokens.shape[-1])
    assert torch.equal(random_state, torch.get_rng_state())
    assert F.cosine_similarity(ours, own).min() >= 0.9999
    assert (1 - F.cosine_similarity(ours.double(), alone.double())).max() <= 1e-6


@pytest.mark.parametrize("name", ENCODERS)
def test_a_saved_model_gives_the_same_bits_and_trains(name: str, tmp_path: Path) -> None:
    source = vision_encoder(name)
    pixels, model = pixels_for(source, 2), assemble(source)
    model.save_pretrained(tmp_path)
    loaded = MMFusionModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        before, after = model._encode_vision(pixels), loaded._encode_vision(pixels)
    assert torch.equal(before.pooled, after.pooled) and torch.equal(before.tokens, after.tokens)
    loaded.config.save_pretrained(tmp_path / "again")
    first, again = (json.loads((path / "config.json").read_text()) for path in (tmp_path, tmp_path / "again"))
    assert {**first["vision_config"], "dtype": None} == {**again["vision_config"], "dtype": None}

    model.train()
    output = model.forward_products(**texts([4, 5]), pixel_values=pixels.unsqueeze(1))
    (output.product_embeds[:, 0].sum() + output.image_embeds[:, 1].sum()).backward()
    read = {key: value.grad for key, value in model.vision_model.named_parameters() if value.requires_grad}
    assert read and not [key for key, gradient in read.items() if gradient is None]
    assert any(gradient.abs().sum() > 0 for gradient in read.values())


@pytest.mark.parametrize(
    "name",
    ["clip with projection", "siglip classifier", "clip classifier", "data2vec classifier", "blip for retrieval"],
)
def test_a_folder_of_a_class_that_automodel_would_not_choose_is_read_whole(name: str, tmp_path: Path) -> None:
    source = vision_encoder(name)
    source.save_pretrained(tmp_path)
    pixels = pixels_for(source)
    with torch.no_grad():
        own = ENCODERS[name][1](source, pixels)
        model = assemble(str(tmp_path), embedding_dim=20)
        ours = projected(model, pixels, own.shape[1])
    assert model.config.image_pooling == ENCODERS[name][2]
    assert F.cosine_similarity(ours, own).min() >= 0.9999


def test_a_checkpoint_without_the_weights_of_a_pooler_is_pooled_without_it(tmp_path: Path) -> None:
    encoder = tf.HieraModel(vision_encoder("hiera").config, add_pooling_layer=False).eval()
    encoder.save_pretrained(tmp_path)
    pixels = pixels_for(encoder)
    model = assemble(str(tmp_path))
    with torch.no_grad():
        own = encoder(pixels).last_hidden_state.mean(1)
        assert F.cosine_similarity(model._encode_vision(pixels).pooled, own).min() >= 0.9999
    with pytest.raises(ValueError, match=r"lacks 2 weights.*pooler\.layernorm"):
        assemble(str(tmp_path), image_pooling="pooler")


def test_a_pooling_that_cannot_be_known_is_a_warning_with_the_choices(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    headless = tf.SiglipVisionModel(tf.SiglipVisionConfig(**_headless(), image_size=32, vision_use_head=False))
    unknown = tf.YolosModel(tf.YolosConfig(**_headless(), image_size=[32, 32], num_detection_tokens=3))
    for encoder, why in ((headless, "lacks its attention pooling head"), (unknown, "does not know its family")):
        caplog.clear()
        assert assemble(encoder).config.image_pooling == "mean"
        (record,) = caplog.records
        assert why in record.getMessage() and "'patches'" in record.getMessage()
    caplog.clear()
    assert assemble(unknown, image_pooling="cls").config.image_pooling == "cls"


def _headless() -> dict[str, Any]:
    return {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "patch_size": 8,
    }


def test_the_mean_over_patches_leaves_out_class_tokens_and_registers() -> None:
    source = vision_encoder("dinov2 with registers")
    pixels = pixels_for(source)
    model = assemble(source, image_pooling="patches")
    with torch.no_grad():
        own = source(pixels).last_hidden_state[:, 5:].mean(1)
        assert torch.allclose(model._encode_vision(pixels).pooled, own, atol=1e-6)


# Those that end in another grid than they begin with, and others whose blocks are told more than their input.
_STAGED = (
    *("swin", "swinv2", "focalnet", "hiera", "levit", "pvt", "pvt_v2", "poolformer", "segformer", "swiftformer"),
    *("dinov3_convnext", "convnextv2", "regnet", "bit", "efficientnet", "mobilenet_v1", "mobilevit", "align"),
    *("mlcd", "beit", "data2vec", "aimv2", "pixio", "dinov3_vit", "blip for retrieval"),
)


@pytest.mark.parametrize("name", _STAGED)
def test_frozen_blocks_and_their_cached_output_give_the_same_vectors_and_gradients(name: str) -> None:
    source = vision_encoder(name)
    model, pixels = assemble(source).train(), pixels_for(source, 3)
    for blocks in {1, model.num_vision_blocks - 1}:
        for value in model.vision_model.parameters():
            value.requires_grad_(True)
        model.freeze_vision(blocks)
        frozen = {key for key, value in model.vision_model.named_parameters() if not value.requires_grad}
        activations = model.get_vision_activations(pixels).unsqueeze(1)
        (full, gradients), (again, resumed) = (
            _trained(model, **inputs)
            for inputs in ({"pixel_values": pixels.unsqueeze(1)}, {"vision_activations": activations})
        )
        assert torch.allclose(full, again, atol=1e-6)
        assert gradients.keys() == resumed.keys() and not gradients.keys() & {f"vision_model.{key}" for key in frozen}
        assert any(key.startswith("vision_model") for key in gradients)
        for key, value in gradients.items():
            assert torch.allclose(value, resumed[key], atol=1e-5), key


def _trained(model: MMFusionModel, **photos: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    torch.manual_seed(7)
    output = model.forward_products(**texts([5, 3, 4]), **photos)
    (output.product_embeds[:, 0].sum() + output.image_embeds[:, 1].sum()).backward()
    gradients = {key: value.grad.clone() for key, value in model.named_parameters() if value.grad is not None}
    return output.product_embeds.detach(), gradients


@pytest.mark.parametrize("name", _STAGED)
def test_states_of_stages_reach_the_product_from_photos_and_from_cached_output_alike(name: str) -> None:
    source = vision_encoder(name)
    pixels, fields = pixels_for(source, 3), {"neck_hidden_size": 12, "neck_heads": 2}
    last = assemble(source).num_vision_blocks - 1
    model = assemble(source, vision_feature_layers=[0, last], **fields)
    with torch.no_grad():
        full = model.forward_products(**texts([5, 3, 4]), pixel_values=pixels.unsqueeze(1)).image_embeds
        for blocks in (1, last + 1):
            model.freeze_vision(blocks)
            activations = model.get_vision_activations(pixels).unsqueeze(1)
            again = model.forward_products(**texts([5, 3, 4]), vision_activations=activations).image_embeds
            assert torch.allclose(again, full, atol=1e-5)


@pytest.mark.parametrize("name", ["swin", "focalnet", "pvt_v2", "levit", "hiera", "swinv2"])
def test_states_of_a_finer_stage_are_averaged_over_the_same_places_of_the_photo(name: str) -> None:
    # A photo that is bright in one quarter alone tells whether rows and columns stay where they are.
    source = vision_encoder(name)
    encoder = assemble(source).vision_model
    layers, size = [0, len(backbones.vision_blocks(encoder)) - 1], photo_size(source)
    photo = torch.zeros(1, 3, *size)
    photo[..., size[0] // 2 :, : size[1] // 2] = 5.0
    with torch.no_grad():
        output = encoder(photo, output_hidden_states=True)
        tokens = backbones.encode_photos(encoder, photo, "mean", layers).tokens
    maps = getattr(output, "reshaped_hidden_states", None) or output.hidden_states
    first, last = maps[-len(backbones.vision_blocks(encoder))], maps[-1]
    if name == "hiera":
        first, last = (one.permute(0, 3, 1, 2) for one in (first, last))
    if name == "levit":
        side = [int(one.shape[1] ** 0.5) for one in (first, last)]
        first, last = (one.transpose(1, 2).unflatten(2, (n, n)) for one, n in zip((first, last), side, strict=True))
    expected = torch.cat([F.adaptive_avg_pool2d(first, last.shape[-2:]), last], dim=1).flatten(2).transpose(1, 2)
    order = (lambda states: states.sort(dim=1).values) if name == "hiera" else (lambda states: states)
    assert torch.allclose(order(tokens), order(expected), atol=1e-5)


def test_an_encoder_that_masks_at_random_is_an_error_before_anything_is_written() -> None:
    config = tf.ViTMAEConfig(**_headless(), image_size=32)
    with pytest.raises(ValueError, match=r"ViTMAEModel gives one photo two vectors.*0\.1%.*mask_ratio"):
        assemble(tf.ViTMAEModel(config))
    config.mask_ratio = 0.0
    assert assemble(tf.ViTMAEModel(config)).config.image_pooling == "cls"


def test_an_encoder_whose_vectors_depend_on_the_batch_is_an_error() -> None:
    class Whitened(tf.ViTModel):
        def forward(self, *args: object, **kwargs: object) -> object:
            output = super().forward(*args, **kwargs)
            output.last_hidden_state = output.last_hidden_state - output.last_hidden_state.mean(0, keepdim=True)
            return output

    config: Any = vision_encoder("vit").config
    encoder = Whitened(config).eval()
    with pytest.raises(ValueError, match="by itself and next to another"):
        backbones.check_repeats(encoder, "cls")


def test_what_takes_no_photo_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"does not pass through a 'bert' encoder") as caught:
        assemble(bert())
    assert "\n" not in str(caught.value)


def test_an_encoder_that_cannot_be_resumed_says_so_when_blocks_are_frozen() -> None:
    # Its groups of patches go from stage to stage next to the states.
    source = vision_encoder("groupvit")
    model = assemble(source)
    with pytest.raises(ValueError, match=r"cannot continue from the output of its 1 lowest blocks.*3 blocks"):
        model.freeze_vision(1)
    assert model.frozen_vision_blocks == 0
    assert all(value.requires_grad for value in backbones.vision_blocks(model.vision_model).parameters())
    model.freeze_vision(3)
    with pytest.raises(ValueError, match=r"different grids, and 2 states of a photo of \(32, 32\)") as caught:
        assemble(source, vision_feature_layers=[0, 1])
    assert "does not pass" not in str(caught.value)


def test_each_family_is_in_the_table_once_and_known_to_transformers() -> None:
    names = [name for family in VISION_FAMILIES for name in family.model_types]
    assert len(names) == len(set(names))
    assert not [name for name in names if name not in tf.CONFIG_MAPPING]


@pytest.mark.parametrize("trained", [False, True])
def test_the_neck_equals_a_linear_layer_after_its_norm_in_value_and_gradient(trained: bool) -> None:
    torch.manual_seed(0)
    neck = VisionNeck(state_size=6, pooled_size=5, hidden_size=4, heads=2).double()
    for parameter in neck.parameters():
        torch.nn.init.normal_(parameter)
    tokens, pooled = torch.randn(3, 7, 6, dtype=torch.double, requires_grad=trained), torch.randn(3, 5).double()
    states = F.gelu(neck.states_in(neck.norm(tokens)))
    slots = neck.attention(states).softmax(1).transpose(1, 2) @ states
    found = neck(Encoded(tokens, pooled))
    torch.testing.assert_close(found.tokens[:, :2], slots)
    torch.testing.assert_close(found.pooled, torch.cat([pooled, slots.flatten(1)], dim=1))
    of = [*neck.norm.parameters(), *neck.states_in.parameters(), *neck.attention.parameters(), *([tokens] * trained)]
    ours, twin = (torch.autograd.grad(value.square().sum(), of) for value in (found.tokens[:, :2], slots))
    torch.testing.assert_close(ours, twin)
