"""What a recipe computes once rather than in each step: features of encoders that it does not train."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from mmfusion.data.catalogue import Catalogue
from mmfusion.data.feature_cache import FeatureCache, build_feature_cache
from mmfusion.data.tables import ProductTable, Rows
from mmfusion.model import MMFusionModel, MMFusionProcessor

if TYPE_CHECKING:
    # Both need Lightning, and evaluations do not.
    from mmfusion.data.datamodule import MMFusionDataModule
    from mmfusion.stages import Optimization

logger = logging.getLogger(__name__)


def cache_frozen(
    model: MMFusionModel, data: "MMFusionDataModule", optimization: "Optimization", blocks: int, folder: Path
) -> None:
    """Freezes the lower part of the vision encoder and has the data module cache all that is frozen.

    Of a streamed catalogue nothing is cached, as that would take the disk that it is streamed to spare: frozen
    encoders run in each step.

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
    if data.streamed:
        if (data.photos and blocks) or optimization.text_learning_rate == 0:
            logger.info("frozen encoders run in each step, as features of a streamed catalogue are not cached")
        return
    if data.photos and blocks:
        data.cache_vision(model, folder)
    if optimization.text_learning_rate == 0 and model.config.text_pooling != "pooler":
        data.cache_text(model, folder)


def cache_pool(
    model: MMFusionModel,
    processor: MMFusionProcessor,
    catalogue: Catalogue,
    rows: Rows,
    blocks: int,
    folder: str | None,
) -> FeatureCache | None:
    """Activations of the products of a pool, so that several models which share frozen vision blocks read photos once.

    Args:
        model: In evaluation mode; its lowest `blocks` vision blocks are frozen by this.
        processor: The model's.
        catalogue: Where the rows point.
        rows: (P,) int64 product rows.
        blocks: Number of blocks; 0 reads photos, and there is no cache.
        folder: Folder of the cache.

    Raises:
        ValueError: There are blocks and no folder.
    """
    model.freeze_vision(blocks)
    if not blocks:
        return None
    if folder is None:
        raise ValueError("freeze_vision_blocks needs a folder for the activations; give --feature_cache.")
    return build_feature_cache(folder, model, ProductTable(catalogue, processor), rows)
