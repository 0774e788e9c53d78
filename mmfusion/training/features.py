"""What a recipe computes once rather than in each step: features of encoders that it does not train."""

from pathlib import Path

from mmfusion.data.datamodule import MMFusionDataModule
from mmfusion.model import MMFusionModel
from mmfusion.stages import Optimization


def cache_frozen(
    model: MMFusionModel, data: MMFusionDataModule, optimization: Optimization, blocks: int, folder: Path
) -> None:
    """Freezes the lower part of the vision encoder and has the data module cache all that is frozen.

    Args:
        model: Model to train.
        data: Its data module.
        optimization: An encoder whose rate is 0 is frozen and cached as a whole.
        blocks: Lowest vision blocks to freeze where the vision encoder is trained; 0: none.
        folder: Folder for the caches.
    """
    if data.photos and optimization.vision_learning_rate == 0:
        blocks = model.num_vision_blocks
    if data.photos and blocks:
        model.freeze_vision(blocks)
        data.cache_vision(model, folder)
    if optimization.text_learning_rate == 0 and model.config.text_pooling != "pooler":
        data.cache_text(model, folder)
