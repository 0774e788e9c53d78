"""Which parts of a model ranks share the parameters of (FSDP2), and the ordinary model that comes of training."""

from collections.abc import Iterator

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from mmfusion.distributed.shards import gathered, is_sharded, whole_state
from mmfusion.model import MMFusionModel
from mmfusion.model.vision_encoders import blocks_of
from mmfusion.stages.lora import adapted_layers, merged_weights


def shard(model: MMFusionModel, mesh: DeviceMesh) -> None:
    """Has each rank keep a shard of the trained parameters, and of their gradients and optimizer states.

    The blocks of the encoders and the fusion network are gathered one by one when they run, all other parts for the
    whole forward and backward pass. Scalars, which FSDP2 cannot shard, and frozen parameters stay whole on each rank.
    A batch without photos shows a vision encoder in training a blank one then, as each rank has to take part in each
    gathering.

    Args:
        model: Changed in place; the names of its parameters stay.
        mesh: One-dimensional, over the ranks that share.
    """
    ignored = {p for p in model.parameters() if p.ndim == 0 or not p.requires_grad}
    for part in (*_parts(model), model):
        if any(parameter not in ignored for parameter in part.parameters()):
            fully_shard(part, mesh=mesh, ignored_params=ignored)
    model.blank_photos = any(parameter.requires_grad for parameter in model.vision_model.parameters())


def whole_model(model: MMFusionModel) -> MMFusionModel:
    """An ordinary model to save: the model itself, or a copy of one that is sharded or has adapters.

    Adapters are merged into the weights, and shards put together in memory of the CPU on the first rank. Every rank has
    to call it; what others than the first one get of a sharded model is of no use.
    """
    layers, sharded = adapted_layers(model), is_sharded(model)
    if not sharded and not layers:
        return model
    state = whole_state(model) if sharded else model.state_dict()
    if layers:
        with gathered(model):
            state = merged_weights(state, layers) if state else state
    with torch.device("meta"):
        whole = MMFusionModel(model.config)
    whole.load_state_dict(state, strict=bool(state), assign=True)
    return whole


def _parts(model: MMFusionModel) -> Iterator[nn.Module]:
    for encoder in model.encoders():
        yield from blocks_of(encoder)
    yield model.fusion
