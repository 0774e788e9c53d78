"""Photos through any vision encoder of transformers: token states, a pooled vector, and a resumable forward pass."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedConfig, PreTrainedModel

from .errors import MMFusionError
from .families import prefix_tokens
from .heads import Encoded, UnsuitedError, evaluating, pool
from .pretrained import new_encoder


def encode_photos(encoder: PreTrainedModel, pixel_values: Tensor, pooling: str, layers: Sequence[int] = ()) -> Encoded:
    """Token states and a pooled vector of photos (count, channels, height, width); feature maps become tokens.

    With `layers`, the tokens are the output states of these blocks, side by side, instead of the top's. Blocks count
    from 0, as in `vision_feature_layers`.
    """
    # Hooks rather than output_hidden_states: of Swin, ConvNeXt, MobileNetV2, timm … that has other states than the
    # blocks', or none, and where it has the same ones transformers collects them by hooks, too.
    with _captured(encoder, layers) as states:
        output = encoder(**_vision_inputs(encoder, pixel_values), return_dict=True)
    size = (pixel_values.shape[-2], pixel_values.shape[-1])
    return _encoded_photos(encoder, output, pooling, [states[layer] for layer in layers], size)


class PhotoSizes(NamedTuple):
    """Widths of what an encoder says of a photo: of its pooled vector, and of its token states."""

    pooled: int
    states: int


def encode_photos_from(
    encoder: PreTrainedModel,
    activations: Tensor,
    block: int,
    pooling: str,
    layers: Sequence[int] = (),
    sizes: PhotoSizes | None = None,
) -> Encoded:
    """Finishes a forward pass from what [`vision_activations`] returned for the frozen part below block `block`.

    What runs below that block gets a single blank photo.

    Args:
        encoder: Any transformers vision encoder.
        activations: (photos, …) float.
        block: Number of frozen blocks.
        pooling: One of `IMAGE_POOLINGS`.
        layers: As for [`encode_photos`].
        sizes: From [`photo_sizes`]; read where all blocks are frozen.

    Raises:
        ValueError: One of `layers` is inside the frozen part, of which only the last output is known.
    """
    blocks = vision_blocks(encoder)
    if block == len(blocks):
        sizes = sizes or photo_sizes(encoder.config, pooling, layers)
        # Perhaps none, where nobody reads them.
        count = (activations.shape[1] - sizes.pooled) // sizes.states
        tokens = activations[:, sizes.pooled :].unflatten(1, (count, sizes.states))
        return Encoded(tokens, activations[:, : sizes.pooled])
    with _captured(encoder, layers) as states, _resumed(encoder, block, activations) as inputs:
        output = encoder(**inputs, return_dict=True)
    # States below are those of a blank photo, but the last frozen output is what the next block was given.
    known = {layer: state for layer, state in states.items() if layer >= block} | {block - 1: activations}
    if not set(layers) <= known.keys():
        raise ValueError(
            f"vision_feature_layers are {list(layers)}, but the {block} lowest blocks are frozen and only the output "
            f"of block {block - 1} is kept; freeze at most {min(layers) + 1} blocks, or all {len(blocks)}."
        )
    return _encoded_photos(encoder, output, pooling, [known[layer] for layer in layers], _photo_size(encoder))


def photo_sizes(config: PreTrainedConfig, pooling: str, layers: Sequence[int] = ()) -> PhotoSizes:
    """Widths of what [`encode_photos`] gives, for an encoder of which only the config is at hand.

    Where the config does not tell them, a blank photo is shown to an encoder without values, which costs no memory.

    Raises:
        ValueError: The encoder has no such layer, no such pooling, or takes no photo.
    """
    width = getattr(config, "hidden_size", None)
    if width and not layers and config.model_type != "timm_wrapper":
        return PhotoSizes(int(width), int(width))
    try:
        return _measured_sizes("meta", config, pooling, layers)
    except _NoPhotosError:
        # Where shapes depend on values, there have to be some.
        return _measured_sizes("cpu", config, pooling, layers)


def _measured_sizes(device: str, config: PreTrainedConfig, pooling: str, layers: Sequence[int]) -> PhotoSizes:
    # A separate encoder: some keep in evaluation mode what they computed from the weights of that moment.
    with torch.device(device), torch.no_grad(), torch.random.fork_rng(devices=()):
        encoder = new_encoder(config, pooler=pooling == "pooler").eval()
        count = len(vision_blocks(encoder)) if layers else 0
        if layers and max(layers) >= count:
            raise ValueError(
                f"vision_feature_layers names block {max(layers)}, and {type(encoder).__name__} has {count}; "
                f"give numbers from 0 to {count - 1}."
            )
        with _takes_photos(config):
            encoded = encode_photos(encoder, blank_photo(encoder), pooling, layers)
        return PhotoSizes(encoded.pooled.shape[-1], encoded.tokens.shape[-1])


class _NoPhotosError(MMFusionError):
    """A photo does not pass through an encoder."""


@contextmanager
def _takes_photos(config: PreTrainedConfig) -> Iterator[None]:
    try:
        yield
    except UnsuitedError:
        raise
    except (RuntimeError, TypeError, AttributeError, IndexError, ValueError) as error:
        said = (str(error).splitlines() or [""])[0][:120]
        raise _NoPhotosError(
            f"A blank photo does not pass through a {config.model_type!r} encoder ({type(error).__name__}: {said}); "
            "use one that takes photos as pixel_values, or correct its config."
        ) from error


@torch.no_grad()
def check_repeats(encoder: PreTrainedModel, pooling: str) -> None:
    """Shows an encoder a photo of noise by itself and next to a blank one: the vectors may differ by rounding alone.

    Raises:
        ValueError: They differ by more than 0.1 % of their length in float32, 5 % in half precision; or the encoder
            takes no photo.
    """
    blank = blank_photo(encoder)
    noise = torch.rand(blank.shape, generator=torch.Generator().manual_seed(0)).to(blank)
    with evaluating(encoder), _takes_photos(encoder.config):
        beside = encode_photos(encoder, torch.cat([blank, noise]), pooling).pooled[1]
        alone, again = (encode_photos(encoder, noise, pooling).pooled[0] for _ in range(2))
    name, tolerance = type(encoder).__name__, 1e-3 if encoder.dtype.itemsize >= 4 else 5e-2
    if (share := _difference(alone, again)) > tolerance:
        raise ValueError(
            f"{name} gives one photo two vectors that differ by {share:.0%} of their length (at most {tolerance:.1%} "
            "may be rounding): it draws at random, as masked autoencoders do. Set its mask ratio to 0 in its config "
            "(mask_ratio), or use another encoder."
        )
    if (share := _difference(alone, beside)) > tolerance:
        raise ValueError(
            f"{name} gives a photo by itself and next to another one vectors that differ by {share:.0%} of their "
            f"length (at most {tolerance:.1%} may be rounding), so that no photo has one vector; use another encoder."
        )


def _difference(one: Tensor, other: Tensor) -> float:
    # Vectors of next to no length, as new weights may give, are equal.
    return float((one - other).float().norm() / (one.float().norm() + 1e-3))


@torch.no_grad()
def check_resumes(encoder: PreTrainedModel, block: int, pooling: str) -> None:
    """Compares the vectors of two photos with those from the output of the frozen blocks.

    Raises:
        ValueError: They differ: what runs above the frozen blocks needs more than their output.
    """
    if block in (0, len(vision_blocks(encoder))) or encoder.device.type == "meta":
        return
    photos = torch.rand(2, *blank_photo(encoder).shape[1:], generator=torch.Generator().manual_seed(0))
    photos = photos.to(encoder.device, encoder.dtype)
    with evaluating(encoder):
        whole = encode_photos(encoder, photos, pooling).pooled
        resumed = encode_photos_from(encoder, vision_activations(encoder, photos, block, pooling), block, pooling)
    if whole.shape != resumed.pooled.shape or _difference(whole, resumed.pooled) > 5e-2:
        raise ValueError(
            f"{type(encoder).__name__} cannot continue from the output of its {block} lowest blocks alone; freeze all "
            f"of it ({len(vision_blocks(encoder))} blocks) or nothing."
        )


@torch.no_grad()
def vision_activations(
    encoder: PreTrainedModel, pixel_values: Tensor, block: int, pooling: str, layers: Sequence[int] = ()
) -> Tensor:
    """Input of block `block` for a batch of photos: all that is read of the frozen part of the encoder.

    Where all blocks are frozen these are its output, in one vector per photo: the pooled state, then the token states
    of [`encode_photos`] one after the other.

    Raises:
        ValueError: The blocks get the size of the photo with their input (as by rotary positions), and it is
            not the encoder's own, which [`encode_photos_from`] assumes.
    """
    if block == len(vision_blocks(encoder)):
        encoded = encode_photos(encoder, pixel_values, pooling, layers)
        return torch.cat([encoded.pooled, encoded.tokens.flatten(1)], dim=1)
    captured: list[Tensor] = []
    # Encoders that count the photos at their input need as many to the end.
    count = None if encoder.config.model_type in _COUNTS_PHOTOS else len(pixel_values)

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        first, *others = [*args, *kwargs.values()]
        if _tells_size(others):
            _check_photo_size(encoder, pixel_values)
        captured.append(first)
        # Nobody reads what runs above, so it gets a single photo.
        return _first_rows(args, count), {name: _first_rows(value, count) for name, value in kwargs.items()}

    first_of_block = _modules(vision_blocks(encoder)[block])[0]
    with _hooks(first_of_block.register_forward_pre_hook(keep, with_kwargs=True)):
        encoder(**_vision_inputs(encoder, pixel_values), return_dict=True)
    if not captured:
        name = type(encoder).__name__
        raise ValueError(f"Block {block} of {name} was never run; its forward does not visit its blocks.")
    return captured[0]


@contextmanager
def _hooks(*handles: RemovableHandle) -> Iterator[None]:
    """Removes hooks when the block ends."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _first_rows(value: Any, count: int | None) -> Any:
    """The first row of a tensor of `count` rows, of each in a tuple or list; other values as they are."""
    if isinstance(value, (tuple, list)):
        return type(value)(_first_rows(one, count) for one in value)
    # Rotary positions (patches, width) may be as many as the photos.
    is_batch = isinstance(value, Tensor) and value.ndim >= 3 and len(value) == count
    return value[:1] if is_batch else value


