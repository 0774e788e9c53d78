"""What every fusion network promises, whatever its kind: a new kind is tested here by being in `FUSIONS`."""

from __future__ import annotations

import pytest
import torch
from tiny_encoders import photos, texts, tiny_model
from torch import Tensor

from mmfusion import MMFusionModel, MMFusionOutput
from mmfusion.model import FUSION_KINDS, FUSIONS
from mmfusion.model.fusion_mmfusion import IMAGE, TEXT

KINDS = sorted(FUSIONS)
LENGTHS = [5, 3, 0, 0, 7]
PRESENT = torch.tensor([[True, True], [True, False], [False, True], [True, False], [True, True]])  # row 3 has neither
PHOTO_MASK = torch.tensor([[True, False], [False, False], [True, True], [False, False], [True, True]])


@pytest.fixture(scope="module")
def models() -> dict[str, MMFusionModel]:
    return {kind: _disturbed(tiny_model(fusion=kind, embedding_dim=12)) for kind in KINDS}


def _disturbed(model: MMFusionModel) -> MMFusionModel:
    """Moves every fusion parameter, so that nothing holds only because of where training starts."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for value in [*model.fusion.parameters(), model.image_projection.bias, model.text_projection.bias]:
            value.add_(0.2 * torch.randn(value.shape, generator=generator))
    return model


def _inputs(filler: float = 0.0) -> dict[str, Tensor]:
    pixels = photos(len(LENGTHS), 2)
    pixels[~PHOTO_MASK] = filler
    return {**texts(LENGTHS), "pixel_values": pixels, "photo_mask": PHOTO_MASK}


def _encode(model: MMFusionModel, inputs: dict[str, Tensor]) -> MMFusionOutput:
    with torch.no_grad():
        return model.encode_products(**inputs)


def _assert_sound(output: MMFusionOutput, present: Tensor) -> None:
    embeds, weights = output.product_embeds, output.modality_weights
    assert embeds is not None and weights is not None
    assert embeds.isfinite().all()
    assert torch.allclose(embeds.norm(dim=1), torch.ones(len(embeds)), atol=1e-5)
    assert weights.shape == (len(embeds), 2)
    assert (weights >= 0).all()
    assert torch.allclose(weights.sum(1), torch.ones(len(embeds)), atol=1e-6)
    assert (weights[~present] == 0).all()
    assert torch.equal(output.modality_present, present)


def test_config_and_registry_name_the_same_kinds() -> None:
    assert set(FUSIONS) == set(FUSION_KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_any_modality_may_be_missing(models: dict[str, MMFusionModel], kind: str) -> None:
    _assert_sound(_encode(models[kind], _inputs()), PRESENT)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("filler", [float("nan"), float("inf"), 1e4, -3.0])
def test_content_of_masked_photos_is_never_read(models: dict[str, MMFusionModel], kind: str, filler: float) -> None:
    clean, dirty = _encode(models[kind], _inputs()), _encode(models[kind], _inputs(filler))
    assert torch.equal(clean.product_embeds, dirty.product_embeds)
    assert torch.equal(clean.modality_weights, dirty.modality_weights)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(models: dict[str, MMFusionModel], kind: str) -> None:
    plain = _encode(models[kind], _inputs())
    wide = _inputs()
    longer = texts(LENGTHS, padded=20)
    longer["input_ids"][longer["attention_mask"] == 0] = 33
    wide.update(longer)
    wide["pixel_values"] = torch.cat([wide["pixel_values"], photos(len(LENGTHS), 2, seed=9)], dim=1)
    wide["photo_mask"] = torch.cat([PHOTO_MASK, torch.zeros_like(PHOTO_MASK)], dim=1)
    padded = _encode(models[kind], wide)
    has_any = [0, 1, 2, 4]  # a product with neither is embedded as whatever its first token is
    assert torch.allclose(plain.product_embeds[has_any], padded.product_embeds[has_any], atol=1e-5)
    assert torch.allclose(plain.modality_weights, padded.modality_weights, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_product_alone_is_embedded_as_in_a_batch(models: dict[str, MMFusionModel], kind: str) -> None:
    together = _encode(models[kind], _inputs())
    for row in range(len(LENGTHS)):
        alone = _encode(models[kind], {name: value[row : row + 1] for name, value in _inputs().items()})
        assert torch.allclose(alone.product_embeds[0], together.product_embeds[row], atol=1e-5), row
        assert torch.allclose(alone.modality_weights[0], together.modality_weights[row], atol=1e-5), row


@pytest.mark.parametrize("kind", KINDS)
def test_no_photo_in_the_batch_equals_all_photos_masked(models: dict[str, MMFusionModel], kind: str) -> None:
    text = texts([4, 2, 6])
    none = _encode(models[kind], text)
    masked = _encode(
        models[kind], {**text, "pixel_values": photos(3, 2), "photo_mask": torch.zeros(3, 2, dtype=torch.bool)}
    )
    _assert_sound(none, torch.tensor([[True, False]] * 3))
    assert torch.equal(none.product_embeds, masked.product_embeds)
    mixed = _encode(
        models[kind],
        {**text, "pixel_values": photos(3, 2), "photo_mask": torch.tensor([[False] * 2, [False] * 2, [True] * 2])},
    )
    assert torch.allclose(none.product_embeds[:2], mixed.product_embeds[:2], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_missing_mask_means_that_all_photos_are_there(models: dict[str, MMFusionModel], kind: str) -> None:
    inputs = {**texts([4, 2]), "pixel_values": photos(2, 2)}
    implied = _encode(models[kind], inputs)
    given = _encode(models[kind], {**inputs, "photo_mask": torch.ones(2, 2, dtype=torch.bool)})
    assert torch.equal(implied.product_embeds, given.product_embeds)


@pytest.mark.parametrize("kind", KINDS)
def test_order_of_photos_does_not_matter(models: dict[str, MMFusionModel], kind: str) -> None:
    inputs = {**texts([4, 2]), "pixel_values": photos(2, 3)}
    turned = {**inputs, "pixel_values": inputs["pixel_values"].flip(1)}
    first, second = _encode(models[kind], inputs), _encode(models[kind], turned)
    assert torch.allclose(first.product_embeds, second.product_embeds, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_present_modality_that_is_read_changes_the_embedding(models: dict[str, MMFusionModel], kind: str) -> None:
    reads = FUSIONS[kind].reads
    inputs = {**texts([4, 2]), "pixel_values": photos(2)}
    plain = _encode(models[kind], inputs).product_embeds
    other_photo = _encode(models[kind], {**inputs, "pixel_values": photos(2, seed=8)}).product_embeds
    other_text = _encode(models[kind], {**inputs, **texts([4, 2], seed=8)}).product_embeds
    assert torch.equal(plain, other_photo) == (IMAGE not in reads)
    assert torch.equal(plain, other_text) == (TEXT not in reads)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("filler", [0.0, float("nan")])
@pytest.mark.parametrize("case", ["mixed", "no photo", "neither", "photo only"])
def test_gradients_are_finite(models: dict[str, MMFusionModel], kind: str, filler: float, case: str) -> None:
    model = models[kind]
    rows = {"mixed": slice(None), "no photo": slice(1, 2), "neither": slice(3, 4), "photo only": slice(2, 3)}[case]
    model.zero_grad()
    model.train()
    torch.manual_seed(0)
    output = model.encode_products(**{name: value[rows] for name, value in _inputs(filler).items()})
    loss = output.product_embeds[:, 0].sum()
    for column, views in enumerate((output.text_embeds, output.image_embeds)):
        loss = loss + views[output.modality_present[:, column]].sum()
    loss.backward()
    model.eval()
    gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    assert gradients
    for name, gradient in gradients.items():
        assert gradient.isfinite().all(), name
    model.zero_grad()


@pytest.mark.parametrize("kind", KINDS)
def test_views_only_leaves_the_fusion_network_out(models: dict[str, MMFusionModel], kind: str) -> None:
    inputs = {**texts([4, 2]), "pixel_values": photos(2)}
    with torch.no_grad():
        views = models[kind].encode_products(**inputs, views_only=True)
    assert views.product_embeds is None and views.modality_weights is None
    for embeds in (views.text_embeds, views.image_embeds):
        assert torch.allclose(embeds.norm(dim=1), torch.ones(2), atol=1e-5)


def test_text_only_runs_the_vision_encoder_for_products_without_text_alone() -> None:
    model = tiny_model(fusion="text_only")
    seen: list[int] = []
    model.vision_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    pixels = photos(3, 2)
    model.get_product_features(**texts([3, 2, 5]), pixel_values=pixels)
    assert seen == []
    model.get_product_features(**texts([3, 0, 5]), pixel_values=pixels)
    assert seen == [2]
    model.encode_products(**texts([3, 2, 5]), pixel_values=pixels, views_only=True)
    assert seen == [2, 6]


def test_single_views_are_the_views() -> None:
    inputs = {**texts([4, 0, 5]), "pixel_values": photos(3), "photo_mask": torch.tensor([[True], [True], [False]])}
    text_only, image_only = tiny_model(fusion="text_only"), tiny_model(fusion="image_only")
    output = _encode(text_only, inputs)
    views = _encode(image_only, inputs)
    assert torch.allclose(output.product_embeds[[0, 2]], views.text_embeds[[0, 2]], atol=1e-6)
    assert torch.allclose(output.product_embeds[1], views.image_embeds[1], atol=1e-6)
    assert torch.allclose(views.product_embeds[:2], views.image_embeds[:2], atol=1e-6)
    assert torch.allclose(views.product_embeds[2], views.text_embeds[2], atol=1e-6)


@pytest.mark.parametrize(("vector", "column"), [("missing_text", TEXT), ("missing_image", IMAGE)])
def test_concat_learns_what_stands_for_a_missing_modality(vector: str, column: int) -> None:
    model = tiny_model(fusion="concat")
    before = _encode(model, _inputs()).product_embeds
    with torch.no_grad():
        model.fusion.get_parameter(vector).normal_(std=3.0, generator=torch.Generator().manual_seed(5))
    after = _encode(model, _inputs()).product_embeds
    changed = (before - after).abs().amax(1) > 1e-4
    assert torch.equal(changed, ~PRESENT[:, column])


def test_cross_attention_starts_at_the_mean_of_the_views_and_learns_away_from_it() -> None:
    model = tiny_model(fusion="cross_attention")
    inputs = _inputs()
    output = _encode(model, inputs)
    views = torch.stack([output.text_embeds, output.image_embeds], dim=1) * PRESENT.unsqueeze(-1)
    mean = torch.nn.functional.normalize(views.sum(1), dim=-1)
    assert torch.allclose(output.product_embeds, mean, atol=1e-6)
    assert torch.allclose(output.modality_weights, PRESENT / PRESENT.sum(1, keepdim=True), atol=1e-6)

    optimizer = torch.optim.SGD(model.fusion.parameters(), lr=1.0)
    target = torch.randn(len(LENGTHS), model.config.embedding_dim, generator=torch.Generator().manual_seed(3))
    for _ in range(2):
        optimizer.zero_grad()
        (-(model.encode_products(**inputs).product_embeds * target).sum()).backward()
        optimizer.step()
    moved = [name for name, value in model.fusion.named_parameters() if value.grad.abs().max() > 0]
    assert any(name.startswith("layers.0") for name in moved) and any(name.startswith("latents") for name in moved)
    trained = _encode(model, inputs)
    assert not torch.allclose(trained.product_embeds, mean, atol=1e-3)
    _assert_sound(trained, PRESENT)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_keeps_the_promises(kind: str) -> None:
    model = _disturbed(tiny_model(fusion=kind)).to(torch.bfloat16)
    output = _encode(model, _inputs(float("nan")))
    assert output.product_embeds.dtype == torch.bfloat16
    assert output.product_embeds.isfinite().all()
    assert (output.modality_weights[~PRESENT] == 0).all()
    assert torch.allclose(output.modality_weights.float().sum(1), torch.ones(len(LENGTHS)), atol=1e-2)
