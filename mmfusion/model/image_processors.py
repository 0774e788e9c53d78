"""Image processors of pretrained vision encoders, by PIL alone: the same with torchvision and without."""

import math
from typing import Any

from PIL import Image
from transformers import CLIPImageProcessorPil, ImageProcessingMixin, PreTrainedConfig, SiglipImageProcessorPil
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from .errors import HubError, explained
from .weights import is_timm

_FIELDS = ("size", "image_mean", "image_std", "resample", "rescale_factor", "do_normalize", "do_rescale")


def load_image_processor(source: Any, **kwargs: Any) -> Any:
    """The image processor of a saved model."""
    # The two backends of transformers resize differently; vectors must not depend on whether torchvision is installed.
    return AutoImageProcessor.from_pretrained(source, backend="pil", **kwargs)


def new_image_processor(source: str, image_size: tuple[int, int] | None, trust_remote_code: bool) -> Any:
    """The image processor of a pretrained encoder, or one of fixed size in its place where it has no such thing.

    Args:
        source: Folder or Hub id.
        image_size: (height, width) that whole photos are resized to; None: as the encoder's own processor does.
        trust_remote_code: Whether code that comes with it may run.

    Raises:
        HubError: There is none, or it is to normalise pixels and names no mean or standard deviation.
    """
    processor = _own(source, trust_remote_code)
    if getattr(processor, "do_normalize", False) and not (processor.image_mean and processor.image_std):
        raise HubError(
            f"The image processor of {source} has do_normalize, but no image_mean or image_std; put those that its "
            "encoder was trained with into its preprocessor_config.json."
        )
    if image_size is None:
        return processor
    if hasattr(processor, "crop_pct"):
        # Its size is that of a crop, of which it resizes to more.
        processor = _plain({name: getattr(processor, name, None) for name in _FIELDS})
    processor.size = {"height": image_size[0], "width": image_size[1]}
    for switch in ("do_center_crop", "do_crop"):
        if hasattr(processor, switch):
            setattr(processor, switch, False)
    return processor


def _own(source: str, trust_remote_code: bool) -> Any:
    with explained(source):
        try:
            config, _ = PreTrainedConfig.get_config_dict(source)
        except OSError:
            # A folder may hold an image processor alone.
            config = {}
        if is_timm(config):
            return _of_timm(config)
        try:
            fields, _ = ImageProcessingMixin.get_image_processor_dict(source)
        except OSError as error:
            raise HubError(
                f"{source} has no image processor (preprocessor_config.json) that can be read; name the folder or "
                "repository of the vision encoder that has one."
            ) from error
        kind = str(fields.get("image_processor_type"))
        if kind.startswith("Siglip2ImageProcessor"):
            # It cuts patches of photos of any shape; the model cuts them itself, of photos of one shape.
            side = math.isqrt(fields.get("max_num_patches", 256)) * fields.get("patch_size", 16)
            return _plain({"size": {"height": side, "width": side}, **fields})
        # These exist for torchvision alone.
        if kind.startswith("DINOv3ViTImageProcessor"):
            return _plain({"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], **fields})
        if kind.startswith("Tipsv2ImageProcessor"):
            return _plain({"size": {"height": 448, "width": 448}, "do_normalize": False, **fields})
        return load_image_processor(source, trust_remote_code=trust_remote_code)


def _plain(fields: dict[str, Any]) -> Any:
    """One that resizes whole photos to a fixed size."""
    given = {name: fields[name] for name in _FIELDS if name in fields}
    if given.get("resample") is None:
        given["resample"] = Image.Resampling.BILINEAR
    return SiglipImageProcessorPil(**given)


def _of_timm(config: dict[str, Any]) -> Any:
    """What timm does to the photos of its pretrained models outside of training."""
    trained = config.get("pretrained_cfg") or config
    height, width = trained["input_size"][-2:]
    share, interpolation = trained.get("crop_pct", 0.875), str(trained.get("interpolation", "bicubic")).upper()
    fields = {
        "image_mean": trained["mean"],
        "image_std": trained["std"],
        "resample": getattr(Image.Resampling, interpolation, Image.Resampling.BICUBIC),
    }
    if trained.get("crop_mode") == "squash" or height != width:
        size = {"height": math.floor(height / share), "width": math.floor(width / share)}
    else:
        size = {"shortest_edge": math.floor(height / share)}
    crop = {"height": height, "width": width}
    return CLIPImageProcessorPil(size=size, crop_size=crop, do_convert_rgb=True, **fields)
