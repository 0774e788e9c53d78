"""Vision encoders by themselves. Beside each stands what its classifier, or its training with texts, reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers as tf

from families.family import IMAGE, VISION, family, save
from families.features import by_hand, first, grid, mean, of_photos, patches, pooler, projected

_CLIP_COLOURS: dict[str, Any] = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_IMAGENET: dict[str, Any] = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
_HALF: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
_SIDES = {"height": IMAGE, "width": IMAGE}
_ALL_STEPS = {"do_resize": True, "do_rescale": True, "do_normalize": True}


def processor(name: str, **fields: Any) -> dict[str, Any]:
    """preprocessor_config.json of photos that are resized to the encoder's size, whole, around half."""
    kind = {"image_processor_type": f"{name}ImageProcessor"}
    return {**kind, **_ALL_STEPS, **_HALF, "resample": 2, "size": _SIDES, **fields}


CLIP_PROCESSOR: dict[str, Any] = {
    "feature_extractor_type": "CLIPFeatureExtractor",
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    **_CLIP_COLOURS,
    "crop_size": IMAGE,
    "resample": 3,
    "size": IMAGE,
}
BLIP_PROCESSOR = processor("Blip", **_CLIP_COLOURS, resample=3)
_VIT = processor("ViT")
_CROPPED = {"do_center_crop": True, "crop_size": _SIDES, "size": {"shortest_edge": 40}}
_DINO = processor("Bit", **_IMAGENET, **_CROPPED, do_convert_rgb=True, resample=3)
_DINOV3 = processor("DINOv3ViT", **_IMAGENET, image_processor_type="DINOv3ViTImageProcessorFast")
_CONVNEXT = processor("ConvNext", **_IMAGENET, crop_pct=0.875, resample=3, size={"shortest_edge": IMAGE})
_BEIT = {"do_center_crop": False, "do_resize": True, "do_normalize": True, **_HALF, "resample": 2, "size": IMAGE}
_BY_HAND = by_hand(_IMAGENET["image_mean"], _IMAGENET["image_std"], IMAGE)

EFFICIENTNET: dict[str, Any] = {
    "width_coefficient": 0.1,
    "depth_coefficient": 0.1,
    "depth_divisor": 4,
    "hidden_dim": 128,
    "image_size": IMAGE,
    "in_channels": [8, 8],
    "out_channels": [8, 16],
    "kernel_sizes": [3, 3],
    "strides": [1, 2],
    "num_block_repeats": [1, 1],
    "expand_ratios": [1, 2],
    "depthwise_padding": [],
}

CLASS_TOKEN = "class token"
GRID = "mean over positions"
PATCHES = "mean over patches, without the class token"


@family("ViT", photo=CLASS_TOKEN, photos=of_photos(tf.ViTModel, first), common=True)
def vit(folder: Path) -> None:
    save(folder, tf.ViTModel(tf.ViTConfig(**VISION)), image_processor=_VIT)


@family("ViT, saved as a classifier", photo=CLASS_TOKEN, photos=of_photos(tf.ViTModel, first))
def vit_classifier(folder: Path) -> None:
    save(folder, tf.ViTForImageClassification(tf.ViTConfig(**VISION)), image_processor=_VIT)


@family("DeiT", photo=CLASS_TOKEN, photos=of_photos(tf.DeiTModel, first))
def deit(folder: Path) -> None:
    fields = {"feature_extractor_type": "DeiTFeatureExtractor", "do_center_crop": True, "crop_size": IMAGE, "size": 40}
    save(folder, tf.DeiTModel(tf.DeiTConfig(**VISION)), image_processor={**fields, **_ALL_STEPS, **_IMAGENET})


@family("BEiT", photo="its pooler: normalised mean over patches", photos=of_photos(tf.BeitModel, pooler))
def beit(folder: Path) -> None:
    model = tf.BeitModel(tf.BeitConfig(**VISION, use_mean_pooling=True))
    save(folder, model, image_processor={"image_processor_type": "BeitImageProcessor", **_BEIT})


@family("data2vec (vision)", photo=PATCHES, photos=of_photos(tf.Data2VecVisionModel, patches))
def data2vec_vision(folder: Path) -> None:
    # Data2VecVisionForImageClassification reads the mean over patches; the base model has no pooler.
    model = tf.Data2VecVisionModel(tf.Data2VecVisionConfig(**VISION))
    save(folder, model, image_processor={"feature_extractor_type": "BeitFeatureExtractor", **_BEIT})