def vision_blocks(encoder: nn.Module) -> nn.ModuleList:
    """The sequence of blocks of a vision encoder, or of stages that end in another grid: its outermost `ModuleList`.

    Some keep a list of stages for each kind of layer (PoolFormer); a block is then all that runs in one stage.
    """
    lists = _block_lists(encoder)
    if len(lists) == 1:
        return lists[0]
    return nn.ModuleList(
        nn.ModuleList([one for row in rows for one in _modules(row)]) for rows in zip(*lists, strict=True)
    )


def blocks_of(encoder: nn.Module) -> list[nn.Module]:
    """The blocks of any encoder, in order; none if it has no list of at least two."""
    try:
        blocks = vision_blocks(encoder)
    except ValueError:
        return []
    return [module for block in blocks for module in _modules(block)]


def _modules(block: nn.Module) -> list[nn.Module]:
    """What runs in a block, one after the other."""
    return [one for part in block for one in _modules(part)] if isinstance(block, nn.ModuleList) else [block]


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
    return [*_before(encoder, _block_lists(encoder)[0]), *sequence[:blocks]]


def _before(encoder: nn.Module, sequence: nn.Module) -> list[nn.Module]:
    """What is registered before the block sequence: stems, patch embeddings, parameters outside of any layer."""
    found: list[nn.Module] = []
    parent: nn.Module = encoder
    while parent is not sequence:
        if own := list(parent.parameters(recurse=False)):
            found.append(nn.ParameterList(own))
        for child in parent.children():
            if child is sequence or any(module is sequence for module in child.modules()):
                parent = child
                break
            found.append(child)
    return found


