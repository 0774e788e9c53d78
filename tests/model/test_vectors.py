"""Shortened and routed vectors: one inner product is the weighted sum of views; a missing view costs nothing."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from tiny_encoders import photos, texts, tiny_model
from torch.nn import functional as F

from mmfusion.model import MMFusionConfig, MMFusionModel, modeling_mmfusion
from mmfusion.retrieval.search import check_width


def routed(**config: object) -> MMFusionModel:
    model = tiny_model(query_router=True, embedding_dim=12, matryoshka_dims=[4, 8], **config)
    assert model.query_router is not None
    torch.nn.init.normal_(model.query_router.logits.weight)
    return model


def queries(count: int) -> dict[str, torch.Tensor]:
    return texts([3, 5, 2, 4][:count], seed=5)


@pytest.mark.parametrize("dim", [None, 4, 8])
def test_one_inner_product_is_the_weighted_sum_of_the_scores_of_the_views(dim: int | None) -> None:
    model = routed()
    with torch.no_grad():
        asked = model.forward_queries(**queries(4))
        shown = model.forward_products(**texts([5, 3, 4]), pixel_values=photos(3))
        fused = shown.product_embeds[:, :12]
        score = model.get_query_features(**queries(4), truncate_dim=dim) @ (
            model.get_product_features(**texts([5, 3, 4]), pixel_values=photos(3), truncate_dim=dim).T
        )
    cut = 12 if dim is None else dim
    query = F.normalize(asked.query_view_embeds[:, :cut], dim=-1)
    views = [F.normalize(view[:, :cut], dim=-1) for view in (fused, shown.text_embeds, shown.image_embeds)]
    expected = sum(asked.query_weights[:, [i]] * (query @ view.T) for i, view in enumerate(views))
    assert torch.allclose(score, expected, atol=1e-6)
    assert asked.query_weights.min() >= 0 and torch.allclose(asked.query_weights.sum(1), torch.ones(4))
    assert asked.query_weights.std(0).max() > 0.01


def test_the_fused_view_stands_in_for_a_missing_one() -> None:
    model = routed()
    mask = torch.tensor([[True], [False], [True]])
    with torch.no_grad():
        shown = model.forward_products(**texts([5, 3, 0]), pixel_values=photos(3), photo_mask=mask)
    fused, text, image = shown.product_embeds.unflatten(1, (3, 12)).unbind(1)
    assert torch.equal(image[1], fused[1]) and torch.equal(text[2], fused[2])
    assert torch.equal(text[:2], shown.text_embeds[:2]) and torch.equal(image[0], shown.image_embeds[0])
    assert torch.allclose(shown.product_embeds.norm(dim=1), torch.full((3,), 3**0.5))


def test_a_plain_model_shortens_to_unit_length_and_refuses_other_widths() -> None:
    model = tiny_model(embedding_dim=12, matryoshka_dims=[4])
    with torch.no_grad():
        full = model.get_query_features(**queries(2))
        short = model.get_query_features(**queries(2), truncate_dim=4)
    assert torch.allclose(short, F.normalize(full[:, :4], dim=-1), atol=1e-6)
    for dim in (0, 13):
        with pytest.raises(ValueError, match=rf"truncate_dim is {dim}; give 1 to 12 \(trained: 4\)"):
            model.get_query_features(**queries(2), truncate_dim=dim)


def test_a_width_that_was_not_trained_is_warned_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(modeling_mmfusion.logger, "warning_once", said.append)
    model = tiny_model(embedding_dim=12, matryoshka_dims=[8, 4])
    with torch.no_grad():
        for dim in (None, 4, 8, 12):
            model.get_query_features(**queries(2), truncate_dim=dim)
        assert said == []
        model.get_query_features(**queries(2), truncate_dim=5)
    assert said == [
        "truncate_dim is 5, a width that this model was not trained for (trained: 4, 8, 12); expect worse rankings."
    ]


@pytest.mark.parametrize(("dim", "allowed"), [(None, True), (4, True), (12, True), (5, False)])
def test_commands_take_trained_widths_alone_unless_told_otherwise(dim: int | None, allowed: bool) -> None:
    config = tiny_model(embedding_dim=12, matryoshka_dims=[4]).config
    check_width(config, dim, True)
    with nullcontext() if allowed else pytest.raises(ValueError, match=r"is 5, .* \(trained: 4, 12\); .*--allow_untr"):
        check_width(config, dim, False)
    with pytest.raises(ValueError, match=r"truncate_dim is 13; give 1 to 12 \(trained: 4, 12\)"):
        check_width(config, 13, True)


def test_stage_one_compares_views_without_the_router() -> None:
    model = routed()
    with torch.no_grad():
        output = model(**{f"query_{key}": value for key, value in queries(2).items()}, views_only=True)
    assert output.query_weights is None and output.query_embeds.shape == (2, 12)


def test_the_router_survives_saving_and_starts_even(tmp_path: Path) -> None:
    model = routed()
    model.save_pretrained(tmp_path)
    again = MMFusionModel.from_pretrained(tmp_path)
    assert again.config.vector_dim == 36
    with torch.no_grad():
        assert torch.equal(again.get_query_features(**queries(2)), model.get_query_features(**queries(2)))
    fresh = tiny_model(query_router=True)
    with torch.no_grad():
        weights = fresh.forward_queries(**queries(2)).query_weights
    assert torch.allclose(weights, torch.full((2, 3), 1 / 3))


@pytest.mark.parametrize("fusion", ["text_only", "image_only"])
def test_a_router_over_a_single_view_is_refused(fusion: str) -> None:
    with pytest.raises(ValueError, match=f"'{fusion}' has a single view.*nothing to weigh"):
        MMFusionConfig(fusion=fusion, query_router=True)


@pytest.mark.parametrize("dims", [[0], [256], [4, 4], ["8"], 8])
def test_widths_that_cannot_be_are_refused(dims: object) -> None:
    with pytest.raises(ValueError, match=r"matryoshka_dims is .*from 1 to below embedding_dim 256"):
        MMFusionConfig(matryoshka_dims=dims)
