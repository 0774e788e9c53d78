"""Photos through any vision encoder of transformers: token states, a pooled vector, and a resumable forward pass."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from .pooling_mmfusion import Encoded, pool
from .pretrained_mmfusion import hidden_size
from .vision_families_mmfusion import prefix_tokens


def encode_photos(encoder: PreTrainedModel, pixel_values: Tensor, pooling: str, layers: Sequence[int] = ()) -> Encoded:
    """Token states and a pooled vector of photos (count, channels, height, width); feature maps become tokens.

    With `layers`, the tokens are the output states of these blocks, side by side, instead of the top's.
    """
    if _better_in_chunks(pixel_values):
        parts = [encode_photos(encoder, chunk, pooling, layers) for chunk in pixel_values.split(_CPU_CHUNK)]
        return Encoded(torch.cat([part.tokens for part in parts]), torch.cat([part.pooled for part in parts]))
    with _captured(encoder, layers) as states:
        output = encoder(**_vision_inputs(encoder, pixel_values), return_dict=True)
    return _encoded_photos(encoder, output, pooling, [states[layer] for layer in layers])


# Feature maps of more photos exceed what malloc keeps: fresh pages for each layer then cost more than the convolutions.
_CPU_CHUNK = 4


def _better_in_chunks(pixel_values: Tensor) -> bool:
    return not torch.is_grad_enabled() and pixel_values.device.type == "cpu" and len(pixel_values) > _CPU_CHUNK


def encode_photos_from(
    encoder: PreTrainedModel,
    activations: Tensor,
    block: int,
    pooling: str,
    layers: Sequence[int] = (),
    state_size: int | None = None,
) -> Encoded:
    """Finishes a forward pass from what [`vision_activations`] returned for the frozen part below block `block`.

    The blocks below are taken out for the duration of the call; what runs before them gets a single blank photo.

    Args:
        encoder: Any transformers vision encoder.
        activations: (photos, …) float.
        block: Number of frozen blocks.
        pooling: One of `POOLINGS`.
        layers: As for [`encode_photos`].
        state_size: Width of the token states of `layers`; None: of the top.

    Raises:
        ValueError: One of `layers` lies inside the frozen part, of which only the last output is known.
    """
    if block == len(vision_blocks(encoder)):
        return _unpacked(activations, hidden_size(encoder.config), state_size or hidden_size(encoder.config))
    with _captured(encoder, layers) as states, _only_blocks_from(encoder, block) as first:
        handle = first.register_forward_pre_hook(
            lambda module, args, kwargs: _replace_first(args, kwargs, activations), with_kwargs=True
        )
        try:
            output = encoder(**_blank_inputs(encoder, activations), return_dict=True)
        finally:
            handle.remove()
    states[block - 1] = activations
    if not set(layers) <= states.keys():
        raise ValueError(
            f"vision_feature_layers are {list(layers)}, but the {block} lowest blocks are frozen and only the output "
            f"of block {block - 1} is kept; freeze at most {min(layers) + 1} blocks, or all "
            f"{len(vision_blocks(encoder))}."
        )
    return _encoded_photos(encoder, output, pooling, [states[layer] for layer in layers])


def vision_state_size(encoder: PreTrainedModel, layers: Sequence[int]) -> int:
    """Width of the token states of `layers` side by side, found by showing the encoder a blank photo.

    Raises:
        ValueError: The encoder has no such block.
    """
    count = len(vision_blocks(encoder))
    if max(layers) >= count:
        raise ValueError(
            f"vision_feature_layers names block {max(layers)}, and {type(encoder).__name__} has {count}; "
            f"give numbers from 0 to {count - 1}."
        )
    with evaluating(encoder), torch.no_grad():
        return int(encode_photos(encoder, blank_photo(encoder), "mean", layers).tokens.shape[-1])


@contextmanager
def evaluating(encoder: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards each module is in the mode that it was in."""
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        yield
    finally:
        # One by one: `train(True)` on the encoder would set its frozen BatchNorm layers to training, too.
        for module, training in modes:
            module.training = training


