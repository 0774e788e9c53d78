"""The batch format, declared once: what every data set yields and every stage and embedder reads."""

from dataclasses import dataclass, replace
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from mmfusion.data.catalogue import BaseCatalogue
from mmfusion.data.qrels import Qrels, equals
from mmfusion.distributed import gather_on_host
from mmfusion.losses import Grades, graded


@dataclass(frozen=True)
class Judgements:
    """What a batch brings for its losses and metrics.

    Attributes:
        qrels: Judgements of the train queries in training, and of the val queries in validation.
        catalogue: Where the rows point.
        levels: Positive grades of the train judgements, ascending; the highest one is a full match.
        of_queries: In training, grades of the batch's queries with the products of all ranks, on its device.
        same_product: In training, grade 1 where a product of the batch is one of the products of all ranks.
    """

    qrels: Qrels
    catalogue: BaseCatalogue
    levels: tuple[int, ...]
    of_queries: Grades | None = None
    same_product: Grades | None = None

    def __call__(self, query_rows: Tensor, product_rows: Tensor) -> Tensor:
        """Grades (A, B) int64 between any query rows (A,) and product rows (B,), all on the CPU."""
        return torch.from_numpy(self.qrels.grades(query_rows.numpy(), product_rows.numpy()))

    def of_batch(self, query_rows: Tensor, product_rows: Tensor, device: torch.device) -> "Judgements":
        """These judgements with the grades of a training batch, of which each rank has a part; all come here.

        Args:
            query_rows: (Q,) int64 on the CPU, as many on each rank.
            product_rows: (P,) int64, in the same way.
            device: Where the grades go.
        """
        own, products = product_rows.numpy(), gather_on_host(product_rows).numpy()
        order = np.argsort(products, kind="stable")
        product, place = equals(own, products[order])
        pairs = self.qrels.pairs(query_rows.numpy(), products)
        return replace(
            self,
            of_queries=graded(*pairs, len(query_rows), self.levels, device),
            same_product=graded(product, order[place], np.ones_like(product), len(own), (1,), device),
        )


class QueryBatch(TypedDict, total=False):
    """Q queries; states are there if they were cached.

    Attributes:
        query_rows: (Q,) int64 rows of the catalogue's query table.
        query_input_ids, query_attention_mask: (Q, length) int64, the mask 1 for tokens.
        query_text_states: (Q, length, hidden) float32 from a text cache, which spares the text encoder; the ids are 0
            then.
        judgements: What grades are; the data module adds it on the way to the device.
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
        product_text_states: (P, length, hidden) float32 from a text cache, which spares the text encoder; the ids are
            0 then.
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
