"""Vision encoders of every family: what they were trained to make of a photo is what a new model makes of it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
import transformers as tf
from tiny_encoders import bert, texts
from tiny_vision_encoders import ENCODERS, photo_size, vision_encoder
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from mmfusion import MMFusionModel
from mmfusion.model.vision_families_mmfusion import VISION_FAMILIES

_SMALL = {"fusion_hidden_size": 16, "fusion_heads": 2, "fusion_layers": 1, "fusion_latents": 2}


def assemble(vision: PreTrainedModel | str, **fields: object) -> MMFusionModel:
    torch.manual_seed(0)
    return MMFusionModel.from_backbones(bert(), vision, **{**_SMALL, **fields}).eval()  # type: ignore[arg-type]


def pixels_for(model: PreTrainedModel, count: int = 5) -> Tensor:
    return torch.randn(count, 3, *photo_size(model), generator=torch.Generator().manual_seed(3))


def projected(model: MMFusionModel, pixels: Tensor, width: int) -> Tensor:
    """Vectors of photos in the model; through its projection where the encoder brought one."""
    pooled = model._encode_pixels(pixels).pooled
    return model.image_projection(pooled) if pooled.shape[1] != width else pooled


@pytest.mark.parametrize("name", ENCODERS)
def test_photos_are_pooled_as_their_encoder_was_trained(name: str, caplog: pytest.LogCaptureFixture) -> None:
    source = vision_encoder(name)
    _, own_vectors, pooling = ENCODERS[name]
    pixels = pixels_for(source)
    with torch.no_grad(), caplog.at_level(logging.WARNING, "mmfusion"):
        own = own_vectors(source, pixels)
        model = assemble(source, embedding_dim=20)
        ours = projected(model, pixels, own.shape[1])
        alone = torch.cat([projected(model, one, own.shape[1]) for one in pixels.split(1)])
    assert model.config.image_pooling == pooling
    assert not [record for record in caplog.records if record.name == "mmfusion"]
    assert ours.std(0).max() > 1e-3
    assert F.cosine_similarity(ours, own).min() >= 0.9999
    assert (1 - F.cosine_similarity(ours.double(), alone.double())).max() <= 1e-6


@pytest.mark.parametrize("name", ENCODERS)
def test_a_saved_model_gives_the_same_bits_and_trains(name: str, tmp_path: Path) -> None:
    source = vision_encoder(name)
    pixels, model = pixels_for(source, 2), assemble(source)
    model.save_pretrained(tmp_path)
    loaded = MMFusionModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        before, after = model._encode_pixels(pixels), loaded._encode_pixels(pixels)
    assert torch.equal(before.pooled, after.pooled) and torch.equal(before.tokens, after.tokens)
    assert (
        loaded.config.to_dict()["vision_config"]
        == MMFusionModel.from_pretrained(tmp_path).config.to_dict()["vision_config"]
    )

    model.train()
    output = model.encode_products(**texts([4, 5]), pixel_values=pixels.unsqueeze(1))
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
        assert F.cosine_similarity(model._encode_pixels(pixels).pooled, own).min() >= 0.9999
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


def _headless() -> dict[str, object]:
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
        assert torch.allclose(model._encode_pixels(pixels).pooled, own, atol=1e-6)


def test_each_family_is_in_the_table_once_and_known_to_transformers() -> None:
    names = [name for family in VISION_FAMILIES for name in family.model_types]
    assert len(names) == len(set(names))
    assert not [name for name in names if name not in tf.CONFIG_MAPPING]
