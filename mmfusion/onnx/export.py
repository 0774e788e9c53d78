"""From a model to a folder with its query tower in ONNX, which is checked before it is there."""

import json
import logging
import warnings
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.export import Dim

from mmfusion.extras import library
from mmfusion.files import sha256_of, whole_folder
from mmfusion.model import VIEWS, MMFusionModel, MMFusionProcessor
from mmfusion.onnx.query_tower import (
    DESCRIPTION,
    FILES,
    GRAPH,
    SCHEMA_VERSION,
    TOKENIZER,
    OnnxDescription,
    OnnxError,
    OnnxQueryTower,
    first_line,
)
from mmfusion.onnx.tokens import check_tokens, max_length, query_tokenizer
from mmfusion.retrieval.fingerprint import model_fingerprint
from mmfusion.retrieval.query_tower import query_tower
from mmfusion.retrieval.search import QueryEncoder
from mmfusion.retriever import Retriever

PARITY = 1e-4
INPUTS, OUTPUT = ("input_ids", "attention_mask"), "query_embeds"
# Older ones lack operators that PyTorch writes.
_OLDEST_OPSET = 18
# A protobuf file ends at 2 GiB; the graph next to the weights takes a little.
_ONE_FILE = 2**31 - 2**26
_FAILURES = (torch.onnx.OnnxExporterError, RuntimeError, ValueError)
_FIXED = ["red floral summer dress", "42", "¿vestido rojo de algodón?", "连衣裙 🧥", "قميص أزرق", "A" * 400]
# Of two texts, of an odd number, and of more than PyTorch embeds at once.
_BATCHES = (2, 7, 40)


def export_query_tower(
    model: MMFusionModel, processor: MMFusionProcessor, folder: Path | str, *, opset: int | None = None
) -> OnnxDescription:
    """Writes the query tower in ONNX and single precision, with its tokenizer and `query_tower.json`.

    Vectors are then compared with those of PyTorch in single precision, over queries of several lengths and batches of
    several sizes.

    Args:
        model: A whole model, or its query tower alone.
        processor: The model's.
        folder: Created if missing; a query tower that was exported into it is replaced, as a whole.
        opset: Version of the ONNX operators, from 18; None: what PyTorch writes best.

    Returns:
        What was written.

    Raises:
        OnnxError: The text encoder or its tokenizer cannot be exported, or a component differs by more than `PARITY`;
            the folder is left as it was.
        FileExistsError: The folder holds something else.
    """
    library("onnxruntime", "onnx")
    tower, tokenizer = query_tower(model).float(), query_tokenizer(processor)
    texts = probe_texts(tokenizer, max_length(tokenizer))
    check_tokens(tokenizer, processor, texts)
    with whole_folder(Path(folder), files=FILES, overwrite=True) as new:
        written = write_graph(tower, new, opset)
        tokenizer.save(str(new / TOKENIZER))
        unchecked = OnnxDescription(
            schema_version=SCHEMA_VERSION,
            model_fingerprint=model_fingerprint(model, processor),
            dimension=model.config.vector_dim,
            views=len(VIEWS) if model.config.query_router else 1,
            matryoshka_dims=tuple(model.config.matryoshka_dims),
            query_prompt=processor.query_prompt,
            max_length=max_length(tokenizer),
            parameters=tower.num_parameters(),
            opset=written,
            parity=float("nan"),
            sha256={path.name: sha256_of(path) for path in sorted(new.iterdir())},
            created_by=", ".join(f"{name} {version(name)}" for name in ("torch", "onnx", "onnxscript")),
        )
        _write(unchecked, new)
        exported = OnnxQueryTower.load(new, threads=torch.get_num_threads())
        description = replace(unchecked, parity=_parity(Retriever(tower, processor), exported, texts))
        _write(description, new)
    return description