def _block_lists(encoder: nn.Module) -> list[nn.ModuleList]:
    """The outermost list of blocks, found breadth first, and those next to it that share its stages."""
    queue: list[nn.Module] = [encoder]
    while queue:
        parent = queue.pop(0)
        lists = [child for child in parent.children() if isinstance(child, nn.ModuleList) and len(child) > 1]
        if lists:
            beside = [one for one in lists if len(one) == len(lists[0])]
            staged = any(isinstance(block, nn.ModuleList) for one in beside for block in one)
            return beside if staged else lists[:1]
        queue.extend(parent.children())
    raise ValueError(
        f"{type(encoder).__name__} has no list of blocks, so none can be frozen; freeze all of it or nothing."
    )


# Their code counts the photos at the input, and expects as many between the blocks.
_COUNTS_PHOTOS = ("pvt", "pvt_v2", "segformer", "glpn")


@contextmanager
def _resumed(encoder: PreTrainedModel, block: int, activations: Tensor) -> Iterator[dict[str, Tensor]]:
    """Inputs of a blank photo; inside, block `block` is given `activations` instead of what becomes of it."""
    inputs, blocks = _blank_inputs(encoder, activations), vision_blocks(encoder)
    first = _modules(blocks[block])[0]
    handles = [
        first.register_forward_pre_hook(
            lambda module, args, kwargs: _replace_first(args, kwargs, activations), with_kwargs=True
        )
    ]
    if encoder.config.model_type in _COUNTS_PHOTOS:
        count = len(activations)
        inputs = {name: value.expand(count, *value.shape[1:]) for name, value in inputs.items()}
        for frozen in (module for one in blocks[:block] for module in _modules(one)):
            handles.append(frozen.register_forward_pre_hook(lambda module, args: (args[0][:1], *args[1:])))
            handles.append(frozen.register_forward_hook(lambda module, args, output: _repeated(output, count)))
    with _hooks(*handles):
        yield inputs


