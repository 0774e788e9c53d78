"""Checkpoints that must be refused in one line, because their vectors would be wrong without a word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from safetensors.torch import load_file, save_file

from families import vocabularies
from families.dual_encoders import clip_text
from families.family import VISION, WIDTH, family, save, write_json
from families.text_encoders import sizes
from families.vision_encoders import CLIP_PROCESSOR, processor

WEIGHTS = "model.safetensors"
_SEQ2SEQ: dict[str, Any] = {
    "d_model": WIDTH,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 48,
}


@family("BART", text="-", refused="encoder-decoder.*decoder", common=True)
def bart(folder: Path) -> None:
    tokenizer = vocabularies.roberta()
    save(folder, tf.BartModel(tf.BartConfig(vocab_size=len(tokenizer), **_SEQ2SEQ)), tokenizer)


@family("Marian", text="-", refused="encoder-decoder.*decoder")
def marian(folder: Path) -> None:
    tokenizer = vocabularies.t5()
    ends = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    save(folder, tf.MarianModel(tf.MarianConfig(vocab_size=len(tokenizer), **ends, **_SEQ2SEQ)), tokenizer)


@family("FNet (its Fourier transform mixes in the padding)", text="-", refused="padding|next to it", common=True)
def fnet(folder: Path) -> None:
    tokenizer = vocabularies.bert()
    config = tf.FNetConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        num_hidden_layers=2,
        intermediate_size=48,
        max_position_embeddings=48,
    )
    save(folder, tf.FNetModel(config), tokenizer)


@family("A CLIP checkpoint with the tokenizer of another model", text="-", photo="-", refused="end.*token")
def clip_other_tokenizer(folder: Path) -> None:
    clip = vocabularies.clip()
    config = tf.CLIPConfig(text_config=clip_text(clip), vision_config=VISION, projection_dim=20)
    save(folder, tf.CLIPModel(config), vocabularies.xlm_roberta(), CLIP_PROCESSOR)


def _bert(folder: Path, tokenizer: Any = None) -> tf.PreTrainedModel:
    model = tf.BertModel(tf.BertConfig(**{**sizes(vocabularies.bert()), "vocab_size": len(vocabularies.bert())}))
    save(folder, model, tokenizer or vocabularies.bert())
    return model


@family("Weights in a pickle", text="-", refused="pickle")
def pickled(folder: Path) -> None:
    model = _bert(folder)
    (folder / WEIGHTS).unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


@family("A PEFT adapter beside the weights", text="-", refused="adapter")
def adapter(folder: Path) -> None:
    _bert(folder)
    fields = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["query"]}
    write_json(folder / "adapter_config.json", {**fields, "base_model_name_or_path": "org/base"})


@family("Code that comes with the weights, as NeoBERT's", text="-", refused="code", common=True)
def own_code(folder: Path) -> None:
    _bert(folder)
    names = {"AutoConfig": "model.NeoBERTConfig", "AutoModel": "model.NeoBERT"}
    write_json(folder / "config.json", {"model_type": "neobert", "auto_map": names})
    (folder / "model.py").write_text("raise SystemExit('the code of the repository ran')\n", "utf-8")


@family("A model_type that transformers does not know", text="-", refused="model_type")
def unknown_type(folder: Path) -> None:
    _bert(folder)
    fields = json.loads((folder / "config.json").read_text("utf-8"))
    write_json(folder / "config.json", {**fields, "model_type": "berta"})


@family("Half a checkpoint", text="-", refused="lacks")
def half_checkpoint(folder: Path) -> None:
    _bert(folder)
    weights = load_file(folder / WEIGHTS)
    kept = {name: value for name, value in weights.items() if "layer.1." not in name}
    save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})


@family("A truncated file of weights", text="-", refused="truncated|damaged")
def truncated(folder: Path) -> None:
    _bert(folder)
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


@family("A tokenizer larger than the embedding table", text="-", refused="tokenizer.*embedding")
def large_tokenizer(folder: Path) -> None:
    _bert(folder, vocabularies.longer_than_its_table())


@family("No tokenizer", text="-", refused="tokenizer")
def no_tokenizer(folder: Path) -> None:
    save(folder, tf.BertModel(tf.BertConfig(**sizes(vocabularies.bert()))))


@family("An image processor that normalises without a mean", photo="-", refused="image_mean|mean")
def no_mean(folder: Path) -> None:
    fields = {name: value for name, value in processor("ViT").items() if name != "image_mean"}
    save(folder, tf.ViTModel(tf.ViTConfig(**VISION)), image_processor={**fields, "image_mean": None})


@family("No image processor", photo="-", refused="image processor|preprocessor_config")
def no_image_processor(folder: Path) -> None:
    save(folder, tf.ViTModel(tf.ViTConfig(**VISION)))
