"""The query tower of a model alone, for a search front end: taken from a whole model, saved, and loaded.

Loading it builds neither the vision encoder nor the fusion network.
"""

import copy
import os
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from mmfusion.data.hub_ids import check_readable
from mmfusion.model import MMFusionConfig, MMFusionModel, MMFusionProcessor
from mmfusion.model.errors import HubError, MMFusionError, explained
from mmfusion.model.weights import fetch_weights
from mmfusion.retrieval.fingerprint import model_fingerprint, stored_fingerprint

# Where mmfusion publish puts the query tower next to the whole model.
PUBLISHED = "query"


def load_query_tower(base: str | os.PathLike[str], **hub: Any) -> tuple[MMFusionModel, MMFusionProcessor]:
    """Loads the query tower alone, in evaluation mode, with the fingerprint of the whole model.

    Of a repository that `mmfusion publish` wrote, only `query/` is fetched. Of a whole model the weights are read once
    for the fingerprint, and those of the product tower are freed again: tensor by tensor, or, where transformers saves
    an encoder under other names than it has in memory (ViT, DINOv2, DINOv3), all of them at once.

    Args:
        base: Folder or Hub id of a model, or of a query tower.
        hub: Further arguments of `from_pretrained`, such as `revision` (branch, tag or commit) and `token`.

    Raises:
        HubError: There is no such model, it is of another kind, or it cannot be read.
    """
    if not hub:
        check_readable(base, "model")
    with explained(base, hub.get("revision")):
        if _publishes_tower(base, hub):
            hub["subfolder"] = PUBLISHED
        config = MMFusionConfig.from_pretrained(base, **hub)
        processor = MMFusionProcessor.from_pretrained(base, **hub)
        if not config.query_only:
            config.query_tower_of = _fingerprint(base, config, processor, hub)
            config.query_only = True
        model, info = load_with_info(base, config=config, **hub)
        missing = sorted(info.get("missing_keys") or ())
        if missing:
            raise HubError(f"{base} lacks weights of the query tower: {', '.join(missing[:5])}; download it again.")
        return model.eval(), processor


def load_with_info(base: str | os.PathLike[str], **options: Any) -> tuple[MMFusionModel, dict[str, Any]]:
    """A model, and which weights were missing or left over (`output_loading_info`), which is not logged."""
    # transformers reports them as a table of warnings, also where they are meant to be so.
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        # The result is a pair, which transformers' types do not say.
        loaded: Any = MMFusionModel.from_pretrained(base, output_loading_info=True, **options)
    finally:
        transformers_logging.set_verbosity(before)
    model, info = loaded
    return model, info


class UntrainedError(MMFusionError):
    """A model would make vectors of queries and products that cannot be compared."""


def check_trained(model: MMFusionModel, base: str | os.PathLike[str]) -> None:
    """Raises an error where a model's projections were made for encoders of two spaces, and never trained.

    Args:
        model: A model, or a query tower.
        base: Where it was loaded from.

    Raises:
        UntrainedError: It [`is_untrained`][MMFusionModel.is_untrained]; names both ways out.
    """
    if model.is_untrained:
        raise UntrainedError(untrained_problem(repr(os.fspath(base))))


def untrained_problem(name: str) -> str:
    """What is wrong with a model that nothing has trained, and both ways out."""
    return (
        f"{name} was never trained: its projections are as they were made, for encoders that share no space, so that "
        "queries find products by chance. Train it (mmfusion stage1, then stage2; or mmfusion fit), or search without "
        "training by one dual encoder, such as CLIP or SigLIP, as both halves: mmfusion base --text CLIP --vision CLIP."
    )


def check_base(base: str | os.PathLike[str]) -> None:
    """[`check_trained`] for a model of which only vectors are at hand; one that cannot be read is left alone."""
    try:
        made = MMFusionConfig.from_pretrained(base).untrained_projection
    except (OSError, ValueError):
        return
    if made:
        check_trained(load_query_tower(base)[0], base)


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
    tower = query_tower(model)
    tower.config.query_tower_of = model_fingerprint(model, processor)
    tower.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)


def _publishes_tower(base: str | os.PathLike[str], hub: dict[str, Any]) -> bool:
    if Path(base).is_dir():
        return (Path(base) / PUBLISHED / "config.json").is_file()
    try:
        MMFusionConfig.from_pretrained(base, subfolder=PUBLISHED, **hub)
    except (OSError, HubError):
        # What is wrong, if it is more than that, is said when the model itself is loaded.
        return False
    return True


def _fingerprint(
    base: str | os.PathLike[str], config: MMFusionConfig, processor: MMFusionProcessor, hub: dict[str, Any]
) -> str:
    with torch.device("meta"):
        names = MMFusionModel(copy.deepcopy(config)).state_dict().keys()
    stored = stored_fingerprint(fetch_weights(base, hub), names, config, processor)
    return stored or model_fingerprint(MMFusionModel.from_pretrained(base, **hub), processor)
