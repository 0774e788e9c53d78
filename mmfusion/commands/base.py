"""Assemble a base model from a pretrained text encoder and a pretrained vision encoder."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from mmfusion.data.catalogue_files import find_folder
from mmfusion.data.hub_ids import check_readable
from mmfusion.data.text_check import recommended_template
from mmfusion.files import absolute_place
from mmfusion.model import MMFusionModel, MMFusionProcessor
from mmfusion.training.run import open_run, recorded_arguments


@dataclass
class Config:
    """Settings of `mmfusion base`.

    Attributes:
        text: Folder or Hub id of the text encoder (or of a dual encoder, which contributes its text half).
        vision: Folder or Hub id of the vision encoder (or of a dual encoder).
        output: Folder for the model.
        image_size: Height and width in pixels to which whole photos are resized; default: as the image processor does.
        catalogue: Folder or URL of the catalogue that the model is for, from which stage 1 then learns; default: none.
        product_template: Product text over product columns, e.g. "{title} {description}"; default: what the catalogue
            recommends, as `mmfusion import` notes it, or else "{title}".
        query_prompt: Prefix of queries; default: what a folder of sentence-transformers says, otherwise none.
        product_prompt: Prefix of product texts, in the same way.
        max_query_length: Queries are truncated to this many tokens; default: 32, or what such a folder says.
        max_product_length: Product texts are truncated to this many tokens; default: 64, or what such a folder says.
        model_config: Further fields of MMFusionConfig as JSON, e.g. {"embedding_dim": 256, "text_pooling": "cls"}.
        trust_remote_code: Whether code that comes with an encoder is run, where transformers has none for it. Read it
            first.
        seed: Random seed for the new weights.
    """

    text: str
    vision: str
    output: str = "outputs/base"
    image_size: tuple[int, int] | None = None
    catalogue: str | None = None
    product_template: str | None = None
    query_prompt: str | None = None
    product_prompt: str | None = None
    max_query_length: int | None = None
    max_product_length: int | None = None
    model_config: dict[str, Any] | None = None
    trust_remote_code: bool = False
    seed: int = 0


def main(config: Config) -> None:
    """Writes a model folder with new projections and a new fusion network, for stage 1 to train."""
    for encoder in (config.text, config.vision):
        check_readable(encoder, "model")
    if config.catalogue is not None and find_folder(config.catalogue) is None:
        check_readable(config.catalogue, "dataset")
    recommended = None if config.catalogue is None else recommended_template(config.catalogue)
    config = replace(config, product_template=config.product_template or recommended or "{title}")
    torch.manual_seed(config.seed)
    encoders: dict[str, Any] = {"text": config.text, "vision": config.vision}
    encoders["trust_remote_code"] = config.trust_remote_code
    texts = _given(config, "product_template", "query_prompt", "product_prompt")
    model = MMFusionModel.from_backbones(**encoders, **texts, **(config.model_config or {}))
    lengths = _given(config, "max_query_length", "max_product_length")
    processor = MMFusionProcessor.from_backbones(**encoders, **texts, **lengths, image_size=config.image_size)
    # Only now, so that an encoder that cannot be used leaves nothing behind.
    arguments = recorded_arguments(config)
    place = arguments.pop("catalogue")
    run = open_run(config.output, "base", arguments)
    if place is not None:
        run.note(catalogue=absolute_place(place))
    model.save_pretrained(run.folder)
    processor.save_pretrained(run.folder)
    run.finish(parameters=model.num_parameters())
    print(f"product text: {config.product_template}")
    print(f"{model.num_parameters():,} parameters in {config.output}; next: mmfusion stage1 --base {config.output}")


def _given(config: Config, *names: str) -> dict[str, Any]:
    """Those of the settings that are not left to the encoders."""
    return {name: getattr(config, name) for name in names if getattr(config, name) is not None}