@family("DINOv2", photo=CLASS_TOKEN, photos=of_photos(tf.Dinov2Model, first), common=True)
def dinov2(folder: Path) -> None:
    save(folder, tf.Dinov2Model(tf.Dinov2Config(**{**VISION, "mlp_ratio": 2})), image_processor=_DINO)


@family("DINOv2 with registers", photo=CLASS_TOKEN, photos=of_photos(tf.Dinov2WithRegistersModel, first))
def dinov2_registers(folder: Path) -> None:
    config = tf.Dinov2WithRegistersConfig(**{**VISION, "mlp_ratio": 2, "num_register_tokens": 4})
    save(folder, tf.Dinov2WithRegistersModel(config), image_processor=_DINO)


@family("DINOv3 (ViT)", photo=CLASS_TOKEN, photos=of_photos(tf.DINOv3ViTModel, first, _BY_HAND), common=True)
def dinov3_vit(folder: Path) -> None:
    model = tf.DINOv3ViTModel(tf.DINOv3ViTConfig(**VISION, num_register_tokens=4))
    save(folder, model, image_processor=_DINOV3)


@family("DINOv3 (ConvNeXt)", photo="its normalised " + GRID, photos=of_photos(tf.DINOv3ConvNextModel, pooler, _BY_HAND))
def dinov3_convnext(folder: Path) -> None:
    config = tf.DINOv3ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], image_size=IMAGE)
    save(folder, tf.DINOv3ConvNextModel(config), image_processor=_DINOV3)


def _mae(folder: Path, **config: float) -> None:
    fields = {"feature_extractor_type": "ViTFeatureExtractor", "size": IMAGE}
    model = tf.ViTMAEModel(tf.ViTMAEConfig(**VISION, **config))
    save(folder, model, image_processor={**fields, **_ALL_STEPS, **_IMAGENET})


@family("ViT-MAE (masks at random, in evaluation mode, too)", photo="-", refused="mask|at random")
def vit_mae(folder: Path) -> None:
    _mae(folder)


@family("ViT-MAE with a mask_ratio of 0 in its config", photo=CLASS_TOKEN, photos=of_photos(tf.ViTMAEModel, first))
def vit_mae_unmasked(folder: Path) -> None:
    _mae(folder, mask_ratio=0.0)


@family("ViT-MSN", photo=CLASS_TOKEN, photos=of_photos(tf.ViTMSNModel, first))
def vit_msn(folder: Path) -> None:
    save(folder, tf.ViTMSNModel(tf.ViTMSNConfig(**VISION)), image_processor=_VIT)


@family("I-JEPA", photo="mean over patches (it has no class token)", photos=of_photos(tf.IJepaModel, mean))
def ijepa(folder: Path) -> None:
    save(folder, tf.IJepaModel(tf.IJepaConfig(**VISION)), image_processor=_VIT)


_WINDOWS: dict[str, Any] = {"image_size": IMAGE, "patch_size": 2, "embed_dim": 8, "depths": [1, 1]}


@family("Swin", photo=GRID, photos=of_photos(tf.SwinModel, pooler))
def swin(folder: Path) -> None:
    config = tf.SwinConfig(**_WINDOWS, num_heads=[2, 2], window_size=4)
    save(folder, tf.SwinModel(config), image_processor=_VIT)


@family("Swin V2", photo=GRID, photos=of_photos(tf.Swinv2Model, pooler))
def swinv2(folder: Path) -> None:
    config = tf.Swinv2Config(**_WINDOWS, num_heads=[2, 2], window_size=4)
    save(folder, tf.Swinv2Model(config), image_processor=_VIT)


_STAGES: dict[str, Any] = {"hidden_sizes": [8, 8, 16], "depths": [1, 1, 1]}


@family("ConvNeXt", photo="its normalised " + GRID, photos=of_photos(tf.ConvNextModel, pooler), common=True)
def convnext(folder: Path) -> None:
    save(folder, tf.ConvNextModel(tf.ConvNextConfig(**_STAGES, num_stages=3)), image_processor=_CONVNEXT)


@family("ConvNeXt V2", photo="its normalised " + GRID, photos=of_photos(tf.ConvNextV2Model, pooler))
def convnextv2(folder: Path) -> None:
    save(folder, tf.ConvNextV2Model(tf.ConvNextV2Config(**_STAGES, num_stages=3)), image_processor=_CONVNEXT)


