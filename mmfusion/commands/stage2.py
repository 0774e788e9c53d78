"""Stage 2: train a fusion network on top of aligned encoders."""

from dataclasses import dataclass, field
from typing import Any

from mmfusion.commands.stage import StageConfig, begin, build_data, open_catalogue, train
from mmfusion.stages import Optimization, Stage2, add_adapters
from mmfusion.training import load_base


@dataclass
class Config(StageConfig):
    """Settings of stage 2.

    Attributes:
        base: Folder or Hub id of the model that stage 1 made.
        fusion: Kind of fusion network: text_only, image_only, weighted_mean, concat, gated, bilinear, moe or
            cross_attention, or one that a module in the environment variable MMFUSION_IMPORT registers; default: the
            base's own.
        fusion_config: Fields of the config that the fusion network reads, as JSON, e.g. {"fusion_text_weight": 0.1};
            default: as in the base.
        query_router: Whether queries weigh the fused, text and photo view of a product, which are then indexed side by
            side; default: as in the base.
        fused_weight: Weight of the loss between queries and fused vectors.
        query_text_weight: Weight of the regularising loss between queries and product texts.
        query_image_weight: Weight of the regularising loss between queries and photos.
        modality_dropout: Share of products that lose their text or their photo in a step.
    """

    base: str = "outputs/stage1"
    output: str = "outputs/stage2"
    steps: int = 200
    optimization: Optimization = field(default_factory=lambda: Optimization(1e-3, 3e-4, 3e-4))
    query_text_weight: float = 0.2
    query_image_weight: float = 0.2
    fusion: str | None = None
    fusion_config: dict[str, Any] | None = None
    query_router: bool | None = None
    fused_weight: float = 1.0
    modality_dropout: float = 0.1


def main(config: Config) -> None:
    """Trains the fusion network (and, gently, the encoders) and writes a model folder; run again to resume."""
    config, run = begin("stage2", config)
    if run.complete:
        return
    model, processor = load_base(
        config.base, fusion=config.fusion, fusion_config=config.fusion_config, query_router=config.query_router
    )
    catalogue = open_catalogue(config, run)
    data = build_data(config, run, catalogue, model, processor, photos=model.config.fusion != "text_only")
    stage = Stage2(
        model,
        config.optimization,
        fused_weight=config.fused_weight,
        query_text_weight=config.query_text_weight,
        query_image_weight=config.query_image_weight,
        modality_dropout=config.modality_dropout,
        loss=config.loss,
        micro_batch=config.micro_batch,
        titles_to_photos=config.pseudo_queries,
    )
    add_adapters(model, config.lora)
    train(config, run, stage, data, processor)
