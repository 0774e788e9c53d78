"""Gradient caching: the embeddings of a large batch, and their gradients, with the memory of a micro-batch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import get_device_states, set_device_states

from mmfusion.model import Fusion, MMFusionModel, MMFusionOutput
from mmfusion.model.families import pads_to_full_length

Inputs = dict[str, Tensor]
Forward = Callable[[int], dict[str, Tensor]]
# Inputs that have a column for each token, and outputs that are not of single queries or products.
_OF_TOKENS, _OF_MICRO_BATCHES = ("input_ids", "attention_mask", "text_states"), ("expert_load",)


def embed_in_micro_batches(model: MMFusionModel, inputs: Inputs, size: int, **options: Any) -> MMFusionOutput:
    """What `model(**inputs, **options)` gives, without keeping activations of more than a micro-batch.

    Rows are embedded without a graph. When the loss hands back the gradients of the embeddings, each micro-batch is run
    again with its graph and the same random state, and the gradients of the parameters are added up (GradCache,
    arXiv:2101.06983). To autograd this is one operation on the parameters: each gets its gradient once, so that DDP
    synchronises once a step, and a scaler, clipping and accumulation see what they always see.

    A micro-batch has texts of similar length, without the padding that they share, unless the encoder reads padding.
    Where texts are longer than twice the average of the batch, it has fewer rows, as its memory grows with its tokens.

    Args:
        model: Model whose outputs for a row do not depend on the other rows: no BatchNorm layer gathers statistics.
        inputs: Arguments of its `forward`, one row for each query or product.
        size: Rows of queries, or of products, that are held at a time at most; at least 1.
        options: Further arguments of `forward`.
    """
    outputs: dict[str, Tensor] = {}
    for side in ("query", "product"):
        rows = {name: value for name, value in inputs.items() if name.startswith("query_") == (side == "query")}
        if rows:
            outputs |= _embed(model, rows, side, size, options)
    return MMFusionOutput(**outputs)


def check_rows_are_independent(model: nn.Module) -> None:
    """Raises a ValueError if a BatchNorm layer in training mode makes an embedding depend on its batch."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise ValueError(
                f"{name} gathers BatchNorm statistics, which depend on the micro-batch; give the model "
                "freeze_batch_norm=True, or train with --micro_batch 0."
            )


