"""mmfusion: two-tower product retrieval whose product tower reads the title and sees the photo.

Importing the package registers the model with transformers' `AutoConfig`, `AutoModel` and `AutoProcessor`. What
training and search need on top is loaded when it is first used.
"""

import sys
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

# `mmfusion --help` and `lightning run` do not wait for torch. (While `python -m` looks for the package, the program's
# name is "-m".)
if sys.argv[:1] != ["-m"] and Path(*sys.argv[:1]).stem not in ("mmfusion", "lightning"):
    import_module("mmfusion.model").register()

if TYPE_CHECKING:
    from mmfusion.data.catalogue import Catalogue
    from mmfusion.data.datamodule import MMFusionDataModule
    from mmfusion.evaluation import Evaluation, evaluate
    from mmfusion.hub import PhotoFetcher, load_card
    from mmfusion.losses import register_loss
    from mmfusion.model import (
        MMFusionConfig,
        MMFusionError,
        MMFusionModel,
        MMFusionOutput,
        MMFusionProcessor,
        register_fusion,
    )
    from mmfusion.onnx import OnnxQueryTower
    from mmfusion.retrieval import Hit, MilvusIndex, ProductIndex, Searcher
    from mmfusion.retriever import Retriever
    from mmfusion.stages import Optimization, Stage1, Stage2

_LATER = {
    "mmfusion.data.catalogue": ["Catalogue"],
    "mmfusion.data.datamodule": ["MMFusionDataModule"],
    "mmfusion.evaluation": ["Evaluation", "evaluate"],
    "mmfusion.hub": ["PhotoFetcher", "load_card"],
    "mmfusion.losses": ["register_loss"],
    "mmfusion.model": [
        "MMFusionConfig",
        "MMFusionError",
        "MMFusionModel",
        "MMFusionOutput",
        "MMFusionProcessor",
        "register_fusion",
    ],
    "mmfusion.onnx": ["OnnxQueryTower"],
    "mmfusion.retrieval": ["Hit", "MilvusIndex", "ProductIndex", "Searcher"],
    "mmfusion.retriever": ["Retriever"],
    "mmfusion.stages": ["Optimization", "Stage1", "Stage2"],
}
_MODULES = {name: module for module, names in _LATER.items() for name in names}

__all__ = [
    "Catalogue",
    "Evaluation",
    "Hit",
    "MMFusionConfig",
    "MMFusionDataModule",
    "MMFusionError",
    "MMFusionModel",
    "MMFusionOutput",
    "MMFusionProcessor",
    "MilvusIndex",
    "OnnxQueryTower",
    "Optimization",
    "PhotoFetcher",
    "ProductIndex",
    "Retriever",
    "Searcher",
    "Stage1",
    "Stage2",
    "__version__",
    "evaluate",
    "load_card",
    "register_fusion",
    "register_loss",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return metadata.version("mmfusion")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
