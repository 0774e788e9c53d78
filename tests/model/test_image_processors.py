"""Image processors of pretrained encoders of any family: one shape for every photo, the same after saving."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_encoders import bert

from mmfusion import MMFusionConfig, MMFusionModel
from mmfusion.model.errors import HubError
from mmfusion.model.image_processors import new_image_processor
from mmfusion.model.processing_mmfusion import MMFusionProcessor
from mmfusion.model.weights import check_timm

_MEAN: dict[str, Any] = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3]}
_CROPPED = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True}
_FIXED = {"size": {"height": 32, "width": 32}}
KINDS: dict[str, dict[str, Any]] = {
    "ViTImageProcessor": {**_FIXED, **_MEAN},
    "BitImageProcessor": {**_CROPPED, **_MEAN},
    "CLIPImageProcessor": {**_CROPPED, **_MEAN},
    "ConvNextImageProcessor": {"size": {"shortest_edge": 32}, "crop_pct": 0.875, **_MEAN},
    "PoolFormerImageProcessor": {**_CROPPED, "crop_pct": 0.9, **_MEAN},
    "LevitImageProcessor": {**_CROPPED, **_MEAN},
    "MobileViTImageProcessor": {**_CROPPED, "do_flip_channel_order": True},
    "EfficientNetImageProcessor": {**_FIXED, **_MEAN},
    "PvtImageProcessor": {**_FIXED, **_MEAN},
    "DINOv3ViTImageProcessorFast": {**_FIXED, **_MEAN},
    "Siglip2ImageProcessor": {"patch_size": 8, "max_num_patches": 16, **_MEAN},
}


def folder(path: Path, fields: dict[str, Any], config: dict[str, Any] | None = None) -> str:
    (path / "preprocessor_config.json").write_text(json.dumps(fields))
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    return str(path)


def photos() -> list[Image.Image]:
    sizes = ((40, 30), (30, 90), (64, 64))
    return [Image.linear_gradient("L").resize(size).convert("RGB") for size in sizes]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [None, (24, 40)])
def test_every_photo_has_one_shape(kind: str, size: tuple[int, int] | None, tmp_path: Path) -> None:
    source = folder(tmp_path, {"image_processor_type": kind, "do_normalize": "Mobile" not in kind, **KINDS[kind]})
    processor = MMFusionProcessor.__new__(MMFusionProcessor)
    processor.image_processor = new_image_processor(source, size, False)
    pixels = processor.pixel_values(photos())
    assert pixels.shape == (3, 3, *(size or (32, 32))) and pixels.std() > 0.05
    if size is not None and kind not in ("MobileViTImageProcessor", "EfficientNetImageProcessor"):
        grey = Image.new("RGB", (50, 20), (102, 102, 102))
        expected = (torch.full((3,), 0.4) - torch.tensor(_MEAN["image_mean"])) / torch.tensor(_MEAN["image_std"])
        assert torch.allclose(processor.pixel_values([grey])[0, :, 5, 5], expected, atol=1e-5)


def test_flipped_channels_reach_the_model_flipped(tmp_path: Path) -> None:
    kind = "MobileViTImageProcessor"
    source = folder(tmp_path, {"image_processor_type": kind, **KINDS[kind]})
    processor = MMFusionProcessor.__new__(MMFusionProcessor)
    processor.image_processor = new_image_processor(source, None, False)
    blue_first = processor.pixel_values([Image.new("RGB", (40, 40), (255, 51, 0))])[0, :, 0, 0]
    assert torch.allclose(blue_first, torch.tensor([0.0, 0.2, 1.0]), atol=1e-6)


def test_a_processor_without_mean_and_a_folder_without_processor_are_one_line_each(tmp_path: Path) -> None:
    for kind in ("ViTImageProcessor", "Siglip2ImageProcessor"):
        source = folder(tmp_path, {"image_processor_type": kind, **_FIXED, "do_normalize": True, "image_mean": None})
        with pytest.raises(HubError, match=r"has do_normalize, but no image_mean or image_std; put those") as caught:
            new_image_processor(source, None, False)
        assert "\n" not in str(caught.value)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(HubError, match=r"has no image processor \(preprocessor_config.json\)") as caught:
        new_image_processor(str(tmp_path), None, False)
    assert "\n" not in str(caught.value)


_TIMM = {
    "architecture": "resnet10t",
    "pretrained_cfg": {
        **{"input_size": [3, 32, 32], "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "crop_pct": 0.8},
        **{"interpolation": "bilinear", "crop_mode": "center"},
    },
}


def test_photos_for_a_timm_model_are_cut_as_timm_does_without_timm(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(_TIMM))
    made = new_image_processor(str(tmp_path), None, False)
    assert made.size.shortest_edge == 40 and made.crop_size.height == made.crop_size.width == 32
    assert made.resample == Image.Resampling.BILINEAR and list(made.image_std) == [0.2, 0.25, 0.3]
    _TIMM["pretrained_cfg"]["crop_mode"] = "squash"  # type: ignore[index]
    (tmp_path / "config.json").write_text(json.dumps(_TIMM))
    assert new_image_processor(str(tmp_path), None, False).size.height == 40


def test_a_timm_model_without_timm_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmfusion.model.weights.find_spec", lambda name: None)
    (tmp_path / "config.json").write_text(json.dumps(_TIMM))
    config = MMFusionConfig(vision_config={"model_type": "timm_wrapper", "architecture": "resnet10t"})
    assert config.to_dict()["vision_config"]["architecture"] == "resnet10t"
    for load in (lambda: MMFusionModel.from_backbones(bert(), str(tmp_path)), lambda: MMFusionModel(config)):
        with pytest.raises(HubError, match=r"is a timm model, for which timm and torchvision must") as caught:
            load()
        assert "\n" not in str(caught.value)
    monkeypatch.setattr("mmfusion.model.weights.find_spec", lambda name: name)
    check_timm("resnet10t")
