"""Wrote the files of this folder, with the code of commit f4b0012, torch 2.13.0 and transformers 5.23.0 on a CPU.

They are what mmfusion promised then, and `tests/model/test_golden.py` holds later code to it. So do not run this script
again on later code: what that writes says nothing about folders that people saved before. To see where the files come
from, check out f4b0012, put this file there, and run in the checkout, with OMP_NUM_THREADS=1:

    PYTHONPATH=. python tests/golden/make.py /tmp/golden

Everything is made by relative paths in that folder, so that no file names the machine. It holds

* `catalogue/`: 16 products with 14 drawn photos (JPEG, PNG; grey, with a palette), 12 queries and their judgements;
* `photos/`: three of the photos as files;
* `model/`: BERT and ConvNeXt with what `from_backbones` chose then (mean pooling, gated fusion);
* `dual/`: a CLIP model with mean pooling over its last hidden states, which was the default then, and `concat`;
* `published/`: what `recipes/publish.py` uploads of a model with most options in use, code and query tower included
  (the code lies there once; it was the same in `published/query/`, `model/` and `dual/`);
* `vectors.safetensors`, `expected.json`: vectors of `products()` and `QUERIES` by each model, fingerprints, and hits;
* `embeddings/`, `index/`: what `recipes/embed.py` and `recipes/index.py` wrote with `model/`;
* `run/`, `run_final.safetensors`: a stage 2 that was killed after its checkpoint of step 3 of 6, and the weights that
  the same command ended with where nothing interrupted it.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers as tf
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from mmfusion import MMFusionModel, MMFusionProcessor
from mmfusion.commands import embed, index, stage2
from mmfusion.hub.publish import gather
from mmfusion.retrieval import ProductIndex, Searcher, TorchQueryEncoder
from mmfusion.retrieval.fingerprint import model_fingerprint
from mmfusion.retrieval.query_tower import load_query_tower
from mmfusion.training import Hardware

COLOURS = {"red": (200, 30, 40), "green": (30, 150, 60), "blue": (30, 60, 200), "yellow": (240, 220, 40)}
SHAPES = ("dress", "mug", "lamp", "shoe")
WORDS = [*COLOURS, *SHAPES, "plain", "striped", "soft", "round", "small", "large", "of", "with", "a", "find", "item"]
SIZE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
FUSION = {"fusion_hidden_size": 8, "fusion_heads": 2, "fusion_layers": 1, "fusion_latents": 2}
QUERIES = ["red dress", "a small blue mug", "lamp", "striped shoe with yellow"]
CPU = Hardware(accelerator="cpu")
TRAINING: dict[str, Any] = {
    **{"catalogue": "catalogue", "base": "model", "output": "run", "steps": 6, "batch_size": 4, "seed": 3},
    **{"checkpoint_every": 3, "validate_every": 3, "query_router": True},
}


def main(folder: Path) -> None:
    """Writes everything into a folder, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.chdir(folder)
    write_catalogue(Path("catalogue"))
    write_backbones(Path("backbones"))
    write_model(Path("model"), "bert", "convnext", **FUSION)
    write_model(Path("dual"), "clip", "clip", fusion="concat", **FUSION)
    options: dict[str, Any] = {
        **{"text_pooling": "cls", "image_pooling": "pooler", "vision_feature_layers": [0, 2], "neck_hidden_size": 8},
        **{"neck_heads": 2, "fusion": "cross_attention", "share_text_encoder": False, "role_embedding": True},
        **{"query_router": True, "matryoshka_dims": [8, 4], "query_prompt": "find ", "product_prompt": "item "},
        **{"product_template": "{title} {description}"},
    }
    write_model(Path("options"), "bert", "vit", **options, **FUSION)
    (Path("options") / "README.md").write_text("# A tiny model with random weights, as it was published\n")
    Path("published").mkdir()
    gather(Path("options"), Path("published"), repo="org/golden")
    vectors: dict[str, torch.Tensor] = {}
    expected: dict[str, Any] = {"fingerprints": {}}
    for name in ("model", "dual", "published"):
        found, expected["fingerprints"][name] = embed_with(Path(name))
        vectors |= {f"{name}.{kind}": value for kind, value in found.items()}
    sizes = {"shard_size": 10, "batch_size": 4}
    embed.main(embed.Config(catalogue="catalogue", base="model", output="embeddings", **sizes, hardware=CPU))
    index.main(index.Config(embeddings="embeddings", output="index"))
    expected["hits"] = hits()
    stage2.main(stage2.Config(**{**TRAINING, "output": "whole"}, hardware=CPU))
    shutil.copyfile("whole/model.safetensors", "run_final.safetensors")
    subprocess.run([sys.executable, __file__, "--killed-run"], check=False)
    expected["training"] = TRAINING
    save_file(vectors, "vectors.safetensors")
    Path("expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    tidy(folder)


def write_catalogue(folder: Path) -> None:
    """16 products: one without a photo, one without a text, one with neither colour nor photo to go by."""
    folder.mkdir()
    names = [(colour, shape) for shape in SHAPES for colour in COLOURS]
    products = []
    for number, (colour, shape) in enumerate(names):
        products.append(
            {
                "product_id": f"p{number:02}",
                "title": None if number == 5 else f"{colour} {shape}" if number % 3 else f"{shape}",
                "description": f"a soft {shape}" if number % 2 else None,
                "image": None if number in (3, 12) else {"bytes": draw(number, colour, shape), "path": None},
                "split": "train" if number < 12 else "val",
                "price": 10.0 + number,
            }
        )
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fields = [(name, pa.string()) for name in ("product_id", "title", "description")]
    schema = pa.schema([*fields, ("image", image), ("split", pa.string()), ("price", pa.float64())])
    pq.write_table(pa.Table.from_pylist(products, schema), folder / "products.parquet")
    asked = [*names[:8], *names[12:]]
    queries = [
        {
            "query_id": f"q{number:02}",
            "query": f"{colour} {shape}",
            "split": "train" if number < 8 else "val",
            "kind": "plain",
        }
        for number, (colour, shape) in enumerate(asked)
    ]
    pq.write_table(pa.Table.from_pylist(queries), folder / "queries.parquet")
    judged = [
        {"query_id": query["query_id"], "product_id": f"p{names.index(pair):02}", "grade": 3}
        for query, pair in zip(queries, asked, strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(judged), folder / "qrels.parquet")
    Path("photos").mkdir()
    for number, name in ((0, "large.jpg"), (1, "plain.png"), (2, "grey.jpg")):
        (Path("photos") / name).write_bytes(products[number]["image"]["bytes"])


def draw(number: int, colour: str, shape: str) -> bytes:
    """A photo: a large JPEG, a PNG, a grey JPEG, a PNG with a palette, and so on."""
    size = (160, 120) if number % 4 == 0 else (40, 40)
    photo = Image.new("RGB", size, (245, 245, 240))
    pen, (width, height) = ImageDraw.Draw(photo), size
    box = (width // 5, height // 6, width * 4 // 5, height * 5 // 6)
    (pen.ellipse if SHAPES.index(shape) % 2 else pen.rectangle)(box, fill=COLOURS[colour])
    pen.line((0, height // 3, width, height // 3), fill=(20, 20, 20), width=1 + number % 3)
    out = io.BytesIO()
    if number % 4 == 0:
        photo.save(out, "JPEG", quality=80)
    elif number % 4 == 1:
        photo.save(out, "PNG")
    elif number % 4 == 2:
        photo.convert("L").save(out, "JPEG", quality=85)
    else:
        photo.convert("P", palette=Image.Palette.ADAPTIVE, colors=8).save(out, "PNG")
    return out.getvalue()


def write_backbones(folder: Path) -> None:
    """BERT, ViT, ConvNeXt and CLIP, with tokenizers and image processors."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    ids = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"[{mark}]") for name, mark in SPECIAL.items()}
    text: dict[str, Any] = {**SIZE, "vocab_size": len(tokenizer), "max_position_embeddings": 24}
    vision: dict[str, Any] = {**SIZE, "image_size": 32, "patch_size": 8}
    pixels: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    tf.BertModel(tf.BertConfig(**text, pad_token_id=0)).save_pretrained(folder / "bert")
    tf.ViTModel(tf.ViTConfig(**{**vision, "num_hidden_layers": 3})).save_pretrained(folder / "vit")
    stages: dict[str, Any] = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "layer_scale_init_value": 1.0}
    tf.ConvNextModel(tf.ConvNextConfig(image_size=32, **stages)).save_pretrained(folder / "convnext")
    for name in ("vit", "convnext"):
        ViTImageProcessorPil(size={"height": 32, "width": 32}, **pixels).save_pretrained(folder / name)
    clip = tf.CLIPConfig(text_config={**text, **ids}, vision_config=vision, projection_dim=12)
    tf.CLIPModel(clip).save_pretrained(folder / "clip")
    square: dict[str, Any] = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPImageProcessorPil(**square, **pixels).save_pretrained(folder / "clip")
    for name in ("bert", "clip"):
        tokenizer.save_pretrained(folder / name)


SPECIAL = {"pad": "PAD", "bos": "CLS", "eos": "SEP"}


def build_tokenizer() -> tf.PreTrainedTokenizerFast:
    """A WordPiece tokenizer that knows `WORDS` and spells others."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters), *WORDS]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    marks = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    ends = {"bos_token": "[CLS]", "eos_token": "[SEP]", "mask_token": "[MASK]"}
    return tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=24, **marks, **ends)


def write_model(folder: Path, text: str, vision: str, **fields: Any) -> None:
    """A model with its processor; all parameters are moved, so that none is zero, one, or a copy of another."""
    torch.manual_seed(1)
    model = MMFusionModel.from_backbones(f"backbones/{text}", f"backbones/{vision}", **fields)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.1)
    texts = ("query_prompt", "product_prompt", "product_template")
    shared = {name: fields[name] for name in texts if name in fields}
    processor = MMFusionProcessor.from_backbones(f"backbones/{text}", f"backbones/{vision}", **shared)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def products() -> list[dict[str, Any]]:
    """With photo, without one, without a text, with two photos; of all models."""
    names = ("large.jpg", "plain.png", "grey.jpg")
    large, plain, grey = (Image.open(Path("photos") / name).convert("RGB") for name in names)
    return [
        {"title": "red dress", "description": "a soft dress", "image": large},
        {"title": "small round lamp", "description": "", "image": None},
        {"title": "", "description": "", "image": plain},
        {"title": "striped shoe", "description": "large", "image": [plain, grey]},
    ]


def embed_with(folder: Path) -> tuple[dict[str, torch.Tensor], str]:
    """Vectors of `QUERIES` and `products()`, the shares of modalities, and the fingerprint."""
    model = MMFusionModel.from_pretrained(folder).eval()
    processor = MMFusionProcessor.from_pretrained(folder)
    with torch.inference_mode():
        output = model(**processor(queries=QUERIES, products=products()))
    found = {name: output[name] for name in ("query_embeds", "product_embeds", "modality_weights")}
    fingerprint = model_fingerprint(model, processor)
    # Of published/, that is what query/config.json says. (Of ViT, stored_fingerprint was another one then, by mistake.)
    assert model_fingerprint(*load_query_tower(folder)) == fingerprint
    return {name: value.clone().contiguous() for name, value in found.items()}, fingerprint


def hits() -> list[list[list[Any]]]:
    """Ids and scores that the index finds for `QUERIES`."""
    searcher = Searcher(TorchQueryEncoder(*load_query_tower("model")), ProductIndex.load("index/index"))
    return [[[hit.product_id, hit.score] for hit in found] for found in searcher.search(QUERIES, 5)]


def killed_run() -> None:
    """Trains until the checkpoint of step 3 is written, and ends the process there and then."""
    from mmfusion.training.resume_checkpoint import ResumeCheckpoint

    def end(self: ResumeCheckpoint, trainer: Any) -> None:
        if (self.folder / "step=3.ckpt").is_file():
            os._exit(9)

    ResumeCheckpoint._tidy = end  # type: ignore[method-assign]
    stage2.main(stage2.Config(**TRAINING, hardware=CPU))


def tidy(folder: Path) -> None:
    """Removes what is built again (caches), what only stood in between, copies, and the names of absolute folders."""
    for name in ("backbones", "options", "whole", "run/cache", "run/logs", "embeddings/cache", "index/cache"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("model", "dual", "published/query"):
        for path in (folder / name).glob("*_mmfusion.py"):
            assert path.read_bytes() == (folder / "published" / path.name).read_bytes()
            path.unlink()
    for path in folder.glob("*/run.json"):
        path.write_text(path.read_text().replace(f"{folder}/", ""))


if __name__ == "__main__":
    if sys.argv[1] == "--killed-run":
        killed_run()
    else:
        main(Path(sys.argv[1]).absolute())
