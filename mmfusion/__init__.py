"""mmfusion: two-tower product retrieval whose product tower reads the title and sees the photo.

Importing the package registers the model with transformers' `AutoConfig`, `AutoModel` and `AutoProcessor`. What
training and search need on top is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mmfusion.model import MMFusionConfig, MMFusionModel, MMFusionOutput, MMFusionProcessor

if TYPE_CHECKING:
    from mmfusion.data.catalogue import Catalogue
    from mmfusion.data.datamodule import MMFusionDataModule
    from mmfusion.retrieval.index import ProductIndex
    from mmfusion.retriever import Retriever
    from mmfusion.stages import Stage1, Stage2

_MODULES = {
    "Catalogue": "mmfusion.data.catalogue",
    "MMFusionDataModule": "mmfusion.data.datamodule",
    "ProductIndex": "mmfusion.retrieval.index",
    "Retriever": "mmfusion.retriever",
    "Stage1": "mmfusion.stages",
    "Stage2": "mmfusion.stages",
}

__all__ = [
    "Catalogue",
    "MMFusionConfig",
    "MMFusionDataModule",
    "MMFusionModel",
    "MMFusionOutput",
    "MMFusionProcessor",
    "ProductIndex",
    "Retriever",
    "Stage1",
    "Stage2",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
