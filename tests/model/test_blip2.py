"""BLIP-2 and BLIP by halves: what their image-text contrastive losses compare, without a language model."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from tiny_encoders import bert, texts
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from mmfusion import MMFusionModel
from mmfusion.model import vision_encoders as backbones
from mmfusion.model.blip2 import Blip2Photos, Blip2Texts
from mmfusion.model.errors import HubError

_SMALL: dict[str, Any] = {"fusion_hidden_size": 16, "fusion_heads": 2, "fusion_layers": 1, "fusion_latents": 2}
_WIDTH = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
_VISION = {**_WIDTH, "image_size": 32, "patch_size": 8}
_TEXT = {**_WIDTH, "vocab_size": 60, "encoder_hidden_size": 32, "max_position_embeddings": 40}


def blip2(for_retrieval: bool) -> PreTrainedModel:
    torch.manual_seed(0)
    language = {"model_type": "opt", "hidden_size": 32, "num_hidden_layers": 1, "ffn_dim": 48, "vocab_size": 60}
    config = tf.Blip2Config(
        vision_config=_VISION,
        # In every other block, as in the published ones.
        qformer_config={**_TEXT, "cross_attention_frequency": 2, "use_qformer_text_input": for_retrieval},
        text_config={**language, "num_attention_heads": 4, "word_embed_proj_dim": 32, "max_position_embeddings": 40},
        num_query_tokens=4,
        image_text_hidden_size=20,
    )
    model: Any = (tf.Blip2ForImageTextRetrieval if for_retrieval else tf.Blip2ForConditionalGeneration)(config)
    with torch.no_grad():
        model.query_tokens.normal_()
        for value in model.parameters():
            value.add_(0.1 * torch.randn_like(value))
    return model.eval()


def pixels(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("from_folder", [True, False])
def test_halves_give_what_the_contrastive_loss_of_blip2_compares(from_folder: bool, tmp_path: Path) -> None:
    own: Any = blip2(for_retrieval=True)
    own.save_pretrained(tmp_path)
    source = str(tmp_path) if from_folder else own
    model = MMFusionModel.from_backbones(source, source, **_SMALL).eval()
    assert (model.config.image_pooling, model.config.text_pooling, model.config.embedding_dim) == ("mean", "cls", 20)
    text = texts([5, 3, 4])
    with torch.no_grad():
        expected = own(pixel_values=pixels(), **text)
        encoded = model._encode_vision(pixels())
        queries = F.normalize(model.image_projection(encoded.tokens), dim=-1)
        assert encoded.tokens.shape == (3, 4, 32)
        assert torch.allclose(queries, expected.image_embeds, atol=1e-5)
        assert torch.allclose(model.get_query_features(**text), expected.text_embeds, atol=1e-5)
        output = model.forward_products(**text, pixel_values=pixels().unsqueeze(1), views_only=True)
        mean = F.normalize(model.image_projection(encoded.tokens).mean(1), dim=-1)
        assert torch.allclose(output.image_embeds, mean, atol=1e-5)
    assert not [name for name, _ in model.named_parameters() if "itm_head" in name or "language" in name]


def test_a_saved_model_with_both_halves_gives_the_same_bits_and_trains(tmp_path: Path) -> None:
    own = blip2(for_retrieval=True)
    model = MMFusionModel.from_backbones(own, own, **_SMALL, share_text_encoder=False, role_embedding=True).eval()
    model.save_pretrained(tmp_path)
    loaded = MMFusionModel.from_pretrained(tmp_path).eval()
    assert isinstance(loaded.vision_model, Blip2Photos) and isinstance(loaded.query_model, Blip2Texts)
    batch = {f"{side}_{name}": value for side in ("query", "product") for name, value in texts([4, 6]).items()}
    batch["pixel_values"] = pixels(2).unsqueeze(1)
    with torch.no_grad():
        assert torch.equal(model(**batch).product_embeds, loaded(**batch).product_embeds)
        assert torch.equal(model(**batch).query_embeds, loaded(**batch).query_embeds)
    output = model.train()(**batch)
    (output.product_embeds[:, 0].sum() + output.query_embeds[:, 1].sum() + output.image_embeds[:, 2].sum()).backward()
    without = [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]
    assert without == ["logit_scale"]


def test_blocks_of_its_vision_transformer_freeze_and_its_states_reach_the_product() -> None:
    model = MMFusionModel.from_backbones(bert(), blip2(False), **_SMALL, vision_feature_layers=[0, 1]).eval()
    assert model.photo_sizes == (32, 64) and model.num_vision_blocks == 2
    text, photos = texts([5, 3, 4]), pixels().unsqueeze(1)
    with torch.no_grad():
        full = model.forward_products(**text, pixel_values=photos).product_embeds
        for blocks in (1, 2):
            model.freeze_vision(blocks)
            cached = model.get_vision_activations(pixels()).unsqueeze(1)
            again = model.forward_products(**text, vision_activations=cached).product_embeds
            assert torch.allclose(full, again, atol=1e-6)
    model = MMFusionModel.from_backbones(bert(), blip2(False), **_SMALL).train()
    model.freeze_vision(1)
    model.forward_products(**text, pixel_values=photos).image_embeds[:, 0].sum().backward()
    vision = model.vision_model
    assert vision.query_tokens.weight.grad is not None
    assert all(value.grad is None for value in backbones.vision_blocks(vision)[0].parameters())


def test_shards_of_the_language_model_are_not_opened(tmp_path: Path) -> None:
    blip2(for_retrieval=False).save_pretrained(tmp_path, max_shard_size="30KB")
    places = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    read = {file for name, file in places.items() if not name.startswith("language_")}
    others = set(places.values()) - read
    assert others
    for file in others:
        (tmp_path / file).unlink()
    assert isinstance(MMFusionModel.from_backbones(bert(), str(tmp_path), **_SMALL).vision_model, Blip2Photos)
    (tmp_path / min(read)).unlink()
    with pytest.raises(HubError, match=f"lacks {min(read)}"):
        MMFusionModel.from_backbones(bert(), str(tmp_path), **_SMALL)


def test_what_a_blip2_lacks_or_leaves_open_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    generating = blip2(for_retrieval=False)
    generating.save_pretrained(tmp_path)
    for source in (generating, str(tmp_path)):
        with pytest.raises(HubError, match=r"texts go to its language model.*Blip2ForImageTextRetrieval") as caught:
            MMFusionModel.from_backbones(source, source, **_SMALL)
        assert "\n" not in str(caught.value)
    for model, reason in ((generating, "to generate texts"), (blip2(for_retrieval=True), "the one nearest to a text")):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "mmfusion"):
            MMFusionModel.from_backbones(bert(), model, **_SMALL, text_pooling="mean")
        assert reason in caplog.text and "'mean' or 'cls'" in caplog.text


@pytest.mark.parametrize("from_folder", [True, False])
def test_blip_for_retrieval_scores_as_its_contrastive_loss_does(from_folder: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    special = {"bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 2, "pad_token_id": 0}
    config = tf.BlipConfig(text_config={**_TEXT, **special}, vision_config=_VISION, image_text_hidden_size=20)
    own: Any = tf.BlipForImageTextRetrieval(config).eval()
    own.save_pretrained(tmp_path)
    source = str(tmp_path) if from_folder else own
    model = MMFusionModel.from_backbones(source, source, **_SMALL).eval()
    text, photos = texts([5, 5, 5]), pixels()
    with torch.no_grad():
        expected = own(pixel_values=photos, **text, use_itm_head=False).itm_score
        output = model.forward_products(**text, pixel_values=photos.unsqueeze(1), views_only=True)
        scores = output.image_embeds @ model.get_query_features(**text).T
    assert torch.allclose(scores, expected, atol=1e-5) and scores.std() > 1e-4
    model.forward_queries(**text).query_embeds[:, 0].sum().backward()
    assert not [
        name for name, value in model.text_model.named_parameters() if value.requires_grad and value.grad is None
    ]
