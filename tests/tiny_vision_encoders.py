"""Tiny random vision encoders of many families, each with the vector that it was trained to give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as tf
from torch import Tensor, nn
from transformers import PreTrainedModel

SIZE = 32
_VIT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": SIZE,
    "patch_size": 8,
}
_DINO = {**_VIT, "mlp_ratio": 2}
_TEXT = {
    **{name: _VIT[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")},
    **{"vocab_size": 60, "max_position_embeddings": 40, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
}
_STAGES = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
_SWIN: dict[str, Any] = {
    **{"image_size": SIZE, "patch_size": 2, "embed_dim": 8},
    **{"depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
}
_EFFICIENT: dict[str, Any] = {
    **{"width_coefficient": 0.1, "depth_coefficient": 0.1, "depth_divisor": 4, "hidden_dim": 128, "image_size": SIZE},
    **{"in_channels": [8, 8], "out_channels": [8, 16], "kernel_sizes": [3, 3], "strides": [1, 2]},
    **{"num_block_repeats": [1, 1], "expand_ratios": [1, 2], "depthwise_padding": []},
    "batch_norm_eps": 1e-9,
}
_HIERA: dict[str, Any] = {
    **{"image_size": [64, 64], "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "num_layers": 2},
    **{"num_query_pool": 1, "masked_unit_size": [8, 8], "query_stride": [2, 2]},
}
_LEVIT = {"image_size": 64, "hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 2, 2], "depths": [1, 1, 1]}
_MOBILEVIT = {"hidden_sizes": [16, 16, 16], "neck_hidden_sizes": [8, 8, 8, 8, 8, 8, 24], "num_attention_heads": 4}

Own = Callable[[Any, Tensor], Tensor]


def _class_token(model: Any, pixels: Tensor) -> Tensor:
    return model(pixels).last_hidden_state[:, 0]


def _mean(model: Any, pixels: Tensor) -> Tensor:
    return model(pixels).last_hidden_state.flatten(2).mean(2)


def _mean_of_sequence(skipped: int) -> Own:
    return lambda model, pixels: model(pixels).last_hidden_state[:, skipped:].mean(1)


def _pooler(model: Any, pixels: Tensor) -> Tensor:
    return model(pixels).pooler_output.flatten(1)


def _features(model: Any, pixels: Tensor) -> Tensor:
    output = model.get_image_features(pixel_values=pixels)
    return output if isinstance(output, Tensor) else output.pooler_output


def _dual(name: str, vision: dict[str, Any] | None = None, **fields: Any) -> PreTrainedModel:
    config = getattr(tf, f"{name}Config")(text_config=_TEXT, vision_config=vision or _VIT, **fields)
    return getattr(tf, f"{name}Model")(config)


def _vision_text() -> PreTrainedModel:
    halves = (tf.ViTConfig(**_VIT), tf.BertConfig(**_TEXT))
    return tf.VisionTextDualEncoderModel(
        tf.VisionTextDualEncoderConfig.from_vision_text_configs(*halves, projection_dim=20)
    )


def _classifier(name: str, **fields: Any) -> PreTrainedModel:
    return getattr(tf, f"{name}ForImageClassification")(getattr(tf, f"{name}Config")(**fields))


def _alone(name: str, **fields: Any) -> PreTrainedModel:
    return getattr(tf, f"{name}Model")(getattr(tf, f"{name}Config")(**fields))


# Builder of the model, how it pools by itself, and the `image_pooling` that says so.
ENCODERS: dict[str, tuple[Callable[[], PreTrainedModel], Own, str]] = {
    "vit": (lambda: _alone("ViT", **_VIT), _class_token, "cls"),
    "vit without pooler": (lambda: tf.ViTModel(tf.ViTConfig(**_VIT), add_pooling_layer=False), _class_token, "cls"),
    "deit": (lambda: _alone("DeiT", **_VIT), _class_token, "cls"),
    "vit_msn": (lambda: _alone("ViTMSN", **_VIT), _class_token, "cls"),
    "ijepa": (lambda: _alone("IJepa", **_VIT), _mean_of_sequence(0), "mean"),
    "beit": (lambda: _alone("Beit", **_VIT, use_mean_pooling=True), _pooler, "pooler"),
    "beit, class token": (lambda: _alone("Beit", **_VIT, use_mean_pooling=False), _class_token, "pooler"),
    "data2vec": (lambda: _alone("Data2VecVision", **_VIT), _mean_of_sequence(1), "patches"),
    "dinov2": (lambda: _alone("Dinov2", **_DINO), _class_token, "cls"),
    "dinov2 with registers": (
        lambda: _alone("Dinov2WithRegisters", **_DINO, num_register_tokens=4),
        _class_token,
        "cls",
    ),
    "dinov3_vit": (lambda: _alone("DINOv3ViT", **_VIT, num_register_tokens=4), _class_token, "cls"),
    "dinov3_convnext": (lambda: _alone("DINOv3ConvNext", **_STAGES, image_size=SIZE), _pooler, "pooler"),
    "pixio": (
        lambda: _alone("Pixio", **_DINO, n_cls_tokens=3),
        lambda model, pixels: model(pixels).last_hidden_state[:, :3].mean(1),
        "pooler",
    ),
    "mlcd": (lambda: _alone("MLCDVision", **_VIT), _pooler, "pooler"),
    "swin": (lambda: _alone("Swin", **_SWIN), _mean_of_sequence(0), "pooler"),
    "swinv2": (lambda: _alone("Swinv2", **_SWIN), _mean_of_sequence(0), "pooler"),
    "focalnet": (
        lambda: _alone(
            "FocalNet",
            **{"image_size": SIZE, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "hidden_sizes": [8, 16]},
            **{"focal_levels": [2, 2], "focal_windows": [3, 3]},
        ),
        _mean_of_sequence(0),
        "pooler",
    ),
    "hiera": (lambda: _alone("Hiera", **_HIERA), _pooler, "pooler"),
    "levit": (lambda: _alone("Levit", **_LEVIT, key_dim=[8, 8, 8]), _mean_of_sequence(0), "pooler"),
    "pvt_v2": (
        lambda: _alone("PvtV2", image_size=SIZE, **_STAGES, num_attention_heads=[1, 2, 2, 2], sr_ratios=[8, 4, 2, 1]),
        _mean,
        "mean",
    ),
    "poolformer": (lambda: _alone("PoolFormer", **_STAGES), _mean, "mean"),
    "convnext": (
        lambda: _alone("ConvNext", hidden_sizes=[8, 8, 16], depths=[1, 1, 1], num_stages=3),
        _pooler,
        "pooler",
    ),
    "convnextv2": (
        lambda: _alone("ConvNextV2", hidden_sizes=[8, 8, 16], depths=[1, 1, 1], num_stages=3),
        _pooler,
        "pooler",
    ),
    "resnet": (
        lambda: _alone("ResNet", embedding_size=8, hidden_sizes=[8, 8, 16], depths=[1, 1, 1], layer_type="basic"),
        _mean,
        "pooler",
    ),
    "regnet": (lambda: _alone("RegNet", embedding_size=8, **_STAGES, groups_width=8), _mean, "pooler"),
    "bit": (lambda: _alone("Bit", **_STAGES, embedding_size=8, num_groups=4), _mean, "pooler"),
    "efficientnet": (lambda: _alone("EfficientNet", **_EFFICIENT), _mean, "pooler"),
    "mobilenet_v1": (
        lambda: _alone("MobileNetV1", depth_multiplier=0.1, min_depth=4, image_size=SIZE),
        _mean,
        "pooler",
    ),
    "mobilenet_v2": (
        lambda: _alone("MobileNetV2", depth_multiplier=0.1, depth_divisible_by=4, min_depth=4, image_size=SIZE),
        _mean,
        "pooler",
    ),
    "mobilevit": (lambda: _alone("MobileViT", **_MOBILEVIT, image_size=SIZE), _mean, "pooler"),
    "pvt": (
        lambda: _alone(
            "Pvt", **_STAGES, image_size=SIZE, num_attention_heads=[1, 2, 2, 2], sequence_reduction_ratios=[8, 4, 2, 1]
        ),
        _class_token,
        "cls",
    ),
    "segformer": (
        lambda: _alone("Segformer", **_STAGES, num_attention_heads=[1, 2, 2, 2], decoder_hidden_size=8),
        _mean,
        "mean",
    ),
    "swiftformer": (
        lambda: _alone("SwiftFormer", image_size=64, depths=[1, 1, 1, 1], embed_dims=[8, 8, 16, 16]),
        _mean,
        "mean",
    ),
    "align": (lambda: _dual("Align", _EFFICIENT, projection_dim=128), _features, "pooler"),
    "groupvit": (
        lambda: _alone(
            "GroupViTVision",
            **{**_VIT, "depths": [1, 1, 1], "num_group_tokens": [4, 2, 0], "num_output_groups": [4, 2, 0]},
        ),
        _pooler,
        "pooler",
    ),
    "clip": (lambda: _dual("CLIP", projection_dim=20), _features, "pooler"),
    "metaclip2": (lambda: _dual("MetaClip2", projection_dim=20), _features, "pooler"),
    "chinese_clip": (lambda: _dual("ChineseCLIP", projection_dim=20), _features, "pooler"),
    "altclip": (lambda: _dual("AltCLIP", projection_dim=20), _features, "pooler"),
    "clipseg": (lambda: _dual("CLIPSeg", projection_dim=20), _features, "pooler"),
    "owlvit": (lambda: _dual("OwlViT", projection_dim=20), _features, "pooler"),
    "siglip": (lambda: _dual("Siglip"), _features, "pooler"),
    "aimv2": (
        lambda: _dual("Aimv2", {**_VIT, "use_head": True}, projection_dim=20),
        _features,
        "pooler",
    ),
    "tipsv2": (
        lambda: _dual("Tipsv2", {k: v for k, v in _VIT.items() if k != "intermediate_size"}),
        _features,
        "pooler",
    ),
    "vision_text": (_vision_text, _features, "pooler"),
    "flava": (
        lambda: tf.FlavaModel(
            tf.FlavaConfig(image_config=_VIT, text_config=_TEXT, multimodal_config=_TEXT, projection_dim=20)
        ),
        lambda model, pixels: model.get_image_features(pixel_values=pixels).pooler_output[:, 0],
        "cls",
    ),
    "blip": (
        lambda: _dual("Blip", projection_dim=20),
        _features,
        "pooler",
    ),
    "blip for retrieval": (
        lambda: tf.BlipForImageTextRetrieval(
            tf.BlipConfig(text_config=_TEXT, vision_config=_VIT, image_text_hidden_size=20)
        ),
        lambda model, pixels: model.vision_proj(model.vision_model(pixels).last_hidden_state[:, 0]),
        "cls",
    ),
    "clip with projection": (
        lambda: tf.CLIPVisionModelWithProjection(tf.CLIPVisionConfig(**_VIT, projection_dim=20)),
        lambda model, pixels: model(pixels).image_embeds,
        "pooler",
    ),
    "vit classifier": (
        lambda: _classifier("ViT", **_VIT),
        lambda model, pixels: model.vit(pixels).last_hidden_state[:, 0],
        "cls",
    ),
    "siglip classifier": (
        lambda: _classifier("Siglip", vision_config=_VIT),
        lambda model, pixels: model.vision_model(pixels).last_hidden_state.mean(1),
        "mean",
    ),
    "clip classifier": (
        lambda: _classifier("CLIP", vision_config=_VIT),
        lambda model, pixels: model.vision_model(pixels).last_hidden_state[:, 1:].mean(1),
        "patches",
    ),
    "data2vec classifier": (
        lambda: _classifier("Data2VecVision", **_VIT, use_mean_pooling=True),
        lambda model, pixels: model.data2vec_vision(pixels).pooler_output,
        "pooler",
    ),
    "resnet classifier": (
        lambda: _classifier("ResNet", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
        lambda model, pixels: model.resnet(pixels).pooler_output.flatten(1),
        "pooler",
    ),
}


def vision_encoder(name: str, seed: int = 0) -> PreTrainedModel:
    """An encoder in evaluation mode, with weights that differ enough for its photos to differ."""
    torch.manual_seed(seed)
    model = ENCODERS[name][0]()
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim >= 2:
                value.add_(0.15 * torch.randn_like(value))
    _settle(model)
    return model.eval()


def _settle(model: PreTrainedModel) -> None:
    # With statistics of 0 and 1 the signal fades away, or explodes, over the blocks.
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if norms:
        for norm in norms:
            norm.momentum = 1.0
        with torch.no_grad():
            getattr(model, "vision_model", model).train()(torch.randn(8, 3, *photo_size(model)))
        for norm in norms:
            norm.momentum = 0.1


def photo_size(model: PreTrainedModel) -> tuple[int, int]:
    """Height and width that a model's photos have here."""
    size = getattr(getattr(model.config, "vision_config", model.config), "image_size", SIZE)
    return (64, 64) if size in (64, [64, 64], (64, 64)) else (SIZE, SIZE)
