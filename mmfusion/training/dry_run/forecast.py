"""Memory of a step with a large batch, foretold from steps with small ones."""

from collections.abc import Callable
from typing import NamedTuple

from mmfusion.training.dry_run.largest import growing

# Small steps grow until they differ by so many bytes, as measurements of main memory are off by a few MiB.
_TELLING = 128 * 2**20
# Bytes that a loss takes for each pair that it looks at together, and how many these are at most; measured, see
# docs/benchmarks/training-scale.md and mmfusion/losses/chunked.py.
_BYTES_PER_PAIR, _MAX_PAIRS = 64, 2**21


class Forecast(NamedTuple):
    """Bytes: `fixed + per_row * rows`, for rows whose activations are held at a time."""

    fixed: float
    per_row: float

    def of(self, rows: int) -> int:
        return int(self.fixed + self.per_row * rows)


class StepForecast(NamedTuple):
    """Peak of a step by the size of its batch and micro-batch.

    Attributes:
        activations: Forecast over product rows without a micro-batch, the loss left out.
        gradients: Bytes of all gradients; gradient caching adds up two further sets of them.
        embeddings: Bytes of what is known of a row with gradient caching: its vectors, and their gradients.
    """

    activations: Forecast
    gradients: int
    embeddings: int

    def of(self, pairs: int, products: int, micro_batch: int) -> int:
        """Bytes."""
        if not micro_batch:
            return self.activations.of(products) + loss_bytes(pairs, products)
        held = self.activations.of(min(micro_batch, products))
        return held + 2 * self.gradients + self.embeddings * (pairs + products) + loss_bytes(pairs, products)

    def with_gaps(self, factor: float, pairs: int, products: int, micro_batch: int) -> int:
        """Bytes, where everything that comes and goes takes `factor` times its size."""
        fixed = self.activations.fixed
        return int(fixed + factor * (self.of(pairs, products, micro_batch) - fixed))


def loss_bytes(pairs: int, products: int) -> int:
    """Most bytes that a loss between so many queries and products takes."""
    return _BYTES_PER_PAIR * min(pairs * products, _MAX_PAIRS)


def foretell(measure: Callable[[int], int | None], start: int, end: int, capacity: int) -> Forecast | None:
    """Fits a line through the last two of a series of measurements.

    Args:
        measure: Peak bytes with so many rows; None if they do not fit.
        start: Rows of the first, which is made twice, as much is allocated once only.
        end: Rows beyond which none is made.
        capacity: Bytes; no measurement is made that is foretold to need more.

    Returns:
        None if even the first did not fit.
    """
    if measure(start) is None:
        return None
    points: list[tuple[int, int]] = []
    for rows in growing(start, end):
        if len(points) > 1 and _line(points).of(rows) > capacity:
            break
        peak = measure(rows)
        if peak is None:
            break
        points.append((rows, peak))
        if len(points) > 1 and points[-1][1] - points[-2][1] > _TELLING:
            break
    return _line(points) if points else None


def _line(points: list[tuple[int, int]]) -> Forecast:
    if len(points) == 1:
        return Forecast(points[0][1], 0.0)
    (few, less), (many, more) = points[-2:]
    slope = max(0.0, (more - less) / (many - few))
    return Forecast(more - slope * many, slope)
