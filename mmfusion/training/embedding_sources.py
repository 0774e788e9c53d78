"""What an embedding job works with, loaded the same way where it is started and in its workers."""

from pathlib import Path

from mmfusion.data.catalogue import Catalogue
from mmfusion.model import MMFusionModel, MMFusionProcessor
from mmfusion.training.hardware import compile_blocks
from mmfusion.training.sources import load_base, load_catalogue


def load_to_embed(
    base: str, catalogue: str | None, folder: Path, compile_model: bool = False
) -> tuple[MMFusionModel, MMFusionProcessor, Catalogue]:
    """The model, its processor, and the products of a catalogue; arguments and errors are those of their loaders."""
    model, processor = load_base(base)
    if compile_model:
        compile_blocks(model)
    return model, processor, load_catalogue(catalogue, base, folder, products_only=True)