@family("ResNet", photo=GRID, photos=of_photos(tf.ResNetModel, pooler), common=True)
def resnet(folder: Path) -> None:
    fields = {"feature_extractor_type": "ConvNextFeatureExtractor", "crop_pct": 0.875, "resample": 3, "size": IMAGE}
    model = tf.ResNetModel(tf.ResNetConfig(embedding_size=8, **_STAGES, layer_type="basic"))
    save(folder, model, image_processor={**fields, **_ALL_STEPS, **_IMAGENET})


@family("ResNet, saved as a classifier", photo=GRID, photos=of_photos(tf.ResNetModel, pooler))
def resnet_classifier(folder: Path) -> None:
    model = tf.ResNetForImageClassification(tf.ResNetConfig(embedding_size=8, **_STAGES, layer_type="basic"))
    save(folder, model, image_processor=_CONVNEXT)


@family("RegNet", photo=GRID, photos=of_photos(tf.RegNetModel, pooler))
def regnet(folder: Path) -> None:
    config = tf.RegNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], groups_width=8)
    save(folder, tf.RegNetModel(config), image_processor=_CONVNEXT)


@family("EfficientNet", photo=GRID, photos=of_photos(tf.EfficientNetModel, pooler))
def efficientnet(folder: Path) -> None:
    fields = processor("EfficientNet", **_IMAGENET, resample=0, rescale_offset=False, include_top=True)
    save(folder, tf.EfficientNetModel(tf.EfficientNetConfig(**EFFICIENTNET)), image_processor=fields)


@family("MobileNet V1", photo=GRID, photos=of_photos(tf.MobileNetV1Model, pooler))
def mobilenet_v1(folder: Path) -> None:
    config = tf.MobileNetV1Config(depth_multiplier=0.1, image_size=IMAGE, min_depth=4)
    save(folder, tf.MobileNetV1Model(config), image_processor=processor("MobileNetV1", **_CROPPED))


@family("MobileNet V2", photo=GRID, photos=of_photos(tf.MobileNetV2Model, pooler))
def mobilenet_v2(folder: Path) -> None:
    config = tf.MobileNetV2Config(depth_multiplier=0.1, depth_divisible_by=4, min_depth=4, image_size=IMAGE)
    save(folder, tf.MobileNetV2Model(config), image_processor=processor("MobileNetV2", **_CROPPED))


_MOBILEVIT = processor("MobileViT", **_CROPPED, do_normalize=False, do_flip_channel_order=True)


@family("MobileViT", photo=GRID, photos=of_photos(tf.MobileViTModel, pooler))
def mobilevit(folder: Path) -> None:
    widths = {"hidden_sizes": [16, 16, 16], "neck_hidden_sizes": [8, 8, 8, 8, 8, 8, 24]}
    model = tf.MobileViTModel(tf.MobileViTConfig(image_size=IMAGE, **widths, num_attention_heads=4))
    save(folder, model, image_processor=_MOBILEVIT)


@family("MobileViT V2", photo=GRID, photos=of_photos(tf.MobileViTV2Model, pooler))
def mobilevitv2(folder: Path) -> None:
    widths = {"base_attn_unit_dims": [16, 24, 32], "n_attn_blocks": [1, 1, 1]}
    model = tf.MobileViTV2Model(tf.MobileViTV2Config(image_size=64, **widths, width_multiplier=0.5))
    crop = {"crop_size": {"height": 64, "width": 64}, "size": {"shortest_edge": 72}}
    save(folder, model, image_processor={**_MOBILEVIT, **crop})


@family("Hiera", photo="its normalised " + GRID, photos=of_photos(tf.HieraModel, pooler))
def hiera(folder: Path) -> None:
    config = tf.HieraConfig(
        image_size=[64, 64],
        embed_dim=8,
        depths=[1, 1],
        num_heads=[1, 2],
        num_layers=2,
        num_query_pool=1,
        masked_unit_size=[8, 8],
        query_stride=[2, 2],
    )
    crop = {**_DINO, "crop_size": {"height": 64, "width": 64}, "size": {"shortest_edge": 72}}
    save(folder, tf.HieraModel(config), image_processor=crop)


