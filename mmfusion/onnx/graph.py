"""The query tower as an ONNX graph, from token ids to vectors."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim

from mmfusion.model import MMFusionModel
from mmfusion.onnx.description import GRAPH
from mmfusion.onnx.extra import OnnxError, first_line, library

INPUTS, OUTPUT = ("input_ids", "attention_mask"), "query_embeds"
# Older ones lack operators that PyTorch writes.
_OLDEST_OPSET = 18
# A protobuf file ends at 2 GiB; the graph beside the weights takes a little.
_ONE_FILE = 2**31 - 2**26


class _Queries(nn.Module):
    def __init__(self, tower: MMFusionModel) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.tower.get_query_features(input_ids, attention_mask)


def write_graph(tower: MMFusionModel, folder: Path, opset: int | None = None, one_file: int = _ONE_FILE) -> int:
    """Writes `model.onnx`: `input_ids`, `attention_mask` (Q, length) int64 -> `query_embeds` (Q, D) float32.

    Args:
        tower: A query tower on the CPU, in evaluation mode and single precision.
        folder: Where to.
        opset: Version of the ONNX operators, from 18; None: what PyTorch writes best.
        one_file: Bytes of weights from which on they go to a file beside it, `model.onnx.data`.

    Returns:
        The opset.

    Raises:
        OnnxError: PyTorch cannot export this text encoder, or not with this opset; or a library is missing or too
            old for it.
    """
    _check_opset(opset)
    library("onnxscript")
    try:
        program = _exported(tower, opset)
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("onnxscript"):
            raise
        raise OnnxError(
            f"PyTorch {torch.__version__} exports with a newer onnxscript than the {version('onnxscript')} that is "
            f"installed ({error}); pip install -U onnxscript"
        ) from error
    except _FAILURES:
        # Some encoders, T5 among them, are written for what the plain attention returns.
        for encoder in tower.encoders():
            encoder.set_attn_implementation("eager")
        try:
            program = _exported(tower, opset)
        except _FAILURES as error:
            raise OnnxError(
                f"PyTorch cannot export a {tower.config.text_config.model_type!r} text encoder to ONNX"
                f"{'' if opset is None else f' with opset {opset}'} ({first_line(_first_cause(error))}); serve it with "
                "PyTorch, or use another text encoder"
            ) from error
    written = int(program.model.opset_imports[""])
    if opset not in (None, written):
        raise OnnxError(f"opset is {opset}, and PyTorch wrote {written}; give no opset, or {written}")
    size = sum(value.nbytes for value in tower.state_dict().values())
    program.save(folder / GRAPH, external_data=size > one_file)
    return written


_FAILURES = (torch.onnx.OnnxExporterError, RuntimeError, ValueError)


def _exported(tower: MMFusionModel, opset: int | None) -> torch.onnx.ONNXProgram:
    # Different in every size and with padding, so that nothing is taken for a constant.
    mask = torch.ones(2, 5, dtype=torch.long)
    mask[1, 3:] = 0
    axes = {0: Dim("batch"), 1: Dim("length")}
    with _quiet():
        program = torch.onnx.export(
            _Queries(tower).eval(),
            (torch.ones_like(mask), mask),
            dynamo=True,
            verbose=False,
            input_names=list(INPUTS),
            output_names=[OUTPUT],
            dynamic_shapes=dict.fromkeys(INPUTS, axes),
            opset_version=opset,
        )
    assert program is not None
    return program


def _check_opset(opset: int | None) -> None:
    newest = library("onnx").defs.onnx_opset_version()
    if opset is not None and not _OLDEST_OPSET <= opset <= newest:
        raise OnnxError(f"opset is {opset}; give {_OLDEST_OPSET} to {newest}, or none")


@contextmanager
def _quiet() -> Iterator[None]:
    # It tells of each library that it could have used, of deprecations of its own, and of conversions that failed.
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _first_cause(error: BaseException) -> BaseException:
    # What is wrapped around it explains PyTorch's exporter.
    while error.__cause__ is not None:
        error = error.__cause__
    return error
