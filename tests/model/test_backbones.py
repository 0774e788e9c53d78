"""Any transformers encoder as a tower half: pooling, widths, and forwards that resume above a frozen prefix."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from tiny_encoders import (
    IMAGE,
    TEXT_ENCODERS,
    VISION_ENCODERS,
    VOCABULARY,
    mobilenet_v2,
    photos,
    siglip2,
    texts,
    tiny_model,
    vit,
)
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import MobileNetV2Config, MobileNetV2Model, PreTrainedConfig, Siglip2ImageProcessor

from mmfusion.model import vision_encoders as backbones
from mmfusion.model.pretrained import hidden_size, load_half
from mmfusion.model.text_encoders import encode_text


@pytest.mark.parametrize("name", TEXT_ENCODERS)
def test_text_encoder_gives_unit_queries_and_products(name: str) -> None:
    model = tiny_model(text=name)
    with torch.no_grad():
        queries = model.get_query_features(**texts([4, 7]))
        output = model.forward_products(**texts([5, 3, 6]), pixel_values=photos(3))
    assert queries.shape == (2, model.config.embedding_dim)
    assert output.product_embeds is not None and output.product_embeds.shape == (3, model.config.embedding_dim)
    assert torch.allclose(queries.norm(dim=1), torch.ones(2), atol=1e-5)
    assert torch.allclose(output.product_embeds.norm(dim=1), torch.ones(3), atol=1e-5)
    assert not torch.allclose(queries[0], queries[1], atol=1e-3)


@pytest.mark.parametrize("name", VISION_ENCODERS)
def test_vision_encoder_gives_unit_products(name: str) -> None:
    model = tiny_model(vision=name)
    with torch.no_grad():
        output = model.forward_products(**texts([5, 3, 6]), pixel_values=photos(3))
        other = model.forward_products(**texts([5, 3, 6]), pixel_values=photos(3, seed=5))
    for embeds in (output.product_embeds, output.image_embeds):
        assert embeds is not None and embeds.shape == (3, model.config.embedding_dim)
        assert torch.allclose(embeds.norm(dim=1), torch.ones(3), atol=1e-5)
    assert not torch.equal(output.image_embeds, other.image_embeds)


@pytest.mark.parametrize("name", VISION_ENCODERS)
def test_declared_width_is_the_width_of_the_states(name: str) -> None:
    encoder = load_half(VISION_ENCODERS[name](), "vision", torch.float32).encoder.eval()
    with torch.no_grad():
        encoded = backbones.encode_photos(encoder, photos(2)[:, 0], "mean")
    assert encoded.tokens.ndim == 3
    sizes = backbones.photo_sizes(encoder.config, "mean")
    assert (encoded.pooled.shape[1], encoded.tokens.shape[2]) == sizes
    assert torch.allclose(encoded.tokens.mean(1), encoded.pooled)


@pytest.mark.parametrize("multiplier", [0.1, 0.35, 0.5, 1.0, 1.4])
@pytest.mark.parametrize("finegrained", [True, False])
def test_mobilenet_width_follows_its_config(multiplier: float, finegrained: bool) -> None:
    config = MobileNetV2Config(depth_multiplier=multiplier, finegrained_output=finegrained)
    with torch.device("meta"):
        model = MobileNetV2Model(config)
    width = model.conv_1x1.convolution.out_channels
    assert backbones.photo_sizes(config, "pooler") == (width, width)
    assert backbones.photo_sizes(config, "mean").states == width


def test_width_of_an_unknown_encoder_is_an_error() -> None:
    with pytest.raises(ValueError, match="hidden_size"):
        hidden_size(PreTrainedConfig())


@pytest.mark.parametrize("name", ["clip", "siglip", "siglip2"])
def test_dual_encoder_with_its_own_pooling_keeps_its_embeddings(name: str) -> None:
    torch.manual_seed(0)
    dual = TEXT_ENCODERS[name]().eval()
    model = type(tiny_model()).from_backbones(dual, dual, text_pooling="pooler", image_pooling="pooler").eval()
    text, pixels = texts([6, 6, 6]), photos(3)[:, 0]
    with torch.no_grad():
        ours = model.forward_products(**text, pixel_values=pixels.unsqueeze(1), views_only=True)
        queries = model.get_query_features(**text)
        own_text = _features(dual.get_text_features(**text))
        own_image = _features(dual.get_image_features(**backbones._vision_inputs(dual.vision_model, pixels)))
    assert model.config.embedding_dim == own_text.shape[1]
    assert torch.allclose(ours.text_embeds, F.normalize(own_text, dim=-1), atol=1e-6)
    assert torch.allclose(queries, F.normalize(own_text, dim=-1), atol=1e-6)
    assert torch.allclose(ours.image_embeds, F.normalize(own_image, dim=-1), atol=1e-6)
    if name == "clip":
        assert torch.equal(model.image_projection.weight, dual.visual_projection.weight)


def _features(output: object) -> Tensor:
    return output if isinstance(output, Tensor) else output.pooler_output  # type: ignore[attr-defined]


def test_siglip2_patches_equal_those_of_its_image_processor() -> None:
    encoder = siglip2().vision_model
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (IMAGE, IMAGE, 3), generator=generator, dtype=torch.uint8)
    theirs = Siglip2ImageProcessor(patch_size=8, max_num_patches=16)(
        images=Image.fromarray(pixels.numpy()), return_tensors="pt"
    )
    normalised = (pixels.permute(2, 0, 1).float() / 255 - 0.5) / 0.5
    ours = backbones._vision_inputs(encoder, normalised.unsqueeze(0))
    assert theirs["spatial_shapes"].tolist() == [[4, 4]]
    assert torch.allclose(ours["pixel_values"], theirs["pixel_values"], atol=1e-5)
    assert ours["spatial_shapes"].tolist() == theirs["spatial_shapes"].tolist()
    assert ours["pixel_attention_mask"].tolist() == theirs["pixel_attention_mask"].tolist()


@pytest.mark.parametrize("half", ["text", "vision"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "pooler"])
@pytest.mark.parametrize("family", ["bert", "clip", "siglip", "mobilenet_v2", "convnext", "dinov2", "xlm_roberta"])
def test_every_trainable_parameter_gets_a_gradient(family: str, pooling: str, half: str) -> None:
    # A parameter that nobody reads is an error under DDP.
    if family not in (TEXT_ENCODERS if half == "text" else VISION_ENCODERS):
        pytest.skip("the family has no such half")
    model = tiny_model(**{half: family}, **{f"{'text' if half == 'text' else 'image'}_pooling": pooling})
    output = model(**_both(texts([5, 6])), pixel_values=photos(2))
    (output.product_embeds[:, 0].sum() + output.query_embeds[:, 0].sum() + output.image_embeds[:, 1].sum()).backward()
    encoder = model.text_model if half == "text" else model.vision_model
    without = [name for name, value in encoder.named_parameters() if value.requires_grad and value.grad is None]
    assert not without


def _both(text: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{side}_{name}": value for side in ("query", "product") for name, value in text.items()}


def test_separate_query_encoder_freezes_its_unused_pooler_too() -> None:
    model = tiny_model(share_text_encoder=False)
    assert not any(value.requires_grad for value in model.query_model.pooler.parameters())


@pytest.mark.parametrize("text", ["modernbert"])
def test_pooler_of_an_encoder_without_one_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"pooler.*mean"):
        tiny_model(text=text, text_pooling="pooler")


PREFIXES = [
    (name, blocks)
    for name, counts in {
        "mobilenet_v2": (1, 9, 15),
        "vit": (1, 2),
        "resnet": (1, 2),
        "convnext": (1, 2),
        "siglip": (1, 2),
        "siglip2": (1, 2),
        "dinov2": (1, 2),
        "dinov3": (1, 2),
        "clip": (1, 2),
    }.items()
    for blocks in counts
]


@pytest.mark.parametrize(("name", "blocks"), PREFIXES)
def test_resumed_forward_equals_the_full_one_in_value_and_gradient(name: str, blocks: int) -> None:
    model = tiny_model(vision=name)
    model.freeze_vision(blocks)
    text, pixels = texts([5, 3, 4]), photos(3)
    order = list(backbones.vision_blocks(model.vision_model))
    activations = model.get_vision_activations(pixels[:, 0]).unsqueeze(1)
    assert not activations.requires_grad

    results = []
    for inputs in ({"pixel_values": pixels}, {"vision_activations": activations}):
        model.zero_grad()
        output = model.forward_products(**text, **inputs)
        (output.product_embeds[:, 0].sum() + output.image_embeds[:, 1].sum()).backward()
        gradients = {key: value.grad.clone() for key, value in model.named_parameters() if value.grad is not None}
        results.append((output.product_embeds.detach(), gradients))
    (full, full_gradients), (resumed, resumed_gradients) = results
    assert torch.allclose(full, resumed, atol=1e-6)
    assert full_gradients.keys() == resumed_gradients.keys()
    assert any(key.startswith("vision_model") for key in full_gradients)
    for key, value in full_gradients.items():
        assert torch.allclose(value, resumed_gradients[key], atol=1e-5), key
    assert list(backbones.vision_blocks(model.vision_model)) == order


@pytest.mark.parametrize("name", VISION_ENCODERS)
def test_states_below_the_top_reach_the_product_from_photos_and_from_features_alike(name: str) -> None:
    model = tiny_model(vision=name, vision_feature_layers=[0, 1], neck_hidden_size=12, neck_heads=2)
    text, pixels = texts([5, 3, 4]), photos(3)
    full = model.forward_products(**text, pixel_values=pixels)
    (full.image_embeds[:, 0].sum() + full.product_embeds[:, 1].sum()).backward()
    first = next(iter(backbones.vision_blocks(model.vision_model)[0].parameters()))
    assert model.vision_neck.states_in.weight.grad.abs().sum() > 0 and first.grad is not None
    for blocks in (1, model.num_vision_blocks):
        model.freeze_vision(blocks)
        activations = model.get_vision_activations(pixels[:, 0]).unsqueeze(1)
        again = model.forward_products(**text, vision_activations=activations)
        assert torch.allclose(again.product_embeds, full.product_embeds, atol=1e-5)
        assert torch.allclose(again.image_embeds, full.image_embeds, atol=1e-5)
    model.freeze_vision(2)
    with pytest.raises(ValueError, match=r"vision_feature_layers are \[0, 1\].*at most 1 blocks, or all"):
        model.forward_products(**text, vision_activations=model.get_vision_activations(pixels[:, 0]).unsqueeze(1))


def test_a_feature_layer_that_the_encoder_lacks_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"names block 7, and ViTModel has 3"):
        tiny_model(vision="vit", vision_feature_layers=[7])


@pytest.mark.parametrize("name", VISION_ENCODERS)
def test_prefix_holds_exactly_what_runs_before_the_block(name: str) -> None:
    model = tiny_model(vision=name)
    model.freeze_vision(2)
    frozen = {key for key, value in model.vision_model.named_parameters() if not value.requires_grad}
    model.forward_products(**texts([5, 3]), pixel_values=photos(2)).image_embeds[:, 0].sum().backward()
    trained = {key for key, value in model.vision_model.named_parameters() if value.grad is not None}
    assert frozen and trained and not frozen & trained
    in_prefix = {
        id(value) for module in backbones.vision_prefix(model.vision_model, 2) for value in module.parameters()
    }
    assert {key for key, value in model.vision_model.named_parameters() if id(value) in in_prefix} <= frozen
    state = dict(model.vision_prefix_state())
    assert len(state) == sum(len(module.state_dict()) for module in backbones.vision_prefix(model.vision_model, 2))


@pytest.mark.parametrize("name", ["siglip2", "dinov3", "dinov2", "convnext"])
def test_photos_of_another_size_resume_correctly_or_are_an_error(name: str) -> None:
    # What runs above the prefix may depend on the size of the photo, which the activations do not tell.
    model = tiny_model(vision=name)
    model.freeze_vision(1)
    pixels = torch.randn(2, 3, 48, 64, generator=torch.Generator().manual_seed(3))
    try:
        activations = model.get_vision_activations(pixels)
    except ValueError as error:
        assert "48" in str(error) and "64" in str(error)
        return
    with torch.no_grad():
        resumed = model.forward_products(**texts([4, 5]), vision_activations=activations.unsqueeze(1))
        full = model.forward_products(**texts([4, 5]), pixel_values=pixels.unsqueeze(1))
    assert torch.allclose(full.image_embeds, resumed.image_embeds, atol=1e-5)


@pytest.mark.parametrize("blocks", [-1, 4, 100])
def test_freezing_too_many_or_too_few_blocks_is_an_error(blocks: int) -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match=f"Cannot freeze {blocks} of 3 vision blocks"):
        model.freeze_vision(blocks)
    assert model.frozen_vision_blocks == 0
    assert all(value.requires_grad for value in backbones.vision_blocks(model.vision_model).parameters())


def test_an_encoder_without_blocks_is_an_error() -> None:
    with pytest.raises(ValueError, match="no list of blocks"):
        backbones.vision_blocks(nn.Sequential(nn.Linear(2, 2), nn.ModuleList([nn.Linear(2, 2)])))


@pytest.mark.parametrize("name", ["vit", "mobilenet_v2"])
def test_encoder_is_whole_after_a_forward_that_raises(name: str) -> None:
    encoder = (vit if name == "vit" else mobilenet_v2)().eval()
    blocks = list(backbones.vision_blocks(encoder))
    hooks = len(blocks[1]._forward_pre_hooks)
    with pytest.raises((RuntimeError, ValueError, IndexError)):
        backbones.encode_photos_from(encoder, torch.zeros(2, 3), 1, "mean")
    with pytest.raises((RuntimeError, ValueError, IndexError)):
        backbones.vision_activations(encoder, torch.zeros(2, 3, 5, 5, 5), 1, "mean")
    assert list(backbones.vision_blocks(encoder)) == blocks
    assert len(blocks[1]._forward_pre_hooks) == hooks == 0
    with torch.no_grad():
        assert backbones.encode_photos(encoder, photos(1)[:, 0], "mean").pooled.isfinite().all()


def test_activations_are_taken_in_evaluation_mode_and_leave_the_mode_as_it_was() -> None:
    model = tiny_model(vision="mobilenet_v2")
    model.freeze_vision(4)
    pixels = photos(3)[:, 0]
    expected = model.get_vision_activations(pixels)
    model.train()
    modes = [module.training for module in model.modules()]
    assert torch.equal(model.get_vision_activations(pixels), expected)
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("name", TEXT_ENCODERS)
@pytest.mark.parametrize("side", ["right", "left"])
def test_many_texts_are_encoded_by_length_as_they_are_one_by_one(name: str, side: str) -> None:
    torch.manual_seed(0)
    encoder = load_half(TEXT_ENCODERS[name](), "text", torch.float64).encoder.double().eval()
    lengths = torch.randint(1, 12, (70,))
    mask = (torch.arange(12) < lengths[:, None]).long()
    mask = mask.flip(1) if side == "left" else mask
    ids = torch.randint(5, VOCABULARY - 1, mask.shape) * mask
    many = encode_text(encoder, ids, mask, "mean", None)
    alone = [encode_text(encoder, *row, "mean", None) for row in zip(ids.split(1), mask.split(1), strict=True)]
    single = torch.cat([part.pooled for part in alone])
    torch.testing.assert_close(many.pooled, single)
    there = mask.bool()
    torch.testing.assert_close(many.tokens[there], torch.cat([part.tokens for part in alone])[there])
    for mine, other in zip(_gradients(encoder, many.pooled), _gradients(encoder, single), strict=True):
        torch.testing.assert_close(mine, other)


def _gradients(encoder: nn.Module, pooled: Tensor) -> list[Tensor]:
    weights = [value for value in encoder.parameters() if value.requires_grad]
    found = torch.autograd.grad(pooled.square().sum(), weights, allow_unused=True, materialize_grads=True)
    return list(found)
