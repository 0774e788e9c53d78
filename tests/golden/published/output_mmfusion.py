"""What the model gives back."""

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class MMFusionOutput(ModelOutput):
    """Output of `MMFusionModel` for Q queries and P products; a side that was not given is None.

    Args:
        query_embeds: (Q, D) float, L2-normalised: the vectors to search with. (Q, 3 D) with a query router.
        product_embeds: (P, D) float, L2-normalised: the vectors to index. (P, 3 D) with a query router: the fused, text
            and photo view side by side, each L2-normalised, compared with queries by inner product.
        modality_weights: (P, 2) float, share of text and photo; rows sum to 1, exactly 0 for a missing modality.
        text_embeds: (P, D) float, L2-normalised text views; arbitrary where `modality_present[:, 0]` is False.
        image_embeds: (P, D) float, L2-normalised photo views; arbitrary where `modality_present[:, 1]` is False, and
            for `text_only` outside `views_only`, which does not look at photos of products with a text.
        modality_present: (P, 2) bool, columns text and photo.
        query_view_embeds: (Q, D) float, L2-normalised: what `text_embeds` and `image_embeds` are compared with.
        query_weights: (Q, 3) float with a query router: weights of the fused, text and photo view; rows sum to 1.
        fusion_penalty: Scalar that the fusion network asks to be added to the loss, with its weight.
        expert_load: (experts,) share of the products that each expert serves, of a mixture of experts.
    """

    query_embeds: Tensor | None = None
    product_embeds: Tensor | None = None
    modality_weights: Tensor | None = None
    text_embeds: Tensor | None = None
    image_embeds: Tensor | None = None
    modality_present: Tensor | None = None
    query_view_embeds: Tensor | None = None
    query_weights: Tensor | None = None
    fusion_penalty: Tensor | None = None
    expert_load: Tensor | None = None
