"""The query tower of a model by itself, for a search front end."""

import copy
from pathlib import Path

from mmfusion.model import MMFusionConfig, MMFusionModel, MMFusionProcessor


def query_tower(model: MMFusionModel) -> MMFusionModel:
    """A model with the query tower of another: text encoder of queries, projection and router, with copied weights.

    Args:
        model: A whole model; one that is a query tower already is copied.

    Returns:
        A model on the CPU in evaluation mode whose query vectors are those of `model`, and which embeds no product.
    """
    fields = copy.deepcopy(model.config.to_dict())
    config = MMFusionConfig(**{**fields, "query_only": True})
    tower = MMFusionModel(config)
    weights = model.state_dict()
    # Copies, and assigned rather than copied into: each keeps its own floating-point type.
    own = {name: weights[name].detach().to("cpu", copy=True) for name in tower.state_dict()}
    tower.load_state_dict(own, assign=True)
    return tower.eval()


def write_query_tower(model: MMFusionModel, processor: MMFusionProcessor, folder: Path | str) -> Path:
    """Writes the query tower and its processor to a folder, which loads like any other model.

    Args:
        model: A whole model.
        processor: Its processor.
        folder: Created if missing; files of the same names are replaced.

    Returns:
        The folder.
    """
    # Imported here, as it brings FAISS along.
    from mmfusion.retrieval.fingerprint import model_fingerprint

    tower = query_tower(model)
    tower.config.query_tower_of = model_fingerprint(model, processor)
    tower.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)
