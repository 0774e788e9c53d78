"""Dual encoders: both halves of one checkpoint, with the projections into the space that they share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as tf
from PIL import Image
from torch import Tensor

from families import vocabularies
from families.family import TRANSFORMER, VISION, WIDTH, family, save
from families.features import (
    by_hand,
    dual_photos,
    dual_texts,
    of_texts,
    processed,
    projected,
    text_tokens,
)
from families.text_encoders import sizes
from families.vision_encoders import BLIP_PROCESSOR, CLIP_PROCESSOR, EFFICIENTNET, processor

END_TOKEN = "end token, its own projection"
FIRST_TOKEN = "first token, its own projection"
NORMALISED = "its normalised class token, its own projection"
ATTENTION_HEAD = "its attention pooling head"
LAST_OF_64 = "last position of a text padded to full length, its own head"


def clip_text(tokenizer: Any, eos: int | None = None) -> dict[str, Any]:
    """Config of a CLIP text half; `eos` as old configs have it, which is not the tokenizer's."""
    end = tokenizer.eos_token_id if eos is None else eos
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": end, "pad_token_id": tokenizer.pad_token_id}
    return sizes(tokenizer, max_position_embeddings=vocabularies.LONGEST, **ends)


def _both(model_class: Any, **options: Any) -> dict[str, Any]:
    return {"queries": dual_texts(model_class, **options), "photos": dual_photos(model_class)}


@family("CLIP", text=END_TOKEN, photo=NORMALISED, **_both(tf.CLIPModel), common=True)
def clip(folder: Path) -> None:
    tokenizer = vocabularies.clip()
    config = tf.CLIPConfig(text_config=clip_text(tokenizer), vision_config=VISION, projection_dim=20)
    save(folder, tf.CLIPModel(config), tokenizer, CLIP_PROCESSOR)


@family("CLIP with the end token of old configs", text=END_TOKEN, photo=NORMALISED, **_both(tf.CLIPModel))
def clip_legacy(folder: Path) -> None:
    tokenizer = vocabularies.clip()
    config = tf.CLIPConfig(text_config=clip_text(tokenizer, eos=2), vision_config=VISION, projection_dim=20)
    save(folder, tf.CLIPModel(config), tokenizer, CLIP_PROCESSOR)


@family("An old CLIP whose tokenizer got further tokens", text=END_TOKEN, photo=NORMALISED, **_both(tf.CLIPModel))
def clip_added_token(folder: Path) -> None:
    # transformers takes the highest id for the end token of an old config, which is the one that was added.
    tokenizer = vocabularies.clip()
    text = clip_text(tokenizer, eos=2)
    tokenizer.add_tokens(["sku"])
    config = tf.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=20)
    save(folder, tf.CLIPModel(config), tokenizer, CLIP_PROCESSOR)


@family(
    "CLIP (text alone, with its projection)",
    text=END_TOKEN,
    queries=of_texts(tf.CLIPTextModelWithProjection, projected("text_embeds")),
)
def clip_text_projection(folder: Path) -> None:
    tokenizer = vocabularies.clip()
    model = tf.CLIPTextModelWithProjection(tf.CLIPTextConfig(**clip_text(tokenizer), projection_dim=20))
    save(folder, model, tokenizer)


