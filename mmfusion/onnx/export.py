"""From a model to a folder with its query tower in ONNX, which is checked before it is there."""

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch

from mmfusion.files import sha256_of, whole_folder
from mmfusion.model import VIEWS, MMFusionModel, MMFusionProcessor
from mmfusion.onnx.description import FILES, SCHEMA_VERSION, TOKENIZER, OnnxDescription, write_description
from mmfusion.onnx.extra import OnnxError, first_line, library
from mmfusion.onnx.graph import write_graph
from mmfusion.onnx.parity import largest_difference, probe_texts
from mmfusion.onnx.query_tower import OnnxQueryTower
from mmfusion.onnx.tokens import check_tokens, max_length, query_tokenizer
from mmfusion.retrieval.fingerprint import model_fingerprint
from mmfusion.retrieval.query_tower import query_tower
from mmfusion.retrieval.search import QueryEncoder, TorchQueryEncoder

PARITY = 1e-4


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
    library("onnxruntime")
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
        exported = OnnxQueryTower.open(new, unchecked, threads=torch.get_num_threads())
        description = replace(unchecked, parity=_parity(TorchQueryEncoder(tower, processor), exported, texts))
        write_description(new, description)
    return description


def _parity(reference: QueryEncoder, exported: QueryEncoder, texts: list[str]) -> float:
    try:
        difference = largest_difference(reference, exported, texts)
    except Exception as error:  # ONNX Runtime's own.
        raise OnnxError(
            f"ONNX Runtime cannot run what PyTorch exported ({first_line(error)}); serve this "
            "model with PyTorch, or export it with other versions of torch and onnxruntime"
        ) from error
    # Written so that a NaN is refused, too.
    if not difference <= PARITY:
        raise OnnxError(
            f"vectors of ONNX Runtime differ from PyTorch's by {difference:.1e} and not by {PARITY:.0e} at most; "
            "nothing was written. Serve this model with PyTorch, or try another opset"
        )
    return difference
