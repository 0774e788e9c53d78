"""Pixels of a batch, looked up, are those that the image processor gives of each photo, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from PIL import Image
from torch import Tensor

from mmfusion import MMFusionProcessor
from mmfusion.model.pixels import looks_up

_MEAN: dict[str, Any] = {"image_mean": [0.41, 0.5, 0.63], "image_std": [0.21, 0.25, 0.3]}
_CROPPED = {"size": {"shortest_edge": 37}, "crop_size": {"height": 32, "width": 30}, "do_center_crop": True, **_MEAN}
_FIXED = {"size": {"height": 33, "width": 32}, **_MEAN}
# Kind, its fields, and whether its pixels are looked up.
CASES: dict[str, tuple[str, dict[str, Any], bool]] = {
    "CLIP": ("CLIPImageProcessorPil", _CROPPED, True),
    "CLIP, crop larger than the photo": ("CLIPImageProcessorPil", {**_CROPPED, "size": {"shortest_edge": 20}}, True),
    "CLIP, neither resized nor cropped": ("CLIPImageProcessorPil", {"do_resize": False, "do_center_crop": False}, True),
    "SigLIP": ("SiglipImageProcessorPil", _FIXED, True),
    "SigLIP, another scale": ("SiglipImageProcessorPil", {**_FIXED, "rescale_factor": 1 / 127.5}, True),
    "MobileNetV2": ("MobileNetV2ImageProcessorPil", _CROPPED, True),
    "MobileNetV2, whole photos": ("MobileNetV2ImageProcessorPil", {**_FIXED, "do_center_crop": False}, True),
    "ViT": ("ViTImageProcessorPil", {**_FIXED, "resample": 0}, True),
    "ViT, not normalised": ("ViTImageProcessorPil", {**_FIXED, "do_normalize": False}, True),
    "ViT, neither scaled nor normalised": (
        "ViTImageProcessorPil",
        {**_FIXED, "do_rescale": False, "do_normalize": False},
        True,
    ),
    "DINOv2": ("BitImageProcessorPil", _CROPPED, True),
    "BEiT": ("BeitImageProcessorPil", {**_CROPPED, "size": {"height": 40, "width": 36}}, True),
    "ConvNeXT": ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 32}, "crop_pct": 0.875, **_MEAN}, True),
    "ConvNeXT, large": ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 384}, **_MEAN}, True),
    "PoolFormer": ("PoolFormerImageProcessorPil", {**_CROPPED, "crop_pct": 0.9}, True),
    "LeViT": ("LevitImageProcessorPil", _CROPPED, True),
    "SegFormer": ("SegformerImageProcessorPil", _FIXED, True),
    "longest edge": ("ViTImageProcessorPil", {**_FIXED, "size": {"shortest_edge": 30, "longest_edge": 50}}, True),
    "EfficientNet, scales around zero": ("EfficientNetImageProcessorPil", {**_FIXED, "rescale_offset": True}, False),
    "MobileViT, flips channels": ("MobileViTImageProcessorPil", {"size": {"shortest_edge": 36}}, False),
    "padded": ("ViTImageProcessorPil", {**_FIXED, "do_pad": True, "pad_size": {"height": 40, "width": 40}}, False),
}


def processor_of(name: str) -> MMFusionProcessor:
    kind, fields, _ = CASES[name]
    processor = MMFusionProcessor.__new__(MMFusionProcessor)
    processor.image_processor = getattr(tf, kind)(**fields)
    return processor


def noise(sizes: list[tuple[int, int]]) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in sizes]


def photo_by_photo(processor: MMFusionProcessor, photos: list[Image.Image]) -> Tensor:
    """The slow twin."""
    made = [processor.image_processor(images=photo, return_tensors=None)["pixel_values"][0] for photo in photos]
    return torch.stack([torch.as_tensor(array.copy()) for array in made]).float()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("threads", [1, 3])
def test_pixels_are_those_of_the_image_processor(name: str, threads: int) -> None:
    processor = processor_of(name)
    assert looks_up(processor.image_processor) is CASES[name][2]
    same = name in ("CLIP, neither resized nor cropped", "longest edge")
    sizes = [(48, 36)] * 3 if same else [(48, 36), (36, 48), (7, 90), (130, 11), (32, 33), (1, 1), (200, 150)]
    photos, before = noise(sizes), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        pixels = processor.pixel_values(photos)
    finally:
        torch.set_num_threads(before)
    assert pixels.dtype == torch.float32 and torch.equal(pixels, photo_by_photo(processor, photos))


def test_a_size_set_as_a_plain_dict_counts() -> None:
    processor = processor_of("MobileNetV2, whole photos")
    processor.image_processor.size = {"height": 20, "width": 12}
    photos = noise([(48, 36), (7, 90)])
    pixels = processor.pixel_values(photos)
    assert pixels.shape == (2, 3, 20, 12) and torch.equal(pixels, photo_by_photo(processor, photos))


def test_code_of_others_is_not_looked_up() -> None:
    class Own(tf.CLIPImageProcessorPil):
        def process_image(self, image: Any, *args: Any, **kwargs: Any) -> Any:
            return super().process_image(image.rotate(90), *args, **kwargs)

    processor = processor_of("CLIP")
    processor.image_processor = Own(**_CROPPED)
    photos = noise([(48, 36)])
    assert torch.equal(processor.pixel_values(photos), photo_by_photo(processor, photos))


def test_photos_of_several_shapes_are_an_error() -> None:
    processor = processor_of("CLIP, neither resized nor cropped")
    with pytest.raises(ValueError, match=r"gives arrays of shapes \[\(3, 36, 48\), \(3, 90, 7\)\] where all must have"):
        processor.pixel_values(noise([(48, 36), (7, 90)]))


def test_a_batch_in_which_each_product_has_a_photo_is_the_one_with_gaps() -> None:
    processor = processor_of("SigLIP")
    processor.max_photos = 2
    one, two, three = noise([(48, 36), (7, 90), (20, 20)])
    whole = processor.process_photos([[one, two], [three, one]])
    gaps = processor.process_photos([[one, two], [three]])
    assert whole["photo_mask"].all() and gaps["photo_mask"].tolist() == [[True, True], [True, False]]
    mask = gaps["photo_mask"]
    assert torch.equal(whole["pixel_values"][mask], gaps["pixel_values"][mask])
    assert torch.equal(gaps["pixel_values"][1, 1], torch.zeros(3, 33, 32))
