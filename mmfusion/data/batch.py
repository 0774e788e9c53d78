"""The batch format, declared once: what every data set yields and every stage and embedder reads."""

from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from mmfusion.data.catalogue import BaseCatalogue
from mmfusion.data.qrels import Qrels


@dataclass(frozen=True)
class Judgements:
    """Grades between any rows of a catalogue: what a batch brings for its losses and metrics.

    Attributes:
        qrels: Judgements of the train queries in training, and of the val queries in validation.
        catalogue: Where the rows point.
        levels: Positive grades of the train judgements, ascending; the highest one is a full match.
    """

    qrels: Qrels
    catalogue: BaseCatalogue
    levels: tuple[int, ...]

    def __call__(self, query_rows: Tensor, product_rows: Tensor) -> Tensor:
        """Grades (A, B) int64 between query rows (A,) and product rows (B,), on the device of the query rows."""
        grades = self.qrels.grades(query_rows.cpu().numpy(), product_rows.cpu().numpy())
        return torch.from_numpy(grades).to(query_rows.device)


class QueryBatch(TypedDict, total=False):
    """Q queries; states are there if they were cached.

    Attributes:
        query_rows: (Q,) int64 rows of the catalogue's query table.
        query_input_ids, query_attention_mask: (Q, length) int64, the mask 1 for tokens.
        query_text_states: (Q, length, hidden) float32 from a text cache, which spares the text encoder.
        judgements: What the grades of any rows are; the data module adds it on the way to the device.
    """

    query_rows: Tensor
    query_input_ids: Tensor
    query_attention_mask: Tensor
    query_text_states: Tensor
    judgements: Judgements


class ProductBatch(TypedDict, total=False):
    """P products. The photo keys are absent if no product of the batch has one.

    Attributes:
        product_rows: (P,) int64 rows of the catalogue's product table.
        product_input_ids, product_attention_mask: (P, length) int64; a mask row of zeros is a product without text.
        product_text_states: (P, length, hidden) float32 from a text cache, which spares the text encoder.
        pixel_values: (P, photos, channels, height, width) float32, as the image processor normalised it.
        vision_activations: (P, photos, …) float32 from a feature cache, instead of `pixel_values`.
        photo_mask: (P, photos) bool, True where there is a photo.
        judgements: As of queries.
    """

    product_rows: Tensor
    product_input_ids: Tensor
    product_attention_mask: Tensor
    product_text_states: Tensor
    pixel_values: Tensor
    vision_activations: Tensor
    photo_mask: Tensor
    judgements: Judgements


class TrainBatch(QueryBatch, ProductBatch):
    """Q queries and P >= Q products; which match is what the train qrels say of their rows, not their position."""
