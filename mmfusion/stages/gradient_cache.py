"""Gradient caching: the embeddings of a large batch, and their gradients, with the memory of a micro-batch."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import get_device_states, set_device_states

from mmfusion.model import Fusion, MMFusionModel, MMFusionOutput

Inputs = dict[str, Tensor]
Forward = Callable[[Inputs], dict[str, Tensor]]


def embed_in_micro_batches(model: MMFusionModel, inputs: Inputs, size: int, **options: Any) -> MMFusionOutput:
    """What `model(**inputs, **options)` gives, without keeping activations of more than a micro-batch.

    Rows are embedded without a graph. When the loss hands back the gradients of the embeddings, each micro-batch is run
    again with its graph and the same random state, and the gradients of the parameters are added up (GradCache,
    arXiv:2101.06983). To autograd this is one operation on the parameters: each gets its gradient once, so that DDP
    synchronises once a step, and a scaler, clipping and accumulation see what they always see.

    Args:
        model: Model whose outputs for a row do not depend on the other rows: no BatchNorm layer gathers statistics.
        inputs: Arguments of its `forward`, one row for each query or product.
        size: Rows of queries, or of products, at a time; at least 1.
        options: Further arguments of `forward`.
    """
    outputs: dict[str, Tensor] = {}
    for side in ("query", "product"):
        rows = {name: value for name, value in inputs.items() if name.startswith("query_") == (side == "query")}
        if rows:
            outputs |= _embed(model, rows, size, options)
    if "expert_load" in outputs:
        outputs |= _whole_load(model.fusion, outputs["expert_load"], outputs["modality_present"], size)
    return MMFusionOutput(**outputs)


def check_rows_are_independent(model: nn.Module) -> None:
    """Raises a ValueError if a BatchNorm layer in training mode makes an embedding depend on its batch."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise ValueError(
                f"{name} gathers BatchNorm statistics, which depend on the micro-batch; give the model "
                "freeze_batch_norm=True, or train with --micro_batch 0."
            )


def _embed(model: MMFusionModel, rows: Inputs, size: int, options: dict[str, Any]) -> dict[str, Tensor]:
    device_type = next(iter(rows.values())).device.type
    # Without its cache: weights that were cast while no graph was wanted must not be met where one is.
    autocast: dict[str, Any] = {
        "device_type": device_type,
        "enabled": torch.is_autocast_enabled(device_type),
        "dtype": torch.get_autocast_dtype(device_type),
        "cache_enabled": False,
    }

    def forward(micro_batch: Inputs) -> dict[str, Tensor]:
        with torch.autocast(**autocast):
            output = model(**micro_batch, **options)
        return {name: _rows(name, value) for name, value in output.items() if name != "fusion_penalty"}

    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    parts = zip(*(value.split(size) for value in rows.values()), strict=True)
    micro_batches = [dict(zip(rows, part, strict=True)) for part in parts]
    names: list[str] = []
    values = _Cached.apply(forward, micro_batches, names, *parameters)
    return dict(zip(names, values, strict=True))


def _rows(name: str, value: Tensor) -> Tensor:
    # The only output that is not a row of its own for each query or product.
    return value.unsqueeze(0) if name == "expert_load" else value


def _whole_load(fusion: Fusion, loads: Tensor, present: Tensor, size: int) -> dict[str, Tensor]:
    """Load and penalty of a batch from the loads (micro-batches, experts), which are means over products with both."""
    both = present.all(1)
    counts = torch.stack([part.sum() for part in (both | ~both.any()).split(size)])
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
        ctx: Any, run: Forward, micro_batches: list[Inputs], names: list[str], *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        """All outputs, (rows, …) each; adds their names to `names`."""
        ctx.run, ctx.micro_batches, ctx.names, ctx.states = run, micro_batches, names, []
        ctx.save_for_backward(*parameters)
        ctx.set_materialize_grads(False)
        parts = []
        for micro_batch in micro_batches:
            ctx.states.append(_RandomState(next(iter(micro_batch.values()))))
            parts.append(run(micro_batch))
        names += parts[0]
        return tuple(torch.cat([part[name] for part in parts]) for name in names)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        parameters = ctx.saved_tensors
        wanted = {name: value for name, value in zip(ctx.names, gradients, strict=True) if value is not None}
        starts = dict.fromkeys(wanted, 0)
        totals: dict[int, Tensor] = {}
        for micro_batch, state in zip(ctx.micro_batches, ctx.states, strict=True):
            with state.restored(), torch.enable_grad():
                outputs = ctx.run(micro_batch)
            pairs = []
            for name, gradient in wanted.items():
                start, starts[name] = starts[name], starts[name] + len(outputs[name])
                pairs.append((outputs[name], gradient[start : starts[name]]))
            for index, found in _gradients(pairs, parameters):
                # Not in place, as two parameters may be handed the same tensor.
                totals[index] = totals[index] + found if index in totals else found
        return None, None, None, *(totals.get(index) for index in range(len(parameters)))


def _gradients(pairs: list[tuple[Tensor, Tensor]], parameters: tuple[Tensor, ...]) -> Iterator[tuple[int, Tensor]]:
    """Gradients of (output, its gradient) with respect to the parameters that had a part in it, by their position."""
    trained = [pair for pair in pairs if pair[0].requires_grad]
    if trained:
        outputs, gradients = zip(*trained, strict=True)
        found = torch.autograd.grad(outputs, parameters, gradients, allow_unused=True)
        yield from ((index, gradient) for index, gradient in enumerate(found) if gradient is not None)
