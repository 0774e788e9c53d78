"""Random views of a photo for training: another crop, mirrored or not; its colours are left alone.

Colour jitter and grayscale are what most contrastive recipes use, and they destroy what visual queries ask for.
"""

import zlib

import numpy as np
from PIL import Image, ImageOps

_LEAST_SIDE, _MOST_SIDE = 0.72, 0.95


def photo_view(photo: Image.Image, product_id: str, view: int) -> Image.Image:
    """One of the views of a product's photo; the same arguments always give the same pixels.

    Args:
        photo: RGB image.
        product_id: Whose photo it is.
        view: 0 is the photo as it is. Every other number is a crop of 72 to 95 % of each side, mirrored or not.
    """
    if view == 0:
        return photo
    rng = np.random.default_rng([zlib.crc32(product_id.encode()), view])
    share = rng.uniform(_LEAST_SIDE, _MOST_SIDE)
    width, height = (max(1, round(side * share)) for side in photo.size)
    left, top = (
        int(rng.integers(0, whole - part + 1)) for whole, part in zip(photo.size, (width, height), strict=True)
    )
    cropped = photo.crop((left, top, left + width, top + height))
    return ImageOps.mirror(cropped) if rng.random() < 0.5 else cropped
