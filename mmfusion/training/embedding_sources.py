"""What an embedding job works with, loaded the same way where it is started and in its workers."""

import shutil
from pathlib import Path

from mmfusion.data.catalogue import Catalogue
from mmfusion.model import MMFusionModel, MMFusionProcessor
from mmfusion.training.prepare_model import compile_blocks
from mmfusion.training.sources import load_base, load_catalogue


def load_to_embed(
    base: str, catalogue: str | None, folder: Path, compile_model: bool = False
) -> tuple[MMFusionModel, MMFusionProcessor, Catalogue]:
    """The model, its processor, and the products of a catalogue; arguments and errors are those of their loaders."""
    model, processor = load_base(base)
    if compile_model:
        compile_blocks(model)
    return model, processor, load_catalogue(catalogue, base, folder, products_only=True)


def forget_other_tables(catalogue: Catalogue, folder: Path) -> None:
    """Removes the tables of earlier contents of a catalogue, and those that a kill left unfinished.

    Each has about the size of the uncompressed catalogue, photos included, and none is read again.

    Args:
        catalogue: What was embedded; no rank or worker may still be loading it.
        folder: Output folder of the run, as `load_to_embed` was given it.
    """
    cache = (folder / "cache" / "catalogue").resolve()
    used = {Path(file["filename"]).resolve() for file in catalogue.products.cache_files}
    for path in list(cache.rglob("*.arrow*")):
        if path.parent == cache and path not in used:
            path.unlink()
        elif path.parent not in {cache, *(file.parent for file in used)}:
            # Of a Hub data set, as its library takes the folder of a revision for whole.
            shutil.rmtree(path.parent, ignore_errors=True)