def _embed(model: MMFusionModel, rows: Inputs, side: str, size: int, options: dict[str, Any]) -> dict[str, Tensor]:
    mask = rows[f"{side}_attention_mask"]
    # Where the text of each row ends; padding on the left stays.
    ends = (mask.bool() * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(1)
    # The longest texts first: they need most memory, and the gradients of all parameters are there after them.
    order = ends.argsort(stable=True, descending=True)
    if pads_to_full_length(model.config.text_config):
        lengths = [mask.shape[1]] * len(order)
    else:
        lengths = [max(1, end) for end in ends[order].tolist()]
    sizes = _micro_batches(lengths, size)
    parts = order.split(sizes)
    # Of the first text of each part, which is its longest.
    longest = [int(lengths[sum(sizes[:part])]) for part in range(len(sizes))]
    # Without its cache: weights that were cast while no graph was wanted must not be met where one is.
    autocast: dict[str, Any] = {
        "device_type": mask.device.type,
        "enabled": torch.is_autocast_enabled(mask.device.type),
        "dtype": torch.get_autocast_dtype(mask.device.type),
        "cache_enabled": False,
    }

    def forward(part: int) -> dict[str, Tensor]:
        micro_batch = {name: value[parts[part]] for name, value in rows.items()}
        for name in micro_batch.keys() & {f"{side}_{kind}" for kind in _OF_TOKENS}:
            micro_batch[name] = micro_batch[name][:, : longest[part]]
        with torch.autocast(**autocast):
            output = model(**micro_batch, **options)
        return {
            name: value.unsqueeze(0) if name in _OF_MICRO_BATCHES else value
            for name, value in output.items()
            if name != "fusion_penalty"
        }

    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    names: list[str] = []
    values = _Cached.apply(forward, parts, names, *parameters)
    outputs: dict[str, Tensor] = dict(zip(names, values, strict=True))
    if "expert_load" in outputs:
        outputs |= _whole_load(model.fusion, outputs["expert_load"], outputs["modality_present"][order], sizes)
    return outputs


def _micro_batches(lengths: Sequence[int], size: int) -> list[int]:
    """Rows of each micro-batch of texts whose lengths in tokens fall.

    They are `size`, or as many as hold the tokens of `size` texts of twice the average length.
    """
    tokens, sizes = 2 * size * sum(lengths) // max(1, len(lengths)), list[int]()
    row = 0
    while row < len(lengths):
        sizes.append(min(size, max(1, tokens // lengths[row]), len(lengths) - row))
        row += sizes[-1]
    return sizes


def _whole_load(fusion: Fusion, loads: Tensor, present: Tensor, sizes: list[int]) -> dict[str, Tensor]:
    """Load and penalty of a batch from the loads (micro-batches, experts), which are means over products with both."""
    both = present.all(1)
    counts = torch.stack([part.sum() for part in (both | ~both.any()).split(sizes)])
    load = (counts.unsqueeze(1) * loads).sum(0) / counts.sum()
    return {"expert_load": load, "fusion_penalty": fusion.penalty(load)}


class _RandomState:
    """What dropout will draw next, on the CPU and where a tensor is."""

    def __init__(self, tensor: Tensor) -> None:
        self.cpu = torch.get_rng_state()
        self.device_type = tensor.device.type
        self.devices, self.states = get_device_states(tensor)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Draws the same again; afterwards the random state is what it was before."""
        with torch.random.fork_rng(self.devices, device_type=self.device_type):
            torch.set_rng_state(self.cpu)
            set_device_states(self.devices, self.states, device_type=self.device_type)
            yield


class _Cached(torch.autograd.Function):
    """A forward pass in micro-batches, which the backward pass repeats exactly, one by one, with their graphs."""

    @staticmethod
    def forward(
        ctx: Any, run: Forward, parts: Sequence[Tensor], names: list[str], *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        """All outputs, (rows, …) each in the order of the rows; adds their names to `names`.

        `parts` are the rows (n,) int64 of each micro-batch, all rows together, and `run` is given the number of one.
        """
        ctx.run, ctx.parts, ctx.names, ctx.states = run, parts, names, []
        ctx.save_for_backward(*parameters)
        ctx.set_materialize_grads(False)
        outputs = []
        for part in range(len(parts)):
            ctx.states.append(_RandomState(parts[part]))
            outputs.append(run(part))
        names += outputs[0]
        back = torch.cat(list(parts)).argsort()
        whole = {name: torch.cat([output[name] for output in outputs]) for name in names}
        return tuple(value if name in _OF_MICRO_BATCHES else value[back] for name, value in whole.items())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        parameters = ctx.saved_tensors
        wanted = {name: value for name, value in zip(ctx.names, gradients, strict=True) if value is not None}
        totals, own = dict[int, Tensor](), set[int]()
        for part, state in enumerate(ctx.states):
            with state.restored(), torch.enable_grad():
                outputs = ctx.run(part)
            pairs = [
                (outputs[name], gradient[[part] if name in _OF_MICRO_BATCHES else ctx.parts[part]])
                for name, gradient in wanted.items()
            ]
            for index, found in _gradients(pairs, parameters):
                if index in own:
                    totals[index] += found
                elif index in totals:
                    # Not in place, as two parameters may be handed the same tensor.
                    totals[index] = totals[index] + found
                    own.add(index)
                else:
                    totals[index] = found
        return None, None, None, *(totals.get(index) for index in range(len(parameters)))


def _gradients(pairs: list[tuple[Tensor, Tensor]], parameters: tuple[Tensor, ...]) -> Iterator[tuple[int, Tensor]]:
    """Gradients of (output, its gradient) with respect to the parameters that had a part in it, by their position."""
    trained = [pair for pair in pairs if pair[0].requires_grad]
    if trained:
        outputs, gradients = zip(*trained, strict=True)
        found = torch.autograd.grad(outputs, parameters, gradients, allow_unused=True)
        yield from ((index, gradient) for index, gradient in enumerate(found) if gradient is not None)
