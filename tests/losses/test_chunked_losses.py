"""The chunked losses against the dense formulas, in value and all gradients, on one rank and on two."""

import math
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import pytest
import torch
import two_ranks_losses
from dense_losses import LEVELS, LOSSES, draw, fast, of_table, slow
from processes import started
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmfusion.losses import GradedSigmoidLoss, Grades, Items, graded_contrastive, graded_sigmoid
from mmfusion.losses.chunked import Scores


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


def of_logits(logits: torch.Tensor, table: torch.Tensor, levels: Sequence[int]) -> torch.Tensor:
    """The sigmoid loss of logits, times the number of rows: right items that pick a component each."""
    loss = GradedSigmoidLoss().to(logits.dtype)
    torch.nn.init.zeros_(loss.logit_bias)
    eye = torch.eye(logits.shape[1], dtype=logits.dtype)
    return len(logits) * loss(logits, eye, of_table(table, levels), torch.zeros((), dtype=logits.dtype))


def test_sigmoid_is_the_formula_of_siglip_for_one_level() -> None:
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    matches = torch.eye(4, 5)
    signs = 2 * matches - 1
    expected = -torch.nn.functional.logsigmoid(signs * logits).sum()
    torch.testing.assert_close(of_logits(logits, matches.long(), [1]), expected)


def test_sigmoid_settles_a_near_miss_between_a_match_and_the_rest() -> None:
    logits = torch.zeros(1, 3, requires_grad=True)
    optimizer = torch.optim.SGD([logits], lr=1.0)
    for _ in range(200):
        optimizer.zero_grad()
        of_logits(logits, torch.tensor([[3, 1, 0]]), LEVELS).backward()
        optimizer.step()
    match, near_miss, rest = logits.detach()[0].sigmoid()
    assert match > 0.98 and rest < 0.02
    assert near_miss.item() == pytest.approx(1 / 3, abs=1e-3)


def test_a_nan_reaches_the_sigmoid_loss_and_the_bias_starts_low() -> None:
    assert of_logits(torch.tensor([[float("nan")]]), torch.tensor([[1]]), [1]).isnan()
    assert GradedSigmoidLoss().logit_bias.item() == -10.0


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_without_items_or_gradients_is_zero_or_plain(name: str) -> None:
    items = draw(4, 6)
    nothing = {**items, "left_mask": torch.zeros(4, dtype=torch.bool)}
    found = fast(name, nothing, 3)
    assert all((value == 0).all() for value in found.values())
    with torch.no_grad():
        value = LOSSES[name]().double()(
            *(items[key] for key in ("left", "right")),
            of_table(items["grades"][items["left_rows"]][:, items["right_rows"]]),
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
            grades = of_table(items["grades"][items["left_rows"]][:, items["right_rows"]])
            values.append(LOSSES["contrastive"]()(*embeds, grades, scale))
    assert torch.equal(*values)


@pytest.mark.parametrize("chunk_rows", [2, None])
@pytest.mark.parametrize("name", LOSSES)
def test_reads_no_data_of_the_device(name: str, chunk_rows: int | None) -> None:
    # Tensors under this mode have no data: whoever asks for a number, or for how many are not zero, gets an error.
    with FakeTensorMode():
        items = {side: torch.empty(6, 4).requires_grad_() for side in ("left", "right")}
        scale, mask = torch.tensor(2.0).requires_grad_(), torch.ones(6, dtype=torch.bool)
        pairs = (torch.empty(9, dtype=torch.int64) for _ in range(3))
        grades = Grades(*pairs, starts=(0, 3, 3, 5, 6, 8, 9), levels=LEVELS)
        value = LOSSES[name](chunk_rows=chunk_rows)(*items.values(), grades, scale, mask, mask)
        value.backward()
        for leaf in (*items.values(), scale):
            assert leaf.grad is not None and leaf.grad.shape == leaf.shape
        with pytest.raises(DataDependentOutputException):
            value.item()


class Devices(TorchDispatchMode):
    """Collects the devices of all tensors that operations give."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        self.seen |= {one.device.type for one in tree_leaves(found) if isinstance(one, torch.Tensor)}
        return found


def test_makes_nothing_on_the_host_that_would_be_copied_to_the_device() -> None:
    # The only device beside the CPU that is always at hand; nothing can be copied back from it.
    with torch.device("meta"):
        left, right = (Items(torch.empty(6, 4), torch.ones(6, dtype=torch.bool)) for _ in range(2))
        pairs, scalar = [torch.empty(9, dtype=torch.int64) for _ in range(3)], torch.empty(())
    grades = Grades(*pairs, starts=(0, 3, 3, 5, 6, 8, 9), levels=LEVELS)
    with torch.no_grad(), Devices() as devices:
        for chunk_rows in (2, None):
            graded_contrastive(left, right, grades, scalar, chunk_rows=chunk_rows)
            graded_sigmoid(left, right, grades, scalar, scalar, chunk_rows=chunk_rows)
    assert devices.seen == {"meta"}


def test_items_that_are_masked_may_hold_anything() -> None:
    items = draw(7, 10)
    noisy = {**items}
    for side in ("left", "right"):
        noisy[side] = items[side].masked_fill(~items[f"{side}_mask"][:, None], float("nan"))
    for name in LOSSES:
        for key, value in fast(name, items).items():
            assert torch.equal(fast(name, noisy)[key], value), (name, key)


def test_grades_of_another_batch_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"grades are of 5 left items, and 4 are given"):
        LOSSES["contrastive"]()(torch.eye(4), torch.eye(4), of_table(torch.eye(5)), torch.tensor(0.0))


def test_scores_never_hold_more_than_a_chunk() -> None:
    left, right = (Items(torch.ones(size, 2), torch.ones(size, dtype=torch.bool)) for size in (5, 4))
    scores = Scores(left, right, torch.tensor(3.0), chunk_rows=2)
    found = [(own, scores.of(own).clone()) for own in scores.slices()]
    assert [own for own, _ in found] == [slice(0, 2), slice(2, 4), slice(4, 5)] and not scores.only_one
    assert torch.equal(torch.cat([chunk for _, chunk in found]), torch.full((5, 4), 6.0))