@family("MetaCLIP 2", text=END_TOKEN, photo=NORMALISED, **_both(tf.MetaClip2Model), common=True)
def metaclip2(folder: Path) -> None:
    tokenizer = vocabularies.xlm_roberta()
    ends = {"eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 1}
    text = sizes(tokenizer, max_position_embeddings=vocabularies.LONGEST, **ends)
    config = tf.MetaClip2Config(text_config=text, vision_config=VISION, projection_dim=20)
    save(folder, tf.MetaClip2Model(config), tokenizer, {**CLIP_PROCESSOR, "image_processor_type": "CLIPImageProcessor"})


def _siglip_text(tokenizer: Any) -> dict[str, Any]:
    return sizes(tokenizer, max_position_embeddings=64, projection_size=WIDTH)


@family(
    "SigLIP",
    text=LAST_OF_64,
    photo=ATTENTION_HEAD,
    **_both(tf.SiglipModel, full_length=64),
    needs=("sentencepiece",),
)
def siglip(folder: Path) -> None:
    tokenizer = vocabularies.siglip(folder)
    config = tf.SiglipConfig(text_config=_siglip_text(tokenizer), vision_config=VISION)
    save(folder, tf.SiglipModel(config), tokenizer, processor("Siglip", processor_class="SiglipProcessor"))


@family(
    "SigLIP 2 (fixed size)",
    text=LAST_OF_64,
    photo=ATTENTION_HEAD,
    **_both(tf.SiglipModel, full_length=64),
    common=True,
)
def siglip2(folder: Path) -> None:
    tokenizer = vocabularies.siglip2()
    config = tf.SiglipConfig(text_config=_siglip_text(tokenizer), vision_config=VISION)
    save(folder, tf.SiglipModel(config), tokenizer, processor("Siglip", processor_class="SiglipProcessor"))


@family(
    "SigLIP 2 (NaFlex)",
    text=LAST_OF_64,
    photo=ATTENTION_HEAD,
    **_both(tf.Siglip2Model, full_length=64),
    common=True,
    note="photos are resized to one square of as many patches as it was trained with",
)
def siglip2_naflex(folder: Path) -> None:
    tokenizer = vocabularies.siglip2()
    vision = {**TRANSFORMER, "num_patches": 16, "patch_size": 8}
    config = tf.Siglip2Config(text_config=_siglip_text(tokenizer), vision_config=vision)
    fields = processor("Siglip2", max_num_patches=16, patch_size=8, processor_class="Siglip2Processor")
    del fields["size"]
    save(folder, tf.Siglip2Model(config), tokenizer, fields)


@family("Chinese-CLIP", text=FIRST_TOKEN, photo=NORMALISED, **_both(tf.ChineseCLIPModel), common=True)
def chinese_clip(folder: Path) -> None:
    tokenizer = vocabularies.bert()
    config = tf.ChineseCLIPConfig(text_config=sizes(tokenizer), vision_config=VISION, projection_dim=20)
    crop = {"image_processor_type": "ChineseCLIPImageProcessor", "size": {"height": 32, "width": 32}}
    save(folder, tf.ChineseCLIPModel(config), tokenizer, {**CLIP_PROCESSOR, **crop})


@family(
    "AltCLIP",
    text="first token after its own transformation, its own projection",
    photo=NORMALISED,
    **_both(tf.AltCLIPModel),
)
def altclip(folder: Path) -> None:
    tokenizer = vocabularies.xlm_roberta()
    text = sizes(tokenizer, project_dim=24)
    model = tf.AltCLIPModel(tf.AltCLIPConfig(text_config=text, vision_config=VISION, projection_dim=20))
    save(folder, model, tokenizer, CLIP_PROCESSOR)


@family("ALIGN", text=FIRST_TOKEN, photo="mean over positions", **_both(tf.AlignModel))
def align(folder: Path) -> None:
    tokenizer = vocabularies.bert()
    vision = {**EFFICIENTNET, "width_coefficient": 1.0, "in_channels": [32, 8], "out_channels": [8, 40]}
    config = tf.AlignConfig(text_config=sizes(tokenizer), vision_config=vision, projection_dim=40)
    fields = {"size": {"height": 36, "width": 36}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}}
    scaled = {"rescale_factor": 1 / 127.5, "rescale_offset": True, "include_top": False, "do_normalize": False}
    save(folder, tf.AlignModel(config), tokenizer, processor("EfficientNet", **fields, **scaled))


@family(
    "AIMv2-LiT",
    text=END_TOKEN,
    photo=ATTENTION_HEAD + ", its own projection",
    # With SDPA transformers reads a text without padding both ways, and any other from left to right.
    **_both(tf.Aimv2Model, attn_implementation="eager"),
)
def aimv2_lit(folder: Path) -> None:
    tokenizer = vocabularies.clip()
    text = sizes(tokenizer, eos_token_id=tokenizer.eos_token_id, max_position_embeddings=vocabularies.LONGEST)
    model = tf.Aimv2Model(tf.Aimv2Config(text_config=text, vision_config=VISION, projection_dim=20))
    save(folder, model, tokenizer, CLIP_PROCESSOR)