def _repeated(output: Any, count: int) -> Any:
    if isinstance(output, Tensor):
        return output.expand(count, *output.shape[1:])
    return tuple(_repeated(one, count) for one in output) if isinstance(output, tuple) else output


def _replace_first(args: tuple[Any, ...], kwargs: dict[str, Any], value: Tensor) -> tuple[Any, dict[str, Any]]:
    if args:
        return (value, *args[1:]), kwargs
    name = next(iter(kwargs))
    return args, {**kwargs, name: value}


def _vision_inputs(encoder: PreTrainedModel, pixel_values: Tensor) -> dict[str, Tensor]:
    if encoder.config.model_type == "vit_mae" and not encoder.config.mask_ratio:
        # Patches in their own order: it would shuffle them even where it masks none, and sums would round otherwise.
        count = math.prod(side // encoder.config.patch_size for side in pixel_values.shape[-2:])
        order = torch.arange(count, device=pixel_values.device).expand(len(pixel_values), -1)
        return {"pixel_values": pixel_values, "noise": order}
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
        # The encoder reads them one by one: on a GPU it would wait for each.
        "spatial_shapes": torch.tensor([[rows, columns]] * count, device="cpu"),
    }


def _tells_size(values: Any) -> bool:
    """Whether a block gets more than switches: rotary positions, masks, height and width."""
    if isinstance(values, (list, tuple)):
        return any(map(_tells_size, values))
    return isinstance(values, (Tensor, int)) and not isinstance(values, bool)


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
    size = None
    if encoder.config.model_type == "siglip2_vision_model":
        # Its blocks are given a mask over the patches, so the blank photo needs as many.
        size = (encoder.config.patch_size, encoder.config.patch_size * activations.shape[1])
    return _vision_inputs(encoder, blank_photo(encoder, size).to(activations))


def blank_photo(encoder: PreTrainedModel, size: tuple[int, int] | None = None) -> Tensor:
    """One photo (1, channels, height, width), all zeros, of this height and width or of the encoder's own."""
    channels, device = getattr(_of_pixels(encoder), "num_channels", 3), next(encoder.parameters()).device
    return torch.zeros(1, int(channels), *(size or _photo_size(encoder)), dtype=encoder.dtype, device=device)


def _of_pixels(encoder: PreTrainedModel) -> PreTrainedConfig:
    """The config of what sees the pixels, which in BLIP-2 is a part of the encoder."""
    return getattr(encoder.config, "vision_config", encoder.config)


def _photo_size(encoder: PreTrainedModel) -> tuple[int, int]:
    size = getattr(_of_pixels(encoder), "image_size", None) or 32
    if encoder.config.model_type in ("mobilenet_v2", "resnet", "convnext", "convnextv2"):
        size = 32
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _encoded_photos(
    encoder: PreTrainedModel, output: Any, pooling: str, levels: Sequence[Tensor], size: tuple[int, int]
) -> Encoded:
    states = _as_tokens(_channels_first(encoder, output.last_hidden_state))
    pooled = pool(output, states, None, pooling, prefix_tokens(encoder.config))
    if not levels:
        return Encoded(states, pooled)
    return Encoded(_side_by_side(encoder, [_channels_first(encoder, level) for level in levels], size), pooled)


