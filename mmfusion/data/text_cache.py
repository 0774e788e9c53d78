"""States of a frozen text encoder for queries or product texts, computed once and memory-mapped."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm.auto import tqdm

from mmfusion.data.ragged import FeatureCacheError, RaggedCache, open_cache, write_cache
from mmfusion.model import MMFusionModel


class TextCache:
    """Read access to the token states of texts."""

    def __init__(self, cache: RaggedCache) -> None:
        self.items = cache

    def states(self, rows: npt.NDArray[np.int64], attention_mask: Tensor) -> Tensor:
        """Token states (R, length, hidden) float32 where `attention_mask` (R, length) is 1, and 0 elsewhere.

        Raises:
            FeatureCacheError: A row was not cached, or has another number of tokens now.
        """
        places, mask = self.items.places(rows), attention_mask.bool().numpy()
        changed = np.flatnonzero(mask.sum(1) != self.items.counts[places])
        if len(changed):
            raise FeatureCacheError(
                f"The text of row {rows[changed[0]]} has {mask[changed[0]].sum()} tokens and had "
                f"{self.items.counts[places[changed[0]]]} when {self.items.folder} was made; delete the folder."
            )
        return torch.from_numpy(self.items.padded(places, mask))


def build_text_cache(
    folder: str | os.PathLike[str],
    model: MMFusionModel,
    table: Any,
    rows: npt.NDArray[np.int64],
    role: Literal["query", "product"],
    *,
    batch_size: int = 64,
) -> TextCache:
    """Computes the states of a text encoder, or opens the cache if it is there.

    Args:
        folder: Folder for caches, created; each gets a folder of its own, named by what it depends on. A cache takes
            about 4 bytes per token and unit of width.
        model: Model whose text encoder is frozen.
        table: `QueryTable` or `ProductTable` without a cache and without photos.
        rows: Rows to cache.
        role: Which tower's texts these are.
        batch_size: Texts per forward pass.

    Raises:
        FeatureCacheError: The text encoder is in training.
    """
    encoder = model.text_encoder(role)
    if any(parameter.requires_grad for parameter in encoder.parameters()):
        raise FeatureCacheError(
            f"The {role} text encoder is in training, so its states change and cannot be cached; freeze it with "
            "text_learning_rate 0."
        )
    folder, rows = Path(folder), np.unique(rows)
    texts = [
        (batch[f"{role}_input_ids"], batch[f"{role}_attention_mask"])
        for batch in (table[rows[start : start + batch_size]] for start in range(0, len(rows), batch_size))
    ]
    key = _key(model, role, texts)
    folder = folder / f"{role}_texts_{key[:16]}"
    cache = open_cache(folder, rows, key) or write_cache(folder, rows, key, _blocks(model, role, texts))
    return TextCache(cache)


def _blocks(
    model: MMFusionModel, role: Literal["query", "product"], texts: list[tuple[Tensor, Tensor]]
) -> Iterator[tuple[list[int], npt.NDArray[np.float32]]]:
    for input_ids, mask in tqdm(texts, desc=f"caching frozen {role} text features", unit="batch"):
        states = model.get_text_states(input_ids.to(model.device), mask.to(model.device), role)
        yield mask.sum(1).tolist(), states.float().cpu().numpy()[mask.bool().numpy()]


def _key(model: MMFusionModel, role: Literal["query", "product"], texts: list[tuple[Tensor, Tensor]]) -> str:
    """Hash of everything that the states depend on: the encoder, the role's vector, and the tokens."""
    digest = hashlib.sha256(role.encode())
    state = {**model.text_encoder(role).state_dict(), **({} if model.roles is None else model.roles.state_dict())}
    for name, value in sorted(state.items()):
        digest.update(name.encode() + value.float().cpu().numpy().tobytes())
    for input_ids, mask in texts:
        digest.update(input_ids.numpy().tobytes() + mask.numpy().tobytes())
    return digest.hexdigest()
