"""Assemble a base model from a pretrained text encoder and a pretrained vision encoder."""

from pathlib import Path
from typing import Any

import torch

from mmfusion.model import MMFusionModel, MMFusionProcessor
from mmfusion.training import open_run, run_command


def main(
    text: str,
    vision: str,
    output: str = "outputs/base",
    image_size: tuple[int, int] | None = None,
    product_template: str = "{title}",
    query_prompt: str | None = None,
    product_prompt: str | None = None,
    max_query_length: int | None = None,
    max_product_length: int | None = None,
    model_config: dict[str, Any] | None = None,
    trust_remote_code: bool = False,
    seed: int = 0,
) -> None:
    """Writes a model folder with new projections and a new fusion network; train it with stage1.py.

    Args:
        text: Folder or Hub id of the text encoder (or of a dual encoder, which contributes its text half).
        vision: Folder or Hub id of the vision encoder (or of a dual encoder).
        output: Folder for the model.
        image_size: Height and width in pixels to which whole photos are resized; default: as the image processor does.
        product_template: Product text over product columns, e.g. "{title} {description}".
        query_prompt: Prefix of queries; default: what a folder of sentence-transformers says, otherwise none.
        product_prompt: Prefix of product texts, in the same way.
        max_query_length: Queries are truncated to this many tokens; default: 32, or what such a folder says.
        max_product_length: Product texts are truncated to this many tokens; default: 64, or what such a folder says.
        model_config: Further fields of MMFusionConfig as JSON, e.g. {"embedding_dim": 256, "text_pooling": "cls"}.
        trust_remote_code: Runs code that comes with an encoder, where transformers has none for it. Read it first.
        seed: Of the new weights.
    """
    prompts = {"query_prompt": query_prompt, "product_prompt": product_prompt}
    lengths = {"max_query_length": max_query_length, "max_product_length": max_product_length}
    fields: dict[str, Any] = {"product_template": product_template, **_given(prompts)}
    sources = {"text": text, "vision": vision, "image_size": image_size, **prompts, **lengths}
    arguments = {**sources, "product_template": product_template, "model_config": model_config}
    arguments["trust_remote_code"] = trust_remote_code
    torch.manual_seed(seed)
    model = MMFusionModel.from_backbones(
        text, vision, trust_remote_code=trust_remote_code, **fields, **(model_config or {})
    )
    processor = MMFusionProcessor.from_backbones(
        text,
        vision,
        image_size=image_size,
        trust_remote_code=trust_remote_code,
        **fields,
        **_given(lengths),
    )
    # Only now, so that an encoder that cannot be used leaves nothing behind.
    run = open_run(output, "base", {**arguments, "seed": seed})
    model.save_pretrained(run.folder)
    processor.save_pretrained(run.folder)
    run.finish(parameters=model.num_parameters())
    print(f"{model.num_parameters():,} parameters in {Path(output)}; next: recipes/stage1.py --base {output}")


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


if __name__ == "__main__":
    run_command(main)
