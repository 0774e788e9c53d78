"""Random states in the checkpoint, so that a resumed run draws what the interrupted one would have drawn."""

import random
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.distributed as dist

from mmfusion.distributed import world_size


class RandomState(L.Callback):
    """Saves and restores the random state of Python, NumPy and torch of every rank.

    Together with the loader's position, which Lightning saves, a run that was killed at any moment and resumed from
    its last checkpoint ends with the weights of the uninterrupted run (on CPU, bit for bit).
    """

    def __init__(self) -> None:
        self._pending: list[dict[str, Any]] | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"ranks": _gather(_capture())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._pending = state["ranks"]

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        # As late as possible: building loaders and sanity checks draw numbers that the interrupted run never drew.
        if self._pending is None:
            return
        if len(self._pending) != trainer.world_size:
            raise ValueError(
                f"The checkpoint was written by {len(self._pending)} rank(s), this run has {trainer.world_size}; "
                "resume with the same number of devices, or start anew from the weights with --base."
            )
        _restore(self._pending[trainer.global_rank])
        self._pending = None


def _capture() -> dict[str, Any]:
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(internal), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _restore(state: dict[str, Any]) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"]:
        torch.cuda.set_rng_state_all([value.cpu() for value in state["cuda"]])


def _gather(own: dict[str, Any]) -> list[dict[str, Any]]:
    if world_size() == 1:
        return [own]
    states: list[dict[str, Any]] = [{} for _ in range(world_size())]
    dist.all_gather_object(states, own)
    return states