def _channels_first(encoder: PreTrainedModel, states: Tensor) -> Tensor:
    timm_format = getattr(getattr(encoder, "timm_model", None), "output_fmt", "")
    last = encoder.config.model_type == "dinat" or str(timm_format) == "NHWC"
    return states.movedim(-1, 1) if last and states.ndim == 4 else states


def _as_tokens(states: Tensor) -> Tensor:
    return states.flatten(2).transpose(1, 2) if states.ndim == 4 else states


def _side_by_side(encoder: PreTrainedModel, levels: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """States of several blocks as (photos, T, sum of widths), on the grid of the coarsest."""
    if len({level.shape[1] for level in levels if level.ndim == 3}) == 1 and levels[0].ndim == 3:
        return torch.cat(list(levels), dim=-1)
    if encoder.config.model_type == "hiera":
        # Its states are in an order in which those that become one are apart by the length of the coarser grid.
        least = min(level.shape[1] for level in levels)
        return torch.cat([level.unflatten(1, (-1, least)).mean(1) for level in levels], dim=-1)
    prefix = prefix_tokens(encoder.config)
    maps = [level if level.ndim == 4 else _as_map(level, size, prefix) for level in levels]
    coarsest = min(maps, key=lambda level: level.shape[2] * level.shape[3])
    grid = (coarsest.shape[2], coarsest.shape[3])
    return torch.cat(
        [_as_tokens(level if level.shape[2:] == grid else F.adaptive_avg_pool2d(level, grid)) for level in maps], dim=-1
    )


def _as_map(states: Tensor, size: tuple[int, int], prefix: int) -> Tensor:
    """Token states (photos, T, C) of a photo of `size`, the first `prefix` maybe of none of its patches, as a map."""
    for skipped in (0, prefix):
        for stride in range(1, max(size) + 1):
            rows, columns = (math.ceil(side / stride) for side in size)
            if rows * columns == states.shape[1] - skipped:
                return states[:, skipped:].transpose(1, 2).unflatten(2, (rows, columns))
    raise UnsuitedError(
        f"vision_feature_layers name blocks of different grids, and {states.shape[1]} states of a photo of {size} "
        "pixels are no grid of it; name blocks of one stage."
    )


@contextmanager
def _captured(encoder: PreTrainedModel, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Output states of blocks, by number, of the forward passes inside."""
    states: dict[int, Tensor] = {}
    blocks = vision_blocks(encoder) if layers else nn.ModuleList()

    def keep(layer: int, output: Any) -> None:
        while not isinstance(output, Tensor):
            output = output[0]
        states[layer] = output

    handles = [
        _modules(blocks[layer])[-1].register_forward_hook(lambda module, args, output, layer=layer: keep(layer, output))
        for layer in layers
    ]
    with _hooks(*handles):
        yield states


# `torch.utils.checkpoint.checkpoint`, or the same with options: called with a function and its arguments.
Checkpoint = Callable[..., Any]


class _Checkpointed(nn.Module):
    """Mixed into the class of a block: computes its activations again in the backward pass.

    As in transformers, this is for training mode alone; hooks of the block stay outside, and names of parameters stay.
    """

    checkpoint: Checkpoint | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        forward = partial(super().forward, **kwargs)
        if self.checkpoint is None or not self.training or not torch.is_grad_enabled():
            return forward(*args)
        return self.checkpoint(forward, *args)


def checkpoint_blocks(encoder: nn.Module, function: Checkpoint | None) -> None:
    """Has each block of an encoder compute its activations again in the backward pass; None: keep them again."""
    for block in blocks_of(encoder):
        if not isinstance(block, _Checkpointed):
            # Of this block alone, as FSDP2 does it.
            block.__class__ = type(type(block).__name__, (_Checkpointed, type(block)), {})
        block.checkpoint = function  # type: ignore[assignment]


def check_no_statistics(model: nn.Module) -> None:
    """Raises a ValueError if a second forward pass would count twice in the statistics of a BatchNorm layer."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ValueError(
                f"{name} gathers BatchNorm statistics, into which activation checkpointing would put each batch twice; "
                "give the model freeze_batch_norm=True, or train without checkpointing."
            )
