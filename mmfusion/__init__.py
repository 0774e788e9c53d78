"""mmfusion: two-tower product retrieval whose product tower reads the title and sees the photo.

Importing the package registers the model with transformers' `AutoConfig`, `AutoModel` and `AutoProcessor`. What
training and search need on top is loaded when it is first used.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

# `mmfusion --help` and `lightning run` do not wait for torch. (Where `python -m` looks for the package, the program's
# name is still "-m".)
if sys.argv[:1] != ["-m"] and Path(*sys.argv[:1]).stem not in ("mmfusion", "lightning"):
    import_module("mmfusion.model")

if TYPE_CHECKING:
    from mmfusion.data.catalogue import Catalogue
    from mmfusion.data.datamodule import MMFusionDataModule
    from mmfusion.evaluation import Evaluation, evaluate
    from mmfusion.model import MMFusionConfig, MMFusionModel, MMFusionOutput, MMFusionProcessor
    from mmfusion.retrieval.index import ProductIndex
    from mmfusion.retriever import Retriever
    from mmfusion.stages import Stage1, Stage2

_MODULES = {
    "Catalogue": "mmfusion.data.catalogue",
    "MMFusionConfig": "mmfusion.model",
    "MMFusionDataModule": "mmfusion.data.datamodule",
    "Evaluation": "mmfusion.evaluation",
    "MMFusionModel": "mmfusion.model",
    "MMFusionOutput": "mmfusion.model",
    "MMFusionProcessor": "mmfusion.model",
    "ProductIndex": "mmfusion.retrieval.index",
    "Retriever": "mmfusion.retriever",
    "Stage1": "mmfusion.stages",
    "Stage2": "mmfusion.stages",
    "evaluate": "mmfusion.evaluation",
}

__all__ = [
    "Catalogue",
    "Evaluation",
    "MMFusionConfig",
    "MMFusionDataModule",
    "MMFusionModel",
    "MMFusionOutput",
    "MMFusionProcessor",
    "ProductIndex",
    "Retriever",
    "Stage1",
    "Stage2",
    "evaluate",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