@family("CLIPSeg", text=END_TOKEN, photo=NORMALISED, **_both(tf.CLIPSegModel))
def clipseg(folder: Path) -> None:
    tokenizer = vocabularies.clip()
    config = tf.CLIPSegConfig(text_config=clip_text(tokenizer), vision_config=VISION, projection_dim=20)
    fields = {**CLIP_PROCESSOR, "feature_extractor_type": "ViTFeatureExtractor"}
    save(folder, tf.CLIPSegModel(config), tokenizer, fields)


@family(
    "GroupViT (text half)",
    text="end token, its own projection of two layers",
    queries=dual_texts(tf.GroupViTModel),
)
def groupvit(folder: Path) -> None:
    tokenizer = vocabularies.clip()
    vision = {**TRANSFORMER, "image_size": 32, "patch_size": 4, "depths": [1, 1, 1]}
    vision |= {"num_group_tokens": [8, 4, 0], "num_output_groups": [8, 4, 0]}
    config = tf.GroupViTConfig(text_config=clip_text(tokenizer), vision_config=vision, projection_dim=20)
    save(folder, tf.GroupViTModel(config), tokenizer, CLIP_PROCESSOR)


@family("X-CLIP (text half)", text=END_TOKEN, queries=dual_texts(tf.XCLIPModel))
def x_clip(folder: Path) -> None:
    tokenizer = vocabularies.clip()
    vision = {**VISION, "num_frames": 2, "mit_hidden_size": WIDTH, "mit_intermediate_size": 48}
    vision |= {"mit_num_hidden_layers": 1, "mit_num_attention_heads": 4}
    config = tf.XCLIPConfig(text_config=clip_text(tokenizer), vision_config=vision, projection_dim=WIDTH)
    save(folder, tf.XCLIPModel(config), tokenizer, CLIP_PROCESSOR)


@family(
    "Any two encoders as VisionTextDualEncoder",
    text="its pooler, its own projection",
    photo="its pooler, its own projection",
    **_both(tf.VisionTextDualEncoderModel),
)
def vision_text_dual(folder: Path) -> None:
    tokenizer = vocabularies.bert()
    config = tf.VisionTextDualEncoderConfig.from_vision_text_configs(
        tf.ViTConfig(**VISION), tf.BertConfig(**sizes(tokenizer)), projection_dim=20
    )
    save(folder, tf.VisionTextDualEncoderModel(config), tokenizer, processor("ViT"))


_TIPS_PIXELS = by_hand([0.0] * 3, [1.0] * 3, 32)


@family(
    "TIPSv2",
    text="mean over tokens, by its own head",
    photo="class token",
    queries=dual_texts(tf.Tipsv2Model),
    photos=dual_photos(tf.Tipsv2Model, _TIPS_PIXELS),
)
def tipsv2(folder: Path) -> None:
    tokenizer = vocabularies.t5()
    vision = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
    model = tf.Tipsv2Model(tf.Tipsv2Config(text_config=sizes(tokenizer), vision_config=vision))
    fields = {"image_processor_type": "Tipsv2ImageProcessor", "size": {"height": 32, "width": 32}}
    save(folder, model, tokenizer, fields)


