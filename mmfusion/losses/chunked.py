"""Scores of all pairs of two sets with the memory of a chunk of rows, and gradients that are known beforehand."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmfusion.losses.grades import Items

# Pairs that are looked at together: on a CPU 16 MiB of float32 for each of two matrices, where caches help; on a GPU
# 64 MiB, so that few kernels are started.
MAX_PAIRS, MAX_PAIRS_OF_CPU = 2**24, 2**22


class Scores:
    """Scaled inner products of left and right items, a chunk of left items at a time; -inf where one is masked.

    Attributes:
        rows: (L, D), the left embeddings times the scale.
        columns: (R, D), the right embeddings.
        buffer: As large as a chunk, for whoever reads one.
        only_one: Whether one chunk has all pairs.
    """

    def __init__(self, left: Items, right: Items, scale: Tensor, chunk_rows: int | None = None) -> None:
        """Takes both sides.

        Args:
            left: L items.
            right: R items.
            scale: Scalar.
            chunk_rows: Left items at once, at least 1; None takes as many as make `MAX_PAIRS` pairs.
        """
        # Zeros for items that are masked, whatever they hold: nothing times zero is zero but for a NaN.
        self.rows, self.columns = (items.embeds.masked_fill(~items.mask[:, None], 0.0) for items in (left, right))
        self.rows *= scale
        most = MAX_PAIRS_OF_CPU if scale.device.type == "cpu" else MAX_PAIRS
        self._size = max(1, min(len(self.rows), chunk_rows or most // max(1, len(self.columns))))
        self.only_one = self._size == len(self.rows)
        shape = self._size, len(self.columns)
        self._chunk, self.buffer = self.rows.new_empty(shape), self.rows.new_empty(shape)
        self._excluded = [embeds.new_zeros(len(mask)).masked_fill_(~mask, -torch.inf) for embeds, mask in (left, right)]

    def slices(self) -> Iterator[slice]:
        """The left items of each chunk."""
        for start in range(0, len(self.rows), self._size):
            yield slice(start, min(start + self._size, len(self.rows)))

    def of(self, own: slice) -> Tensor:
        """Scores (own, R) of a chunk; the next one takes their place."""
        chunk = self._chunk[: own.stop - own.start]
        left, right = self._excluded
        torch.addmm(right, self.rows[own], self.columns.T, out=chunk)
        return chunk.add_(left[own, None])


def logsumexp(scores: Tensor, dim: int, buffer: Tensor) -> Tensor:
    """What `torch.logsumexp` gives, without memory of its own."""
    highest = scores.amax(dim, keepdim=True)
    # Where all is -inf: exp(-inf - 0) is 0.
    highest.masked_fill_(torch.isneginf(highest), 0.0)
    total = torch.sub(scores, highest, out=buffer[: len(scores)]).exp_().sum(dim)
    return total.log_().add_(highest.squeeze(dim))


class Known(NamedTuple):
    """A value with its gradients.

    Attributes:
        value: Scalar.
        gradients: With respect to each input; none where they were not wanted.
    """

    value: Tensor
    gradients: tuple[Tensor, ...]


def with_gradients(compute: Callable[[bool], Known], inputs: Sequence[Tensor]) -> Tensor:
    """The scalar that `compute` gives, as a function of `inputs` that has its gradients, differentiable once.

    Autocast is off, as a logit scale magnifies the rounding of half precision.

    Args:
        compute: Called with whether gradients are wanted; needs no graph.
        inputs: What the gradients are with respect to.
    """
    wanted = torch.is_grad_enabled()
    with torch.no_grad(), torch.autocast(inputs[0].device.type, enabled=False):
        known = compute(wanted)
    if not wanted:
        return known.value
    attached: Tensor = _KnownGradients.apply(known.value, len(inputs), *inputs, *known.gradients)
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
