"""Sums over all pairs of two sets, and their gradients, with the memory of a chunk of rows against all columns."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Pairs that are looked at together: 8 MiB of float32 for each matrix that the formula of a block needs.
MAX_PAIRS = 2**21

# From (which rows, these rows (r, D), all columns (C, D), scalars …) to the sum over the pairs and a count.
Block = Callable[..., tuple[Tensor, Tensor]]


class PairSum(NamedTuple):
    """A sum over pairs.

    Attributes:
        total: Scalar, without graph.
        counted: Scalar, what the block counted.
        gradients: Of the total with respect to rows, columns and each scalar; zeros where gradients are disabled.
    """

    total: Tensor
    counted: Tensor
    gradients: tuple[Tensor, ...]


def sum_over_pairs(
    block: Block, rows: Tensor, columns: Tensor, scalars: Sequence[Tensor], chunk_rows: int | None = None
) -> PairSum:
    """Sums a function of pairs chunk by chunk, and takes its gradients on the way.

    A sum is linear, so its gradients are known as soon as its terms are: nothing of a chunk is kept, and, unlike with
    checkpointing, nothing is computed twice. Autocast is off, as a logit scale magnifies the rounding of half
    precision.

    Args:
        block: Called with a slice of row numbers, these rows, all columns and the scalars; differentiable.
        rows: (R, D) float.
        columns: (C, D) float.
        scalars: Further differentiable inputs, scalars.
        chunk_rows: Rows at once, at least 1; None takes as many as make `MAX_PAIRS` pairs.
    """
    size = chunk_rows or max(1, MAX_PAIRS // max(1, len(columns)))
    # One buffer: a gradient for each chunk that stays would break up the heap that the next chunk could reuse.
    of_rows, others = torch.zeros_like(rows), [_leaf(value) for value in (columns, *scalars)]
    total, counted = rows.new_zeros(()), torch.zeros((), dtype=torch.int64, device=rows.device)
    with torch.autocast(rows.device.type, enabled=False):
        for start in range(0, len(rows), size):
            own = slice(start, min(start + size, len(rows)))
            part = _leaf(rows[own])
            value, of_block = block(own, part, *others)
            if value.requires_grad:
                value.backward()
                of_rows[own] = _gradient(part)
            total += value.detach()
            counted += of_block
    return PairSum(total, counted, (of_rows, *map(_gradient, others)))


def with_gradients(value: Tensor, inputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """The scalar `value` as a function of `inputs` that has these gradients; it can be differentiated once."""
    if not torch.is_grad_enabled():
        return value
    attached: Tensor = _KnownGradients.apply(value, len(inputs), *inputs, *gradients)
    return attached


class _KnownGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, count: int, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors[count:])
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        known = ctx.saved_tensors
        return None, None, *(gradient * value for value in known), *(None for _ in known)


def _leaf(value: Tensor) -> Tensor:
    return value.detach().requires_grad_(torch.is_grad_enabled())


def _gradient(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
