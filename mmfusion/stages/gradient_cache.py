"""Gradient caching: the embeddings of a large batch, and their gradients, with the memory of a micro-batch."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import accumulate, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import get_device_states, set_device_states

from mmfusion.model import Fusion, MMFusionModel, MMFusionOutput
from mmfusion.model.families import pads_to_full_length
from mmfusion.model.text_encoders import text_ends

Inputs = dict[str, Tensor]
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
    sides = []
    # Products first, whose activations are the larger ones: the gradients of all parameters are there after them.
    for side in ("product", "query"):
        rows = {name: value for name, value in inputs.items() if name.startswith("query_") == (side == "query")}
        if rows:
            sides.append(_Side(model, rows, side, size, options))
    names: list[str] = []
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    values = _Cached.apply(sides, names, *parameters)
    outputs: dict[str, Tensor] = dict(zip(names, values, strict=True))
    if "expert_load" in outputs:
        outputs |= _whole_load(model.fusion, outputs["expert_load"], outputs["modality_present"], sides[0].parts)
    return MMFusionOutput(**outputs)


def check_rows_are_independent(model: nn.Module) -> None:
    """Raises a ValueError if a BatchNorm layer in training mode makes an embedding depend on its batch."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise ValueError(
                f"{name} gathers BatchNorm statistics, which depend on the micro-batch; give the model "
                "freeze_batch_norm=True, or train with --micro_batch 0."
            )


class _Side:
    """The queries or the products of a batch in micro-batches.

    Attributes:
        parts: Rows (n,) int64 of each micro-batch, all rows together.
    """

    def __init__(self, model: MMFusionModel, rows: Inputs, side: str, size: int, options: dict[str, Any]) -> None:
        self._model, self._rows, self._side, self._options = model, rows, side, options
        mask = rows[f"{side}_attention_mask"]
        ends = text_ends(mask)
        # The longest texts first: they need most memory.
        order = ends.argsort(stable=True, descending=True)
        if pads_to_full_length(model.config.text_config):
            lengths = [mask.shape[1]] * len(order)
        else:
            lengths = [max(1, end) for end in ends[order].tolist()]
        sizes = _micro_batches(lengths, size)
        self.parts = order.split(sizes)
        # Of the first text of each part, which is its longest.
        self._lengths = [lengths[start] for start in accumulate(sizes[:-1], initial=0)]
        # Without its cache: weights that were cast while no graph was wanted must not be met where one is.
        self._autocast: dict[str, Any] = {
            "device_type": mask.device.type,
            "enabled": torch.is_autocast_enabled(mask.device.type),
            "dtype": torch.get_autocast_dtype(mask.device.type),
            "cache_enabled": False,
        }
        self._embeddings = [layer for layer in model.modules() if isinstance(layer, nn.Embedding)]

    def embed(self, part: int) -> dict[str, Tensor]:
        """What the model gives for a micro-batch, by name: (n, …), or (1, …) where it is not of single rows."""
        micro_batch = {name: value[self.parts[part]] for name, value in self._rows.items()}
        for name in micro_batch.keys() & {f"{self._side}_{kind}" for kind in _OF_TOKENS}:
            micro_batch[name] = micro_batch[name][:, : self._lengths[part]]
        with torch.autocast(**self._autocast), _gradients_of_rows(self._embeddings):
            output = self._model(**micro_batch, **self._options)
        return {
            name: value.unsqueeze(0) if name in _OF_MICRO_BATCHES else value
            for name, value in output.items()
            if name != "fusion_penalty"
        }


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


@contextmanager
def _gradients_of_rows(embeddings: Sequence[nn.Embedding]) -> Iterator[None]:
    """On a CPU, has embedding layers give gradients of the rows that they look up, instead of a whole vocabulary's.

    A GPU would add them up in an order that changes, so that a run could not be repeated.
    """
    dense = [
        layer
        for layer in embeddings
        if layer.weight.device.type == "cpu" and not layer.sparse and not layer.scale_grad_by_freq
    ]
    try:
        for layer in dense:
            layer.sparse = True
        yield
    finally:
        for layer in dense:
            layer.sparse = False


def _whole_load(fusion: Fusion, loads: Tensor, present: Tensor, parts: Sequence[Tensor]) -> dict[str, Tensor]:
    """Load and penalty of a batch from the loads (micro-batches, experts), which are means over products with both."""
    both = present.all(1)
    counted = both | ~both.any()
    counts = torch.stack([counted[part].sum() for part in parts])
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
    def forward(ctx: Any, sides: Sequence[_Side], names: list[str], *parameters: Tensor) -> tuple[Tensor, ...]:
        """All outputs of all sides, (rows, …) each in the order of the rows; adds their names to `names`."""
        ctx.sides, ctx.names, ctx.states = sides, [], []
        ctx.save_for_backward(*parameters)
        ctx.set_materialize_grads(False)
        values: list[Tensor] = []
        for side in sides:
            outputs, states = [], []
            for number, rows in enumerate(side.parts):
                states.append(_RandomState(rows))
                outputs.append(side.embed(number))
            back = torch.cat(list(side.parts)).argsort()
            for name in outputs[0]:
                whole = torch.cat([output[name] for output in outputs])
                values.append(whole if name in _OF_MICRO_BATCHES else whole[back])
            ctx.names.append(list(outputs[0]))
            ctx.states.append(states)
            names += outputs[0]
        return tuple(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        left = iter(gradients)
        with _Sums(ctx.saved_tensors) as sums:
            for side, names, states in zip(ctx.sides, ctx.names, ctx.states, strict=True):
                found = dict(zip(names, islice(left, len(names)), strict=True))
                wanted = {name: gradient for name, gradient in found.items() if gradient is not None}
                # Nothing is run again for a side that the loss does not read.
                for number, (rows, state) in enumerate(zip(side.parts, states, strict=True) if wanted else ()):
                    with state.restored(), torch.enable_grad():
                        outputs = side.embed(number)
                    sums.add(
                        (outputs[name], gradient[[number] if name in _OF_MICRO_BATCHES else rows])
                        for name, gradient in wanted.items()
                    )
        return None, None, *sums.totals


class _Sums(ExitStack):
    """Sums of the gradients of parameters over micro-batches.

    Each gradient is added as soon as it is there, so that those of one micro-batch are never held all at once.

    Attributes:
        totals: By position; None for parameters that had no part in anything.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        super().__init__()
        self.totals: list[Tensor | None] = [None] * len(parameters)
        self._parameters, self._own = parameters, set[int]()
        for index, parameter in enumerate(parameters):
            self.callback(parameter.register_hook(partial(self._add, index)).remove)

    def add(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Adds the gradients of outputs, given the gradient of each; the graph is freed."""
        trained = [pair for pair in pairs if pair[0].requires_grad]
        if trained:
            outputs, gradients = zip(*trained, strict=True)
            torch.autograd.grad(outputs, self._parameters, gradients, allow_unused=True)

    def _add(self, index: int, gradient: Tensor) -> Tensor:
        total = self.totals[index]
        if gradient.is_sparse and total is None:
            self.totals[index] = gradient.to_dense()
            self._own.add(index)
        elif total is None:
            self.totals[index] = gradient
        elif index in self._own:
            total += gradient
        else:
            # Not in place, as two parameters may be handed the same tensor.
            self.totals[index] = total + gradient
            self._own.add(index)
        # What autograd keeps until the end takes next to no memory.
        return gradient if gradient.is_sparse else gradient.new_zeros(()).expand_as(gradient)