@torch.no_grad()
def vision_activations(
    encoder: PreTrainedModel, pixel_values: Tensor, block: int, pooling: str, layers: Sequence[int] = ()
) -> Tensor:
    """Input of block `block` for a batch of photos: all that the frozen part of the encoder has to say.

    Where all blocks are frozen these are its output, in one vector per photo: the pooled state, then the token states
    of [`encode_photos`] one after the other.

    Raises:
        ValueError: The blocks are told the size of the photo beside their input (as by rotary positions), and it is
            not the encoder's own, which [`encode_photos_from`] assumes.
    """
    if _better_in_chunks(pixel_values):
        chunks = pixel_values.split(_CPU_CHUNK)
        return torch.cat([vision_activations(encoder, chunk, block, pooling, layers) for chunk in chunks])
    if block == len(vision_blocks(encoder)):
        encoded = encode_photos(encoder, pixel_values, pooling, layers)
        return torch.cat([encoded.pooled, encoded.tokens.flatten(1)], dim=1)
    captured: list[Tensor] = []

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        first, *others = [*args, *kwargs.values()]
        if _has_tensor(others):
            _check_photo_size(encoder, pixel_values)
        captured.append(first)
        raise _PrefixDone

    handle = vision_blocks(encoder)[block].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        encoder(**_vision_inputs(encoder, pixel_values), return_dict=True)
    except _PrefixDone:
        return captured[0]
    finally:
        handle.remove()
    raise ValueError(f"Block {block} of {type(encoder).__name__} was never run; its forward does not visit its blocks.")


def vision_blocks(encoder: nn.Module) -> nn.ModuleList:
    """The sequence of blocks of a vision encoder: its outermost `ModuleList`."""
    parent, name = _block_list(encoder)
    return parent.get_submodule(name)  # type: ignore[return-value]


def blocks_of(encoder: nn.Module) -> list[nn.Module]:
    """The blocks of any encoder, in order; none if it has no list of at least two."""
    try:
        parent, name = _block_list(encoder)
    except ValueError:
        return []
    return list(parent.get_submodule(name).children())


def freeze_vision_prefix(encoder: PreTrainedModel, blocks: int) -> None:
    """Turns gradients off in the [`vision_prefix`]."""
    for module in vision_prefix(encoder, blocks):
        module.requires_grad_(False)


def vision_prefix(encoder: PreTrainedModel, blocks: int) -> list[nn.Module]:
    """Everything that runs before block `blocks`: stems, patch embeddings and the blocks below.

    Raises:
        ValueError: `blocks` is not in [1, number of blocks].
    """
    sequence = vision_blocks(encoder)
    if not 1 <= blocks <= len(sequence):
        raise ValueError(
            f"Cannot freeze {blocks} of {len(sequence)} vision blocks of {type(encoder).__name__}; "
            f"give a number from 1 to {len(sequence)}, which freezes the whole encoder."
        )
    if blocks == len(sequence):
        return [encoder]
    return [*_before(encoder, sequence), *sequence[:blocks]]


def _before(encoder: nn.Module, sequence: nn.Module) -> list[nn.Module]:
    """Modules registered before the block sequence: stems and patch embeddings."""
    found: list[nn.Module] = []
    parent: nn.Module = encoder
    while parent is not sequence:
        for child in parent.children():
            if child is sequence or any(module is sequence for module in child.modules()):
                parent = child
                break
            found.append(child)
    return found


class _PrefixDone(Exception):  # noqa: N818 (no error: it leaves a forward pass)
    """Leaves a forward pass once the activations that were asked for are known."""


def _block_list(encoder: nn.Module) -> tuple[nn.Module, str]:
    """Parent and attribute name of the outermost list of blocks, found breadth first."""
    queue: list[nn.Module] = [encoder]
    while queue:
        parent = queue.pop(0)
        for name, child in parent.named_children():
            if isinstance(child, nn.ModuleList) and len(child) > 1:
                return parent, name
            queue.append(child)
    raise ValueError(
        f"{type(encoder).__name__} has no list of blocks, so none can be frozen; freeze all of it or nothing."
    )


@contextmanager
def _only_blocks_from(encoder: PreTrainedModel, block: int) -> Iterator[nn.Module]:
    parent, name = _block_list(encoder)
    sequence = vision_blocks(encoder)
    setattr(parent, name, sequence[block:])
    try:
        yield sequence[block]
    finally:
        setattr(parent, name, sequence)


def _replace_first(args: tuple[Any, ...], kwargs: dict[str, Any], value: Tensor) -> tuple[Any, dict[str, Any]]:
    if args:
        return (value, *args[1:]), kwargs
    name = next(iter(kwargs))
    return args, {**kwargs, name: value}


