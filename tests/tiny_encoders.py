"""Tiny random encoders of the families that the model promises to take, with their inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast, ViTImageProcessorPil

from mmfusion import MMFusionModel, MMFusionProcessor

VOCABULARY = 60
EOS = VOCABULARY - 1  # CLIP pools the position of the end-of-text token
LAYERS = 3
WIDTH = 24
IMAGE = 32

_TRANSFORMER: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
_TEXT = {**_TRANSFORMER, "vocab_size": VOCABULARY, "max_position_embeddings": 40}
_CLIP_TEXT = {**_TEXT, "bos_token_id": 1, "eos_token_id": EOS, "pad_token_id": 0}
_VISION = {**_TRANSFORMER, "image_size": IMAGE, "patch_size": 8}


def bert() -> PreTrainedModel:
    return tf.BertModel(tf.BertConfig(**_TEXT))


def xlm_roberta() -> PreTrainedModel:
    return tf.XLMRobertaModel(tf.XLMRobertaConfig(**_TEXT, pad_token_id=0))


def modernbert() -> PreTrainedModel:
    special = {"pad_token_id": 0, "bos_token_id": 1, "cls_token_id": 1, "eos_token_id": 2, "sep_token_id": 2}
    return tf.ModernBertModel(tf.ModernBertConfig(**_TEXT, **special, local_attention=8, global_attn_every_n_layers=2))


def clip() -> PreTrainedModel:
    return tf.CLIPModel(tf.CLIPConfig(text_config=_CLIP_TEXT, vision_config=_VISION, projection_dim=20))


def t5() -> PreTrainedModel:
    sizes = {"d_model": WIDTH, "d_kv": 12, "d_ff": 32, "num_layers": LAYERS, "num_heads": 2}
    return tf.T5EncoderModel(tf.T5Config(vocab_size=VOCABULARY, **sizes))


def siglip() -> PreTrainedModel:
    text = {**_CLIP_TEXT, "projection_size": WIDTH}
    return tf.SiglipModel(tf.SiglipConfig(text_config=text, vision_config=_VISION))


def siglip2() -> PreTrainedModel:
    text = {**_CLIP_TEXT, "projection_size": WIDTH}
    vision = {**_TRANSFORMER, "num_patches": 16, "patch_size": 8}
    return tf.Siglip2Model(tf.Siglip2Config(text_config=text, vision_config=vision))


def vit() -> PreTrainedModel:
    return tf.ViTModel(tf.ViTConfig(**_VISION))


def dinov2() -> PreTrainedModel:
    return tf.Dinov2Model(tf.Dinov2Config(**{**_VISION, "mlp_ratio": 2}))


def dinov3() -> PreTrainedModel:
    return tf.DINOv3ViTModel(tf.DINOv3ViTConfig(**_VISION, num_register_tokens=2))


def mobilenet_v2() -> PreTrainedModel:
    # The family has 16 blocks whatever its width: these are the narrowest.
    config = tf.MobileNetV2Config(depth_multiplier=0.1, depth_divisible_by=4, min_depth=4, image_size=IMAGE)
    model = tf.MobileNetV2Model(config)
    # With statistics of 0 and 1 the signal of new weights fades away over the blocks.
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.randn(8, 3, IMAGE, IMAGE))
    for norm in norms:
        norm.momentum = 0.1
    return model


def resnet() -> PreTrainedModel:
    config = tf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16], depths=[1, 1, 1], layer_type="basic")
    return tf.ResNetModel(config)


def convnext() -> PreTrainedModel:
    return tf.ConvNextModel(tf.ConvNextConfig(hidden_sizes=[8, 8, 16], depths=[1, 1, 1], num_stages=3))


TEXT_ENCODERS: dict[str, Callable[[], PreTrainedModel]] = {
    builder.__name__: builder for builder in (bert, xlm_roberta, modernbert, clip, siglip, siglip2, t5)
}
VISION_ENCODERS: dict[str, Callable[[], PreTrainedModel]] = {
    builder.__name__: builder
    for builder in (vit, clip, siglip, siglip2, dinov2, dinov3, mobilenet_v2, resnet, convnext)
}


def tiny_model(text: str = "bert", vision: str = "vit", seed: int = 0, **config: Any) -> MMFusionModel:
    """A model in evaluation mode; new layers are narrow unless `config` says otherwise."""
    torch.manual_seed(seed)
    sizes = {"fusion_hidden_size": 16, "fusion_heads": 2, "fusion_layers": 1, "fusion_latents": 2}
    fields = {**sizes, "text_pooling": "mean", "image_pooling": "mean", **config}
    text_encoder = TEXT_ENCODERS[text]()
    vision_encoder = text_encoder if text == vision else VISION_ENCODERS[vision]()
    return MMFusionModel.from_backbones(text_encoder, vision_encoder, **fields).eval()


def texts(lengths: list[int], padded: int | None = None, seed: int = 1) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask` of texts of these lengths in tokens; a length of 0 is a missing text."""
    generator = torch.Generator().manual_seed(seed)
    width = padded or max(*lengths, 1)
    ids = torch.zeros(len(lengths), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        drawn = torch.randint(3, EOS, (40,), generator=generator)
        ids[row, :length] = drawn[:length]
        ids[row, 0] = 1
        ids[row, max(length - 1, 1) if width > 1 else 0] = EOS
        mask[row, :length] = 1
    return {"input_ids": ids, "attention_mask": mask}


def photos(products: int, count: int = 1, seed: int = 2, size: int = IMAGE) -> Tensor:
    """`pixel_values` (products, count, 3, size, size)."""
    return torch.randn(products, count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of a few words."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "dress", "shoe", "query", "passage", ":", "acme", "-"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=48, **special)


def tiny_processor(**fields: Any) -> MMFusionProcessor:
    """A processor that fits `tiny_model()`."""
    return MMFusionProcessor(ViTImageProcessorPil(size={"height": 32, "width": 32}), tiny_tokenizer(), **fields)
