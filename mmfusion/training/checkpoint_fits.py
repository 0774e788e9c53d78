"""Whether a checkpoint is one of the model that is trained."""

import pickle
from pathlib import Path

import torch
from torch import Tensor

from mmfusion.training.run import RunError


def check_fits(checkpoint: Path, weights: dict[str, Tensor]) -> None:
    """Checks that a checkpoint holds the weights that a training has.

    Args:
        checkpoint: File that is not damaged.
        weights: State of the Lightning module.

    Raises:
        RunError: It holds weights of another architecture, or more than tensors and plain values.
    """
    try:
        # Shapes only: nothing is read but the names.
        saved = torch.load(checkpoint, map_location="meta", weights_only=True)["state_dict"]
    except (pickle.UnpicklingError, KeyError, TypeError) as error:
        raise RunError(
            f"{checkpoint} is refused: it holds more than tensors and plain values, which could run code, or is no "
            "checkpoint of a training; delete it to resume from the one before, or to begin anew."
        ) from error
    there, here = _shapes(saved), _shapes(weights)
    differing = sorted(name for name in {*there, *here} if there.get(name) != here.get(name))
    if differing:
        name = differing[0]
        raise RunError(
            f"{checkpoint} holds weights of another architecture: {name} is {there.get(name, 'missing')} there and "
            f"{here.get(name, 'missing')} in this model, and {len(differing) - 1} more differ. Give --base the model "
            "that this run began with, or another --output to begin anew."
        )


def _shapes(weights: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in weights.items()}