def _vision_inputs(encoder: PreTrainedModel, pixel_values: Tensor) -> dict[str, Tensor]:
    if encoder.config.model_type != "siglip2_vision_model":
        return {"pixel_values": pixel_values}
    # SigLIP 2 takes sequences of channel-last patches, so that photos may differ in shape; ours have one shape.
    size = encoder.config.patch_size
    count, _, height, width = pixel_values.shape
    rows, columns = height // size, width // size
    patches = (
        pixel_values[:, :, : rows * size, : columns * size].unflatten(3, (columns, size)).unflatten(2, (rows, size))
    )
    return {
        "pixel_values": patches.permute(0, 2, 4, 3, 5, 1).reshape(count, rows * columns, -1),
        "pixel_attention_mask": torch.ones(count, rows * columns, dtype=torch.long, device=pixel_values.device),
        "spatial_shapes": torch.tensor([[rows, columns]] * count, device=pixel_values.device),
    }


def _has_tensor(values: Any) -> bool:
    return isinstance(values, Tensor) or (isinstance(values, (list, tuple)) and any(map(_has_tensor, values)))


def _check_photo_size(encoder: PreTrainedModel, pixel_values: Tensor) -> None:
    given, own = tuple(pixel_values.shape[-2:]), _photo_size(encoder)
    if encoder.config.model_type != "siglip2_vision_model" and given != own:
        raise ValueError(
            f"Blocks of {type(encoder).__name__} depend on the size of the photo, which activations do not tell: it "
            f"must be the encoder's own, {own} (height, width), and is {given}; resize the photos, set image_size in "
            "the vision config, or train from pixels."
        )


def _blank_inputs(encoder: PreTrainedModel, activations: Tensor) -> dict[str, Tensor]:
    """Inputs of one blank photo, whose way to the first block is discarded."""
    height, width = _photo_size(encoder)
    if encoder.config.model_type == "siglip2_vision_model":
        # Its blocks are given a mask over the patches, so the blank photo needs as many.
        height, width = encoder.config.patch_size, encoder.config.patch_size * activations.shape[1]
    return _vision_inputs(encoder, activations.new_zeros(1, _channels(encoder), height, width))


def blank_photo(encoder: PreTrainedModel) -> Tensor:
    """One photo (1, channels, height, width) of the encoder's own size, all zeros."""
    height, width = _photo_size(encoder)
    weight = next(encoder.parameters())
    return torch.zeros(1, _channels(encoder), height, width, dtype=encoder.dtype, device=weight.device)


def _channels(encoder: PreTrainedModel) -> int:
    return int(getattr(encoder.config, "num_channels", 3))


def _photo_size(encoder: PreTrainedModel) -> tuple[int, int]:
    size = getattr(encoder.config, "image_size", None) or 32
    if encoder.config.model_type in ("mobilenet_v2", "resnet", "convnext"):
        size = 32
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _encoded_photos(encoder: PreTrainedModel, output: Any, pooling: str, levels: Sequence[Tensor]) -> Encoded:
    states = _as_tokens(output.last_hidden_state)
    pooled = pool(output, states, None, pooling, prefix_tokens(encoder.config))
    return Encoded(_side_by_side(levels) if levels else states, pooled)


def _as_tokens(states: Tensor) -> Tensor:
    return states.flatten(2).transpose(1, 2) if states.ndim == 4 else states


def _side_by_side(levels: Sequence[Tensor]) -> Tensor:
    """States of several blocks as (photos, T, sum of widths), on the grid of the coarsest."""
    if levels[0].ndim == 4:
        coarsest = min(levels, key=lambda level: level.shape[2] * level.shape[3])
        grid = (coarsest.shape[2], coarsest.shape[3])
        levels = [level if level.shape[2:] == grid else F.adaptive_avg_pool2d(level, grid) for level in levels]
    return torch.cat([_as_tokens(level) for level in levels], dim=-1)


@contextmanager
def _captured(encoder: PreTrainedModel, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Output states of blocks, by number, of the forward passes inside."""
    states: dict[int, Tensor] = {}
    blocks = vision_blocks(encoder) if layers else nn.ModuleList()

    def keep(layer: int, output: Any) -> None:
        states[layer] = output if isinstance(output, Tensor) else output[0]

    handles = [
        blocks[layer].register_forward_hook(lambda module, args, output, layer=layer: keep(layer, output))
        for layer in layers
    ]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def _unpacked(activations: Tensor, pooled_size: int, state_size: int) -> Encoded:
    pooled, tokens = activations[:, :pooled_size], activations[:, pooled_size:]
    return Encoded(tokens.unflatten(1, (-1, state_size)), pooled)
