"""The chunked losses against the dense formulas, in value and all gradients, on one rank and on two."""

import math
import subprocess
import sys
from contextlib import ExitStack

import pytest
import torch
import two_ranks_losses
from dense_losses import LEVELS, LOSSES, draw, fast, slow
from processes import started

from mmfusion.losses import GradedSigmoidLoss, Grades, graded_sigmoid
from mmfusion.losses.chunked import sum_over_pairs


@pytest.mark.parametrize("chunk_rows", [1, 3, None])
@pytest.mark.parametrize("name", LOSSES)
def test_equals_the_dense_formula_in_value_and_gradients(name: str, chunk_rows: int | None) -> None:
    # Neither 7 nor 10 is a multiple of 3: the last chunk is uneven in both directions.
    for seed in range(5):
        items = draw(7, 10, seed)
        expected = slow(name, items)
        assert {"left", "right", "scale"} <= expected.keys() and expected["value"] > 0
        found = fast(name, items, chunk_rows)
        for value, gradient in expected.items():
            torch.testing.assert_close(found[value], gradient, rtol=1e-9, atol=1e-12, msg=f"{value}, seed {seed}")


@pytest.fixture(scope="module")
def of_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, torch.Tensor]]]:
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, two_ranks_losses.__file__, str(folder)]
    with ExitStack() as ended:
        ranks = [ended.enter_context(started([*command, rank], stderr=subprocess.PIPE, text=True)) for rank in range(2)]
        for rank in ranks:
            _, errors = rank.communicate(timeout=600)
            assert rank.returncode == 0, errors
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", LOSSES)
def test_the_mean_of_two_ranks_is_the_dense_formula_on_all_items(
    name: str, of_two_ranks: list[dict[str, dict[str, torch.Tensor]]]
) -> None:
    items = draw(two_ranks_losses.LEFT, two_ranks_losses.RIGHT)
    expected = slow(name, items)
    for key, whole in expected.items():
        parts = [rank[name][key] for rank in of_two_ranks]
        # DDP takes the mean over ranks, of which each embedding is on one.
        mean = torch.cat(parts) / 2 if whole.ndim else torch.stack(parts).mean()
        torch.testing.assert_close(mean, whole, rtol=1e-9, atol=1e-12, msg=key)


def test_sigmoid_is_the_formula_of_siglip_for_one_level() -> None:
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    matches = torch.eye(4, 5)
    signs = 2 * matches - 1
    expected = -torch.nn.functional.logsigmoid(signs * logits).sum()
    torch.testing.assert_close(graded_sigmoid(logits, matches.long(), [1]), expected)


def test_sigmoid_settles_a_near_miss_between_a_match_and_the_rest() -> None:
    logits = torch.zeros(1, 3, requires_grad=True)
    optimizer = torch.optim.SGD([logits], lr=1.0)
    for _ in range(200):
        optimizer.zero_grad()
        graded_sigmoid(logits, torch.tensor([[3, 1, 0]]), LEVELS).backward()
        optimizer.step()
    match, near_miss, rest = logits.detach()[0].sigmoid()
    assert match > 0.98 and rest < 0.02
    assert near_miss.item() == pytest.approx(1 / 3, abs=1e-3)


def test_a_nan_reaches_the_sigmoid_loss_and_the_bias_starts_low() -> None:
    assert graded_sigmoid(torch.tensor([[float("nan")]]), torch.tensor([[1]]), [1]).isnan()
    assert GradedSigmoidLoss().logit_bias.item() == -10.0


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_without_items_or_gradients_is_zero_or_plain(name: str) -> None:
    items = draw(4, 6)
    nothing = {**items, "left_mask": torch.zeros(4, dtype=torch.bool)}
    found = fast(name, nothing, 3)
    assert all((value == 0).all() for value in found.values())
    with torch.no_grad():
        value = LOSSES[name]().double()(
            *(items[key] for key in ("left", "right", "left_rows", "right_rows")),
            Grades(lambda left, right: items["grades"][left][:, right], LEVELS),
            torch.tensor(2.0),
        )
    assert not value.requires_grad and value > 0


def test_autocast_does_not_round_the_logits() -> None:
    items = {name: value.float() if value.is_floating_point() else value for name, value in draw(6, 6).items()}
    scale = torch.tensor(math.log(80.0))
    embeds = [items[key].bfloat16() for key in ("left", "right")]
    values = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            rows = items["left_rows"], items["right_rows"]
            grades = Grades(lambda left, right: items["grades"][left][:, right], LEVELS)
            values.append(LOSSES["contrastive"]()(*embeds, *rows, grades, scale))
    assert torch.equal(*values)


def test_a_block_never_sees_more_than_its_chunk() -> None:
    seen = []

    def block(own: slice, rows: torch.Tensor, columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append((own, rows.shape, columns.shape))
        return (rows @ columns.T).sum(), torch.tensor(len(rows))

    pairs = sum_over_pairs(block, torch.ones(5, 2), torch.ones(4, 2), [], chunk_rows=2)
    assert pairs.total == 40 and pairs.counted == 5
    assert seen == [(slice(start, stop), (stop - start, 2), (4, 2)) for start, stop in ((0, 2), (2, 4), (4, 5))]
