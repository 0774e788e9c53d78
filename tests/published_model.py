"""A tiny model folder as a recipe leaves it, with things in it that must not travel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmfusion import MMFusionModel, MMFusionProcessor
from mmfusion.data.toy_encoders import write_toy_encoders

TOKEN = "hf_" + "PlantedTokenOfATest0123456789abcd"
USER = "grace.hopper"
HOST = "mark-two"
PLACE = f"/home/{USER}/secret-project"

QUERIES = ["red dress", "blue mug"]


def products() -> list[dict[str, Any]]:
    """One with title and photo, one without a photo, one without a title."""
    photo = Image.linear_gradient("L").convert("RGB")
    return [{"title": "Red dress", "image": photo}, {"title": "Mug", "image": None}, {"title": "", "image": photo}]


def write_model_folder(folder: Path, *, seed: int = 0, **config: Any) -> Path:
    """Model, processor and run.json; `config` are fields of MMFusionConfig."""
    torch.manual_seed(seed)
    backbones = write_toy_encoders(folder.parent / "backbones")
    fields = {"fusion_hidden_size": 16, "fusion_heads": 2, "fusion_layers": 1, "fusion_latents": 2, **config}
    model = MMFusionModel.from_backbones(str(backbones.text), str(backbones.vision), **fields)
    _unsettle(model)
    model.save_pretrained(folder)
    MMFusionProcessor.from_backbones(str(backbones.text), str(backbones.vision)).save_pretrained(folder)
    (folder / "run.json").write_text(json.dumps(record()))
    return folder


def record() -> dict[str, Any]:
    """What a run.json may hold: more of the machine than anybody needs to know."""
    return {
        "recipe": "stage2",
        "arguments": {
            "base": f"{PLACE}/stage1",
            "catalogue": f"s3://{USER}:{TOKEN}@{HOST}.example.org/fpi",
            "steps": 5,
            "wandb_token": "0123456789abcdef",
            "label_source": f"made by {USER}@{HOST}.example.org with {TOKEN}, kept in {PLACE}/labels",
        },
        "complete": True,
        "started_at": 1.0,
        "versions": {"torch": "2.13.0"},
        "python": "3.11.7",
        "base": f"{PLACE}/stage1",
        "parameters": 3,
    }


def embed(model: Any, processor: Any) -> list[Tensor]:
    """Vectors of `QUERIES` and `products()`, and the weights of modalities."""
    with torch.inference_mode():
        output = model.eval()(**processor(queries=QUERIES, products=products()))
    return [output.query_embeds, output.product_embeds, output.modality_weights]


def embed_queries(model: Any, processor: Any) -> Tensor:
    """Vectors of `QUERIES`."""
    with torch.inference_mode():
        vectors: Tensor = model.eval().get_query_features(**processor(queries=QUERIES))
    return vectors


def _unsettle(model: MMFusionModel) -> None:
    """Moves the parameters that start at zero or as copies, so that leaving one out would show."""
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.02)
