"""Agreement of reported modality weights with leave-one-modality-out changes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from test_comparison import evaluation
from torch import Tensor
from torch.nn import functional as F

from mmfusion.evaluation.tables import router_weights_table
from mmfusion.evaluation.weights import modality_agreement, router_weights, spearman
from mmfusion.model import FUSIONS, Fusion, FusionSizes, MMFusionConfig, ProductViews
from mmfusion.model.heads import routed_queries, shorten


def _products(num_products: int = 40, num_queries: int = 9, seed: int = 0) -> dict[str, Any]:
    """Scores of which the photo gives the share that its weight says, whatever the query."""
    generator = np.random.default_rng(seed)
    weights = generator.uniform(0.05, 0.95, num_products)
    query = np.repeat(np.eye(1, 4), num_queries, axis=0)
    with_photo = np.zeros((num_products, 4))
    with_photo[:, 0] = 1.0
    without_photo, without_text = with_photo.copy(), with_photo.copy()
    without_photo[:, 0] -= weights
    without_text[:, 0] -= 1 - weights
    pairs = np.stack([np.arange(120) % num_queries, np.arange(120) % num_products], axis=1)
    return {
        "photo_weights": weights,
        "present": np.ones((num_products, 2), bool),
        "query_embeds": query,
        "product_embeds": with_photo,
        "without_photo": without_photo,
        "without_text": without_text,
        "pairs": pairs,
    }


def test_weights_that_say_what_the_modalities_do_agree_fully() -> None:
    agreement = modality_agreement(**_products())
    assert agreement.photo == agreement.text == agreement.balance == pytest.approx(1.0)
    assert (agreement.num_products, agreement.num_pairs) == (40, 120)
    assert "+1.00" in str(agreement) and "40 products" in str(agreement)


def test_weights_turned_around_disagree_fully() -> None:
    products = _products()
    agreement = modality_agreement(**{**products, "photo_weights": 1 - products["photo_weights"]})
    assert agreement.photo == agreement.text == agreement.balance == pytest.approx(-1.0)


def test_text_and_photo_are_told_apart() -> None:
    products = _products()
    agreement = modality_agreement(**{**products, "without_text": products["product_embeds"]})
    assert agreement.photo == pytest.approx(1.0)
    assert agreement.text is None  # dropping the text changes nothing anywhere
    assert agreement.balance == pytest.approx(1.0)


def test_the_change_is_the_mean_over_the_pairs_of_a_product() -> None:
    """By hand: the photo gives +4 and -2 to product 0, mean 1; +0.5 to product 1; 2 to product 2."""
    full = np.zeros((3, 2))
    without_photo = np.array([[-1.0, -1.0], [-1.0, 0.0], [0.0, -1.0]])
    queries = np.array([[4.0, 0.0], [0.0, -2.0], [0.5, 0.0], [0.0, 2.0]])
    pairs = np.array([[0, 0], [1, 0], [2, 1], [3, 2]])
    given = {"present": np.ones((3, 2), bool), "query_embeds": queries, "product_embeds": full, "pairs": pairs}
    right = modality_agreement(
        **given, photo_weights=np.array([0.5, 0.1, 0.9]), without_photo=without_photo, without_text=full
    )
    assert right.photo == pytest.approx(1.0)
    wrong = modality_agreement(
        **given, photo_weights=np.array([0.9, 0.1, 0.5]), without_photo=without_photo, without_text=full
    )
    assert wrong.photo == pytest.approx(0.5)


def test_products_that_lack_a_modality_or_a_pair_are_left_out() -> None:
    products = _products()
    expected = modality_agreement(**{**products, "pairs": products["pairs"][products["pairs"][:, 1] >= 5]})
    products["present"][:3, 1] = False
    products["present"][3:5, 0] = False
    products["photo_weights"][:5] = [0, 0, 0, 1, 1]
    products["without_photo"][:5] = 100.0
    actual = modality_agreement(**products)
    assert actual == expected
    assert actual.num_products == 35


def test_constant_weights_have_no_correlation() -> None:
    products = _products()
    agreement = modality_agreement(**{**products, "photo_weights": np.full(40, np.float32(0.1))})
    assert agreement.photo is agreement.text is agreement.balance is None
    assert "undefined" in str(agreement)


def test_no_pairs_have_no_correlation() -> None:
    agreement = modality_agreement(**{**_products(), "pairs": np.empty((0, 2), np.int64)})
    assert agreement.photo is None and agreement.num_products == 0


def test_tensors_are_taken_as_well() -> None:
    products = _products()
    tensors = {name: torch.from_numpy(value) for name, value in products.items()}
    assert modality_agreement(**tensors) == modality_agreement(**products)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"photo_weights": np.full(39, 0.5)}, r"photo_weights has shape \(39,\)"),
        ({"photo_weights": np.full(40, 1.5)}, r"photo_weights\[0\] is 1.5"),
        ({"photo_weights": np.full(40, np.nan)}, r"photo_weights\[0\] is nan"),
        ({"present": np.ones(40, bool)}, "present has shape"),
        ({"without_photo": np.zeros((40, 3))}, "without_photo has shape"),
        ({"without_text": np.zeros((39, 4))}, "without_text has shape"),
        ({"query_embeds": np.zeros((9, 5))}, "query_embeds has shape"),
        ({"query_embeds": np.zeros(4)}, "query_embeds has shape"),
        ({"product_embeds": np.full((40, 4), np.inf)}, r"product_embeds\[0\] is \[inf, .*finite numbers"),
        ({"pairs": np.array([[0, 0], [9, 1]])}, r"pairs\[1\] is \[9, 1\]"),
        ({"pairs": np.array([[0, -1]])}, r"pairs\[0\] is \[0, -1\]"),
        ({"pairs": np.array([[0.0, 1.0]])}, "pairs has shape .* float64"),
        ({"pairs": np.array([0, 1])}, "pairs has shape"),
    ],
)
def test_what_does_not_fit_is_an_error(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        modality_agreement(**{**_products(), **change})


@pytest.mark.parametrize("levels", [3, 1000])
def test_spearman_equals_scipy_with_and_without_ties(levels: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(1)
    first = generator.integers(levels, size=60).astype(float)
    second = first + generator.integers(levels, size=60)
    assert spearman(first, second) == pytest.approx(stats.spearmanr(first, second).statistic, abs=1e-12)


def test_spearman_of_a_small_example() -> None:
    """1 - 6 * sum d² / (n (n² - 1)) with d = (1, -1, 0, 0): 1 - 12 / 60."""
    assert spearman(np.array([1.0, 2.0, 3.0, 9.0]), np.array([5.0, 4.0, 6.0, 7.0])) == pytest.approx(0.8)
    assert spearman(np.array([1.0]), np.array([2.0])) is None
    assert spearman(np.zeros(5), np.arange(5.0)) is None


# --- What fusion networks learn to report --------------------------------------------------------------------------


def _noisy_views(products: int, seed: int) -> tuple[Tensor, ProductViews]:
    """What is asked for (P, 12), and two noisy views of it: the pooled text tells which one is the noisier."""
    generator = torch.Generator().manual_seed(seed)

    def noise(width: int) -> Tensor:
        return torch.randn(products, width, generator=generator)

    asked = F.normalize(noise(12), dim=-1)
    share = torch.rand(products, 1, generator=generator)
    text = F.normalize(asked + 0.6 * share * noise(12), dim=-1)
    image = F.normalize(asked + 0.6 * (1 - share) * noise(12), dim=-1)
    text_pooled, image_pooled = torch.cat([text, 2 * share - 1, noise(3)], 1), torch.cat([image, noise(4)], 1)
    there = torch.ones(products, 1, dtype=torch.bool)
    tokens = (text_pooled.unsqueeze(1), image_pooled.unsqueeze(1))
    views = ProductViews(text, image, text_pooled, image_pooled, *tokens, there, there, there.expand(-1, 2))
    return asked, views


def _without(views: ProductViews, column: int) -> ProductViews:
    present = views.present.clone()
    present[:, column] = False
    mask = {("text_mask", "image_mask")[column]: present[:, column : column + 1]}
    return dataclasses.replace(views, present=present, **mask)


def _trained(kind: str) -> Fusion:
    torch.manual_seed(0)
    sizes = {"fusion_hidden_size": 32, "fusion_heads": 2, "fusion_layers": 1, "fusion_latents": 2}
    network = FUSIONS[kind](MMFusionConfig(embedding_dim=12, fusion_dropout=0.0, **sizes), FusionSizes(16, 16, 16, 16))
    with torch.no_grad():
        network.init_weights(0.02)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    for step in range(80):
        asked, views = _noisy_views(96, seed=step)
        fused = network(views if step % 4 else _without(views, step // 4 % 2))
        logits = 20 * asked @ F.normalize(fused.embeds, dim=-1).T
        optimizer.zero_grad()
        (F.cross_entropy(logits, torch.arange(96)) + (fused.penalty or 0.0)).backward()
        optimizer.step()
    return network.eval()


@pytest.mark.parametrize("kind", ["gated", "bilinear", "moe", "cross_attention"])
def test_learned_weights_say_which_modality_matters(kind: str) -> None:
    network = _trained(kind)
    asked, views = _noisy_views(400, seed=1000)
    with torch.no_grad():
        whole, *parts = (network(given) for given in (views, _without(views, 1), _without(views, 0)))
    embeds = [F.normalize(fused.embeds, dim=-1).numpy() for fused in (whole, *parts)]
    agreement = modality_agreement(
        photo_weights=whole.weights[:, 1].numpy(),
        present=views.present.numpy(),
        query_embeds=asked.numpy(),
        product_embeds=embeds[0],
        without_photo=embeds[1],
        without_text=embeds[2],
        pairs=np.arange(400)[:, None].repeat(2, axis=1),
    )
    assert agreement.balance is not None and agreement.balance > 0.5
    assert agreement.photo is not None and agreement.photo > 0.4
    assert agreement.text is not None and agreement.text > 0.4


# --- What a query router weighs, read back from the vectors that are searched with ----------------------------------


def routed(weights: list[list[float]], dim: int = 8) -> torch.Tensor:
    units = torch.nn.functional.normalize(torch.randn(len(weights), dim, generator=torch.Generator().manual_seed(0)))
    return routed_queries(units, torch.tensor(weights))


def test_weights_are_the_means_of_what_the_router_gave_by_kind() -> None:
    queries = routed([[0.5, 0.2, 0.3], [0.1, 0.9, 0.0], [0.3, 0.0, 0.7]])
    found = router_weights(queries.numpy(), {"kind": ["visual", "textual", "visual"]})
    assert list(found) == ["all", "kind=textual", "kind=visual"]
    assert found["kind=visual"] == pytest.approx({"fused": 0.4, "text": 0.1, "image": 0.5})
    assert found["kind=textual"] == pytest.approx({"fused": 0.1, "text": 0.9, "image": 0.0}, abs=1e-6)
    assert sum(found["all"].values()) == pytest.approx(1.0)
    assert router_weights(shorten(queries, 3, views=3).numpy())["all"] == pytest.approx(found["all"])


@pytest.mark.parametrize("shape", [(0, 6), (2, 7), (6,)])
def test_vectors_without_three_views_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"query_embeds has shape \(.*3 views side by side"):
        router_weights(np.ones(shape))


def test_the_table_is_the_mean_of_the_seeds_and_empty_without_a_router() -> None:
    plain = evaluation("gated", [True, True, False, False])
    seeds = [
        dataclasses.replace(
            plain, provenance={"router_weights": {"all": {"fused": 0.6, "text": text, "image": 0.4 - text}}}
        )
        for text in (0.1, 0.3)
    ]
    assert router_weights_table([plain]) == ""
    assert "| all | 60.0 | 20.0 | 20.0 |" in router_weights_table([plain, *seeds])
