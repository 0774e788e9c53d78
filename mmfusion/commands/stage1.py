"""Stage 1: fine-tune the encoders on the catalogue and align queries with titles and photos."""

from dataclasses import dataclass, field

from mmfusion.commands.stage import StageConfig, begin, build_data, open_catalogue, train
from mmfusion.stages import Optimization, Stage1, add_adapters
from mmfusion.training import load_base, starting_base


@dataclass
class Config(StageConfig):
    """Settings of stage 1.

    Attributes:
        base: Folder or Hub id of an mmfusion model (see `mmfusion base`); default: tiny encoders built in the output
            folder.
        catalogue: Folder, fsspec URL or Hub id of a catalogue; default: the toy catalogue, drawn into the output
            folder.
        optimization: Learning rates and schedule; an encoder whose rate is 0 is frozen and its features are cached.
            The defaults suit tiny encoders trained from scratch; for pretrained ones use text_learning_rate=1e-4 and
            vision_learning_rate=3e-4.
        query_image_weight: Weight of the loss between queries and photos; with title_image_weight also 0, photos are
            not read at all.
        title_image_weight: Weight of the loss that pairs titles with their photos.
        num_products: Size of the toy catalogue.
    """

    output: str = "outputs/stage1"
    optimization: Optimization = field(default_factory=lambda: Optimization(1e-3, 1e-3, 1e-3))
    title_image_weight: float = 0.3
    num_products: int = 2000


def main(config: Config) -> None:
    """Trains both encoders and writes the model, its processor, curves and checkpoints; run again to resume."""
    config, run = begin("stage1", config)
    if run.complete:
        return
    model, processor = load_base(starting_base(config.base, run.folder))
    catalogue = open_catalogue(config, run, config.num_products)
    photos = bool(config.query_image_weight or config.title_image_weight)
    data = build_data(config, run, catalogue, model, processor, photos=photos)
    stage = Stage1(
        model,
        config.optimization,
        query_text_weight=config.query_text_weight,
        query_image_weight=config.query_image_weight,
        title_image_weight=config.title_image_weight,
        loss=config.loss,
        micro_batch=config.micro_batch,
        titles_to_photos=config.pseudo_queries,
    )
    add_adapters(model, config.lora)
    train(config, run, stage, data, processor)
