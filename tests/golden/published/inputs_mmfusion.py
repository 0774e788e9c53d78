"""Checks and masks of what the model is given."""

import torch
from torch import Tensor


def not_empty(attention_mask: Tensor) -> Tensor:
    """The mask (rows, length) with the first token of each row that has none."""
    # Attention over a row without any token is NaN, so a missing text is encoded as its first token and masked later.
    first = torch.zeros_like(attention_mask)
    first[:, 0] = 1
    return torch.where(attention_mask.any(1, keepdim=True), attention_mask, first)


def check_mask(input_ids: Tensor, attention_mask: Tensor) -> None:
    """Raises a ValueError if ids and mask, (rows, length) each, differ in shape."""
    if attention_mask.shape != input_ids.shape:
        raise ValueError(f"attention_mask has shape {tuple(attention_mask.shape)}; input_ids {tuple(input_ids.shape)}.")


def check_photos(
    pixel_values: Tensor | None, photo_mask: Tensor | None, activations: Tensor | None, frozen_blocks: int
) -> None:
    """Raises a ValueError for promised photos that are missing, activations of no frozen block, or a wrong shape."""
    if pixel_values is None and activations is None and photo_mask is not None and photo_mask.any():
        raise ValueError("photo_mask says that there are photos, but there are none; give pixel_values or no mask.")
    if activations is not None and not frozen_blocks:
        raise ValueError("vision_activations replace what a frozen prefix computes; call freeze_vision(blocks) first.")
    if activations is None and pixel_values is not None and pixel_values.ndim != 5:
        raise ValueError(
            f"pixel_values has shape {tuple(pixel_values.shape)}; products need (P, photos, channels, height, width), "
            "with one photo each pixel_values.unsqueeze(1)."
        )


def mask_of_photos(photos: Tensor | None, mask: Tensor | None, like: Tensor) -> Tensor:
    """(P, photos) bool, True where there is a photo; (P, 1) False if there are none.

    Raises:
        ValueError: Photos, mask and the P product texts `like` do not fit together.
    """
    products = len(like)
    if photos is None:
        return torch.zeros(products, 1, dtype=torch.bool, device=like.device)
    if len(photos) != products:
        raise ValueError(
            f"There are {products} product texts but photos of {len(photos)} products; give one row for each."
        )
    if mask is None:
        return torch.ones(photos.shape[:2], dtype=torch.bool, device=photos.device)
    if mask.shape != photos.shape[:2]:
        raise ValueError(f"photo_mask has shape {tuple(mask.shape)}; the photos need {tuple(photos.shape[:2])}.")
    return mask.bool()