@family("PVT v2", photo=GRID, photos=of_photos(tf.PvtV2Model, grid))
def pvt_v2(folder: Path) -> None:
    # PvtV2ForImageClassification averages the last stage.
    config = tf.PvtV2Config(
        image_size=IMAGE,
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 2, 2],
        sr_ratios=[8, 4, 2, 1],
    )
    save(folder, tf.PvtV2Model(config), image_processor=processor("Pvt", **_IMAGENET))


@family("LeViT", photo=GRID, photos=of_photos(tf.LevitModel, mean))
def levit(folder: Path) -> None:
    # LevitForImageClassification averages the last states.
    config = tf.LevitConfig(
        image_size=64, hidden_sizes=[16, 16, 16], num_attention_heads=[2, 2, 2], depths=[1, 1, 1], key_dim=[8, 8, 8]
    )
    crop = {"do_center_crop": True, "crop_size": {"height": 64, "width": 64}, "size": {"shortest_edge": 64}}
    save(folder, tf.LevitModel(config), image_processor=processor("Levit", **_IMAGENET, **crop))


@family("PoolFormer", photo=GRID, photos=of_photos(tf.PoolFormerModel, grid))
def poolformer(folder: Path) -> None:
    # PoolFormerForImageClassification averages; the norm before that is part of the classifier.
    config = tf.PoolFormerConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1])
    fields = processor("PoolFormer", **_IMAGENET, crop_pct=0.9, crop_size=_SIDES, size={"shortest_edge": IMAGE})
    save(folder, tf.PoolFormerModel(config), image_processor=fields)


@family("FocalNet", photo=GRID, photos=of_photos(tf.FocalNetModel, pooler))
def focalnet(folder: Path) -> None:
    sizes = {**_WINDOWS, "patch_size": 4, "hidden_sizes": [8, 16]}
    model = tf.FocalNetModel(tf.FocalNetConfig(**sizes, focal_levels=[2, 2], focal_windows=[3, 3]))
    save(folder, model, image_processor=_DINO)


@family("AIMv2 (vision)", photo="its attention pooling head", photos=of_photos(tf.Aimv2VisionModel, pooler))
def aimv2_vision(folder: Path) -> None:
    model = tf.Aimv2VisionModel(tf.Aimv2VisionConfig(**VISION, is_native=False, use_head=True))
    save(folder, model, image_processor=CLIP_PROCESSOR)


@family("MLCD", photo="its normalised " + CLASS_TOKEN, photos=of_photos(tf.MLCDVisionModel, pooler))
def mlcd(folder: Path) -> None:
    save(folder, tf.MLCDVisionModel(tf.MLCDVisionConfig(**VISION)), image_processor=CLIP_PROCESSOR)


@family("Pixio", photo="mean over its class tokens", photos=of_photos(tf.PixioModel, pooler))
def pixio(folder: Path) -> None:
    config = tf.PixioConfig(**{**VISION, "mlp_ratio": 2, "n_cls_tokens": 8})
    save(folder, tf.PixioModel(config), image_processor=_DINO)


@family("CLIP (vision alone)", photo="its normalised " + CLASS_TOKEN, photos=of_photos(tf.CLIPVisionModel, pooler))
def clip_vision(folder: Path) -> None:
    save(folder, tf.CLIPVisionModel(tf.CLIPVisionConfig(**VISION)), image_processor=CLIP_PROCESSOR)


@family(
    "CLIP (vision alone, with its projection)",
    photo="its normalised class token, its own projection",
    photos=of_photos(tf.CLIPVisionModelWithProjection, projected("image_embeds")),
)
def clip_vision_projection(folder: Path) -> None:
    model = tf.CLIPVisionModelWithProjection(tf.CLIPVisionConfig(**VISION, projection_dim=20))
    save(folder, model, image_processor=CLIP_PROCESSOR)


@family("SigLIP (vision alone)", photo="its attention pooling head", photos=of_photos(tf.SiglipVisionModel, pooler))
def siglip_vision(folder: Path) -> None:
    save(folder, tf.SiglipVisionModel(tf.SiglipVisionConfig(**VISION)), image_processor=processor("Siglip"))


@family("timm (through transformers' wrapper)", photo="what timm's classifier reads", needs=("timm", "torchvision"))
def timm_wrapper(folder: Path) -> None:
    import timm  # type: ignore[import-not-found]

    config = tf.TimmWrapperConfig.from_dict(
        {"architecture": "resnet10t", "pretrained_cfg": timm.create_model("resnet10t").pretrained_cfg}
    )
    save(folder, tf.TimmWrapperModel(config))
    config.save_pretrained(folder)
