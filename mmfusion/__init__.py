"""mmfusion: two-tower product retrieval whose product tower reads the title and sees the photo.

The names below load what they need on first use, so that `import mmfusion` is quick. Importing the package also
registers the model with transformers' `AutoConfig`, `AutoModel` and `AutoProcessor`.
"""

from typing import TYPE_CHECKING

from mmfusion.model import MMFusionConfig, MMFusionModel, MMFusionOutput, MMFusionProcessor

if TYPE_CHECKING:
    from mmfusion.data.catalogue import Catalogue
    from mmfusion.data.datamodule import MMFusionDataModule
    from mmfusion.retrieval import ProductIndex
    from mmfusion.stages import Stage1, Stage2