def _blip(tokenizer: Any) -> tf.BlipConfig:
    ends = {"bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    text = sizes(tokenizer, encoder_hidden_size=WIDTH, **ends)
    return tf.BlipConfig(text_config=text, vision_config=VISION, projection_dim=20, image_text_hidden_size=20)


@family("BLIP", text="its pooler, its own projection", photo="its pooler, its own projection", **_both(tf.BlipModel))
def blip(folder: Path) -> None:
    tokenizer = vocabularies.bert()
    save(folder, tf.BlipModel(_blip(tokenizer)), tokenizer, BLIP_PROCESSOR)


@torch.no_grad()
def _blip_texts(folder: Path, texts: list[str]) -> Tensor:
    model = tf.BlipForImageTextRetrieval.from_pretrained(folder).eval()
    tokens = (text_tokens(folder, text) for text in texts)
    return torch.cat([model.text_proj(model.text_encoder(**one).last_hidden_state[:, 0]) for one in tokens])


@torch.no_grad()
def _blip_photos(folder: Path, photos: list[Image.Image]) -> Tensor:
    model = tf.BlipForImageTextRetrieval.from_pretrained(folder).eval()
    return model.vision_proj(model.vision_model(**processed(folder, photos)).last_hidden_state[:, 0])


@family(
    "BLIP for retrieval",
    text=FIRST_TOKEN,
    photo="class token, its own projection",
    queries=_blip_texts,
    photos=_blip_photos,
)
def blip_retrieval(folder: Path) -> None:
    tokenizer = vocabularies.bert()
    save(folder, tf.BlipForImageTextRetrieval(_blip(tokenizer)), tokenizer, BLIP_PROCESSOR)


@torch.no_grad()
def _blip2_texts(folder: Path, texts: list[str]) -> Tensor:
    model = tf.Blip2ForImageTextRetrieval.from_pretrained(folder).eval()
    blank = torch.zeros(1, 3, 32, 32)
    outputs = [model(pixel_values=blank, **text_tokens(folder, text)) for text in texts]
    return torch.cat([output.text_embeds.flatten(0, -2) for output in outputs])


@torch.no_grad()
def _blip2_photos(folder: Path, photos: list[Image.Image]) -> Tensor:
    model = tf.Blip2ForImageTextRetrieval.from_pretrained(folder).eval()
    states = model.vision_model(**processed(folder, photos)).last_hidden_state
    queries = model.query_tokens.expand(len(states), -1, -1)
    found = model.qformer(query_embeds=queries, query_length=queries.shape[1], encoder_hidden_states=states)
    return model.vision_projection(found.last_hidden_state).mean(1)


@family(
    "BLIP-2 for retrieval",
    text="first token of the Q-Former's text side, its own projection",
    photo="mean over its query tokens, its own projection",
    queries=_blip2_texts,
    photos=_blip2_photos,
    note="it scores a photo by its best query token, which one vector cannot say; all reach the fusion network",
)
def blip2_retrieval(folder: Path) -> None:
    tokenizer = vocabularies.bert()
    qformer = sizes(tokenizer, encoder_hidden_size=WIDTH, cross_attention_frequency=1, use_qformer_text_input=True)
    language = {"model_type": "opt", "vocab_size": 200, "hidden_size": WIDTH, "num_hidden_layers": 1, "ffn_dim": 48}
    language |= {"num_attention_heads": 4, "max_position_embeddings": 48, "word_embed_proj_dim": WIDTH}
    config = tf.Blip2Config(
        vision_config=VISION,
        qformer_config=qformer,
        text_config=language,
        num_query_tokens=4,
        image_text_hidden_size=20,
    )
    fields = {**BLIP_PROCESSOR, "processor_class": "Blip2Processor"}
    save(folder, tf.Blip2ForImageTextRetrieval(config), tokenizer, fields)


@torch.no_grad()
def _flava_texts(folder: Path, texts: list[str]) -> Tensor:
    model = tf.FlavaModel.from_pretrained(folder).eval()
    features = [model.get_text_features(**text_tokens(folder, text)) for text in texts]
    return torch.cat([feature.pooler_output[:, 0] for feature in features])


@torch.no_grad()
def _flava_photos(folder: Path, photos: list[Image.Image]) -> Tensor:
    model = tf.FlavaModel.from_pretrained(folder).eval()
    return model.get_image_features(processed(folder, photos)["pixel_values"]).pooler_output[:, 0]


@family(
    "FLAVA",
    text=FIRST_TOKEN,
    photo="class token, its own projection",
    queries=_flava_texts,
    photos=_flava_photos,
)
def flava(folder: Path) -> None:
    tokenizer = vocabularies.bert()
    config = tf.FlavaConfig(
        text_config=sizes(tokenizer),
        image_config=VISION,
        multimodal_config=TRANSFORMER,
        hidden_size=WIDTH,
        projection_dim=20,
    )
    fields = {**BLIP_PROCESSOR, "image_processor_type": "CLIPImageProcessor", "do_center_crop": False}
    save(folder, tf.FlavaModel(config), tokenizer, fields)
