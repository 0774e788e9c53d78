"""The batch format, declared once: what every data set yields and every stage and embedder reads."""

from typing import TypedDict

from torch import Tensor


class QueryBatch(TypedDict):
    """Q queries.

    Attributes:
        query_rows: (Q,) int64 rows of the catalogue's query table.
        query_input_ids, query_attention_mask: (Q, length) int64, the mask 1 for tokens.
    """

    query_rows: Tensor
    query_input_ids: Tensor
    query_attention_mask: Tensor


class ProductBatch(TypedDict, total=False):
    """P products. The last three keys are absent if no product of the batch has a photo.

    Attributes:
        product_rows: (P,) int64 rows of the catalogue's product table.
        product_input_ids, product_attention_mask: (P, length) int64; a mask row of zeros is a product without text.
        pixel_values: (P, photos, channels, height, width) float32, as the image processor normalised it.
        vision_activations: (P, photos, …) float32 from a feature cache, instead of `pixel_values`.
        photo_mask: (P, photos) bool, True where there is a photo.
    """

    product_rows: Tensor
    product_input_ids: Tensor
    product_attention_mask: Tensor
    pixel_values: Tensor
    vision_activations: Tensor
    photo_mask: Tensor


class TrainBatch(QueryBatch, ProductBatch):
    """B queries and B products; which of them match is what the train qrels say of their rows, not their position."""