def _write(description: OnnxDescription, folder: Path) -> None:
    text = json.dumps(asdict(description), indent=2, ensure_ascii=False)
    (folder / DESCRIPTION).write_text(text + "\n", "utf-8")


# --- The graph -------------------------------------------------------------------------------------------------------


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
        one_file: Bytes of weights from which on they go to a file next to it, `model.onnx.data`.

    Returns:
        The opset.

    Raises:
        OnnxError: PyTorch cannot export this text encoder, or not with this opset; or a library is missing or too
            old for it.
    """
    newest = library("onnx", "onnx").defs.onnx_opset_version()
    if opset is not None and not _OLDEST_OPSET <= opset <= newest:
        raise OnnxError(f"opset is {opset}; give {_OLDEST_OPSET} to {newest}, or leave it out")
    library("onnxscript", "onnx")
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
            # What is wrapped around the first cause explains PyTorch's exporter.
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            raise OnnxError(
                f"PyTorch cannot export a {tower.config.text_config.model_type!r} text encoder to ONNX"
                f"{'' if opset is None else f' with opset {opset}'} ({first_line(cause)}); serve it with PyTorch, or "
                "use another text encoder"
            ) from error
    written = int(program.model.opset_imports[""])
    if opset not in (None, written):
        raise OnnxError(f"opset is {opset}, and PyTorch wrote {written}; give no opset, or {written}")
    size = sum(value.nbytes for value in tower.state_dict().values())
    program.save(folder / GRAPH, external_data=size > one_file)
    return written


def _exported(tower: MMFusionModel, opset: int | None) -> torch.onnx.ONNXProgram:
    # Different in every size and with padding, so that nothing is taken for a constant.
    mask = torch.ones(2, 5, dtype=torch.long)
    mask[1, 3:] = 0
    axes = {0: Dim("batch"), 1: Dim("length")}
    # It logs each library that it could have used, deprecations of its own, and conversions that failed.
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore"):
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
    finally:
        logging.disable(before)
    assert program is not None
    return program


# --- Whether it gives the vectors of PyTorch -------------------------------------------------------------------------


def probe_texts(tokenizer: Tokenizer, max_length: int) -> list[str]:
    """Queries of 1 to more than `max_length` tokens: fixed ones, and words drawn from the vocabulary."""
    # Without the mark that SentencePiece puts for a blank, which nobody writes.
    plain = sorted({word.replace("▁", "") for word in tokenizer.get_vocab()})
    words = [word for word in plain if word.isprintable() and word.strip()]
    rng = np.random.default_rng(0)
    lengths = sorted({1, 2, 3, 5, 8, max(1, max_length // 2), max_length, 2 * max_length})
    return [*_FIXED, *(" ".join(rng.choice(words, length)) for length in lengths)]


def _parity(reference: QueryEncoder, exported: QueryEncoder, texts: list[str]) -> float:
    """The largest absolute difference of a component, over texts by themselves and padded in batches of several sizes.

    Raises:
        OnnxError: It exceeds `PARITY` or is NaN, or ONNX Runtime fails.
    """
    mixed = np.random.default_rng(0).permutation(texts).tolist()
    batches = [[text] for text in texts] + [[mixed[place % len(mixed)] for place in range(size)] for size in _BATCHES]
    try:
        differences = [np.abs(reference.encode_queries(one) - exported.encode_queries(one)).max() for one in batches]
    except Exception as error:  # ONNX Runtime's own.
        raise OnnxError(
            f"ONNX Runtime cannot run what PyTorch exported ({first_line(error)}); serve this "
            "model with PyTorch, or export it with other versions of torch and onnxruntime"
        ) from error
    difference = float(np.max(differences))
    # Written so that a NaN is an error, too.
    if not difference <= PARITY:
        raise OnnxError(
            f"vectors of ONNX Runtime differ from PyTorch's by {difference:.1e} and not by {PARITY:.0e} at most; "
            "nothing was written. Serve this model with PyTorch, or try another opset"
        )
    return difference
