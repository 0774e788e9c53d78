"""What a query router weighs, read back from the vectors that are searched with."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_comparison import evaluation

from mmfusion.evaluation.tables import router_weights_table
from mmfusion.evaluation.weights import router_weights
from mmfusion.model.heads import routed_queries, shorten


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
        replace(plain, provenance={"router_weights": {"all": {"fused": 0.6, "text": text, "image": 0.4 - text}}})
        for text in (0.1, 0.3)
    ]
    assert router_weights_table([plain]) == ""
    assert "| all | 60.0 | 20.0 | 20.0 |" in router_weights_table([plain, *seeds])
