"""What every fusion network promises, whatever its kind: a new kind is tested here by being in `FUSIONS`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_encoders import photos, texts, tiny_model
from torch import Tensor
from torch.nn import functional as F

from mmfusion import MMFusionConfig, MMFusionModel, MMFusionOutput
from mmfusion.model import FUSIONS, Fusion, FusionSizes, ProductViews
from mmfusion.model.fusion import IMAGE, TEXT, MixtureOfExperts, load_imbalance, mean_shares
from mmfusion.stages.optimization import Optimization

KINDS = sorted(FUSIONS)
CORRECTING = ["bilinear", "cross_attention", "gated", "moe"]  # weighted views plus a correction that starts at zero
ONE_VIEW = sorted({*KINDS} - {"concat", "cross_attention"})  # a product with one modality is represented by its view
LENGTHS = [5, 3, 0, 0, 7]
PRESENT = torch.tensor([[True, True], [True, False], [False, True], [True, False], [True, True]])  # row 3 has neither
PHOTO_MASK = torch.tensor([[True, False], [False, False], [True, True], [False, False], [True, True]])


@pytest.fixture(scope="module")
def models() -> dict[str, MMFusionModel]:
    return {kind: _disturbed(tiny_model(fusion=kind, embedding_dim=12, fusion_learned_weights=True)) for kind in KINDS}


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
        return model.forward_products(**inputs)


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
    output = model.forward_products(**{name: value[rows] for name, value in _inputs(filler).items()})
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
        views = models[kind].forward_products(**inputs, views_only=True)
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
    model.forward_products(**texts([3, 2, 5]), pixel_values=pixels, views_only=True)
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


# --- Where training starts, and where it can go --------------------------------------------------------------------


@pytest.mark.parametrize("kind", CORRECTING)
def test_training_starts_at_the_mean_of_the_views_and_leaves_it(kind: str) -> None:
    model = tiny_model(fusion=kind)
    inputs = _inputs()
    output = _encode(model, inputs)
    views = torch.stack([output.text_embeds, output.image_embeds], dim=1) * PRESENT.unsqueeze(-1)
    mean = F.normalize(views.sum(1), dim=-1)
    assert torch.allclose(output.product_embeds, mean, atol=1e-6)
    assert torch.allclose(output.modality_weights, PRESENT / PRESENT.sum(1, keepdim=True), atol=1e-6)

    optimizer = torch.optim.SGD(model.fusion.parameters(), lr=1.0)
    target = torch.randn(len(LENGTHS), model.config.embedding_dim, generator=torch.Generator().manual_seed(3))
    for _ in range(3):
        optimizer.zero_grad()
        (-(model.forward_products(**inputs).product_embeds * target).sum()).backward()
        optimizer.step()
    # The first step moves the layers that start at zero alone; gradients reach the rest through them.
    still = [name for name, value in model.fusion.named_parameters() if not value.grad.abs().max() > 0]
    assert not still
    trained = _encode(model, inputs)
    assert not torch.allclose(trained.product_embeds, mean, atol=1e-3)
    _assert_sound(trained, PRESENT)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_it_is_the_same(models: dict[str, MMFusionModel], kind: str, tmp_path: Path) -> None:
    model = models[kind]
    model.save_pretrained(tmp_path)
    loaded = MMFusionModel.from_pretrained(tmp_path)
    assert type(loaded.fusion) is FUSIONS[kind]
    expected, actual = _encode(model, _inputs()), _encode(loaded, _inputs())
    assert actual.keys() == expected.keys()
    for name in expected:
        assert torch.equal(actual[name], expected[name]), name


def test_kinds_share_no_parameter_name() -> None:
    names = {kind: set(_network(kind, fusion_learned_weights=True).state_dict()) for kind in KINDS}
    for first in KINDS:
        for second in KINDS:
            assert first == second or not names[first] & names[second], (first, second)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_keeps_the_promises(kind: str) -> None:
    model = _disturbed(tiny_model(fusion=kind)).to(torch.bfloat16)
    output = _encode(model, _inputs(float("nan")))
    assert output.product_embeds.dtype == torch.bfloat16
    assert output.product_embeds.isfinite().all()
    assert (output.modality_weights[~PRESENT] == 0).all()
    assert torch.allclose(output.modality_weights.float().sum(1), torch.ones(len(LENGTHS)), atol=1e-2)


# --- The networks by themselves, on views made up here -------------------------------------------------------------

SIZES = FusionSizes(text=10, image=14, text_token=10, image_token=6)


def _network(kind: str, **fields: Any) -> Fusion:
    """A network whose parameters are all away from zero, in evaluation mode."""
    settings = {"fusion_hidden_size": 16, "fusion_heads": 2, "fusion_layers": 2, "fusion_latents": 2, **fields}
    network = FUSIONS[kind](MMFusionConfig(fusion=kind, embedding_dim=12, **settings), SIZES)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for value in network.parameters():
            value.copy_(0.3 * torch.randn(value.shape, generator=generator))
    return network.eval()


def _views(filler: float | None = None) -> ProductViews:
    """Views of four products: both, text alone, photo alone, both; `filler` stands wherever nothing is to be read."""
    generator = torch.Generator().manual_seed(11)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    present = torch.tensor([[True, True], [True, False], [False, True], [True, True]])
    views = ProductViews(
        text_embeds=F.normalize(random(4, 12), dim=-1),
        image_embeds=F.normalize(random(4, 12), dim=-1),
        text_pooled=random(4, 10),
        image_pooled=random(4, 14),
        text_tokens=random(4, 5, 10),
        image_tokens=random(4, 6, 6),
        text_mask=torch.tensor([[1, 1, 1, 0, 0], [1] * 5, [0] * 5, [1, 0, 0, 0, 0]]).bool(),
        image_mask=torch.tensor([[1] * 6, [0] * 6, [1] * 3 + [0] * 3, [1] * 3 + [0] * 3]).bool(),
        present=present,
    )
    if filler is not None:
        for column, name in enumerate(("text", "image")):
            getattr(views, f"{name}_embeds")[~present[:, column]] = filler
            getattr(views, f"{name}_pooled")[~present[:, column]] = filler
            getattr(views, f"{name}_tokens")[~getattr(views, f"{name}_mask")] = filler
    return views


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("filler", [0.0, -1e4, float("inf"), float("nan")])
def test_content_of_what_is_missing_influences_nothing(kind: str, filler: float) -> None:
    network = _network(kind, fusion_learned_weights=True)
    results = []
    for views in (_views(), _views(filler)):
        network.zero_grad()
        fused = network(views)
        if list(network.parameters()):
            (fused.embeds[:, 0].sum() + fused.weights[:, 1].sum() + (fused.penalty or 0.0)).backward()
        gradients = [value.grad for value in network.parameters()]
        results.append([fused.embeds, fused.weights, fused.penalty, fused.expert_load, *gradients])
    for clean, dirty in zip(*results, strict=True):
        assert clean is dirty is None or torch.equal(clean, dirty)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_parameter(kind: str) -> None:
    network = _network(kind, fusion_learned_weights=True)
    if parameters := dict(network.named_parameters()):
        (F.normalize(network(_views()).embeds, dim=-1) ** 3).sum().backward()
        assert not [name for name, value in parameters.items() if value.grad is None or not value.grad.any()]


@pytest.mark.parametrize("kind", ONE_VIEW)
def test_a_product_with_one_modality_is_its_view(kind: str) -> None:
    views = _views(float("nan"))
    embeds, weights, *_ = _network(kind)(views)
    assert torch.allclose(embeds[1], views.text_embeds[1], atol=1e-6)
    assert torch.allclose(embeds[2], views.image_embeds[2], atol=1e-6)
    assert weights[1:3].tolist() == [[1.0, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize("kind", CORRECTING)
def test_weights_are_those_of_the_views(kind: str) -> None:
    """Without its correction, the embedding is the mean of the views with the weights that are reported."""
    network, views = _network(kind), _views()
    correcting = [name for name in network.zero_start if name.endswith("correction")]
    with torch.no_grad():
        for name in correcting:
            network.get_submodule(name).weight.zero_()
            network.get_submodule(name).bias.zero_()
        for expert in getattr(network, "experts", []):
            expert.output.weight[2:] = 0.0
            expert.output.bias[2:] = 0.0
    embeds, weights, *_ = network(views)
    stacked = torch.stack([views.text_embeds, views.image_embeds], dim=1)
    assert torch.allclose(embeds, (weights.unsqueeze(-1) * stacked).sum(1), atol=1e-6)
    both = weights[views.present.all(1)]
    assert len(both.unique(dim=0)) == 2  # they depend on the product


def test_weights_of_concat_are_how_far_a_modality_moves_the_output() -> None:
    network, views = _network("concat"), _views()
    before = network(views).weights
    with torch.no_grad():
        network.missing_image.copy_(network.image_norm(views.image_pooled)[3])
    after = network(views).weights
    assert after[3].tolist() == pytest.approx([1.0, 0.0], abs=1e-6)  # the missing photo would do just as well
    assert (before[3] > 0.05).all()
    with torch.no_grad():
        network.out.weight.zero_()
    assert network(views).weights.tolist() == [[0.5, 0.5], [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("weight", [0.1, 0.5, 0.9])
def test_weighted_mean_has_the_weight_of_the_config(weight: float, learned: bool) -> None:
    model = tiny_model(fusion="weighted_mean", fusion_text_weight=weight, fusion_learned_weights=learned)
    output = _encode(model, _inputs())
    both = PRESENT.all(1)
    expected = torch.tensor([weight, 1 - weight])
    assert torch.allclose(output.modality_weights[both], expected.expand(2, 2), atol=1e-6)
    mean = weight * output.text_embeds + (1 - weight) * output.image_embeds
    assert torch.allclose(output.product_embeds[both], F.normalize(mean, dim=-1)[both], atol=1e-6)
    assert len(list(model.fusion.parameters())) == learned


def test_learned_weight_of_the_mean_moves_to_the_better_view() -> None:
    network, views = FUSIONS["weighted_mean"](MMFusionConfig(fusion_learned_weights=True), SIZES), _views()
    optimizer = torch.optim.AdamW(network.parameters(), lr=Optimization().learning_rate)
    for _ in range(100):
        optimizer.zero_grad()
        (-F.cosine_similarity(network(views).embeds, views.image_embeds)[views.present.all(1)].mean()).backward()
        optimizer.step()
    weights = network(views).weights
    assert (weights[views.present.all(1), IMAGE] > 0.5).all()
    assert weights[1].tolist() == [1.0, 0.0]


def test_learned_weight_of_a_checkpoint_without_one_starts_at_the_config(tmp_path: Path) -> None:
    tiny_model(fusion="weighted_mean").save_pretrained(tmp_path)
    loaded = MMFusionModel.from_pretrained(tmp_path, fusion_learned_weights=True, fusion_text_weight=0.3)
    both = PRESENT.all(1)
    assert _encode(loaded, _inputs()).modality_weights[both, TEXT].tolist() == pytest.approx([0.3, 0.3])


# --- Mixture of experts --------------------------------------------------------------------------------------------


def test_penalty_is_least_for_a_balanced_load() -> None:
    balanced = load_imbalance(torch.full((4,), 0.25))
    assert balanced.item() == pytest.approx(1.0)
    assert load_imbalance(torch.tensor([1.0, 0.0, 0.0, 0.0])).item() == pytest.approx(4.0)
    logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    assert all(load_imbalance(load) > balanced for load in logits.softmax(1))


def test_penalty_carries_its_weight_and_balances_the_router() -> None:
    views = _views()
    light, heavy = (_network("moe", fusion_balance_weight=weight) for weight in (0.01, 1.0))
    assert isinstance(heavy, MixtureOfExperts)
    with torch.no_grad():
        for network in (light, heavy):
            network.router.bias.copy_(torch.tensor([4.0, 0.0, 0.0, 0.0]))
    assert light(views).penalty.item() == pytest.approx(0.01 * heavy(views).penalty.item(), rel=1e-5)
    before = heavy(views)
    assert before.expert_load.sum().item() == pytest.approx(1.0)
    assert before.expert_load.argmax() == 0 and before.expert_load[0] > 0.6
    optimizer = torch.optim.Adam(heavy.router.parameters(), lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        heavy(views).penalty.backward()
        optimizer.step()
    after = heavy(views)
    assert after.penalty < before.penalty
    assert torch.allclose(after.expert_load, torch.full((4,), 0.25), atol=0.05)
    assert after.penalty.item() == pytest.approx(1.0, abs=0.01)


def test_load_counts_the_products_that_experts_correct() -> None:
    shares = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.1, 0.9]])
    assert mean_shares(shares, torch.tensor([True, False, True])).tolist() == pytest.approx([0.3, 0.7])
    assert mean_shares(shares, torch.zeros(3, dtype=torch.bool)).sum().item() == pytest.approx(1.0)


@pytest.mark.parametrize("experts", [1, 3])
def test_every_expert_has_a_say(experts: int) -> None:
    network, views = _network("moe", fusion_experts=experts), _views()
    assert isinstance(network, MixtureOfExperts)
    expected = network(views)
    assert expected.expert_load.shape == (experts,)
    for expert in network.experts:
        before = expert.output.bias.detach().clone()
        with torch.no_grad():
            expert.output.bias[2:] += 1.0
        changed = (network(views).embeds - expected.embeds).abs().amax(1) > 1e-3
        assert torch.equal(changed, views.present.all(1))
        with torch.no_grad():
            expert.output.bias.copy_(before)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_mixture_reports_a_load(kind: str) -> None:
    fused = _network(kind)(_views())
    assert (fused.penalty is not None) == (fused.expert_load is not None) == (kind == "moe")


# --- Tokens --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changed", "mask"), [("image_tokens", "image_mask"), ("text_tokens", "text_mask")])
def test_cross_attention_reads_the_tokens_of_either_side(changed: str, mask: str) -> None:
    """Pooled features and views stay as they are: what changes comes through the tokens."""
    network, views = _network("cross_attention"), _views()
    other = dataclasses.replace(views, **{changed: getattr(views, changed).flip(-1)})
    moved = (network(views).embeds - network(other).embeds).abs().amax(1) > 1e-4
    assert torch.equal(moved, getattr(views, mask).any(1))


@pytest.mark.parametrize("kind", KINDS)
def test_order_of_photo_tokens_does_not_matter(kind: str) -> None:
    network, views = _network(kind), _views()
    order = torch.randperm(6, generator=torch.Generator().manual_seed(2))
    turned = dataclasses.replace(
        views, image_tokens=views.image_tokens[:, order], image_mask=views.image_mask[:, order]
    )
    assert torch.allclose(network(views).embeds, network(turned).embeds, atol=1e-5)
