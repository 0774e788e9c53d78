"""A catalogue that needs no download: products drawn by this package, synthetic queries, tiny encoders."""

from mmfusion.data.embedded.encoders import EmbeddedBackbones, write_embedded_backbones
from mmfusion.data.embedded.tables import write_embedded_catalogue

__all__ = ["EmbeddedBackbones", "write_embedded_backbones", "write_embedded_catalogue"]
