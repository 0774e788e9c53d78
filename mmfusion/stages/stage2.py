"""Stage 2: the fusion network on top of aligned encoders."""

import torch
from torch import Tensor

from mmfusion.data.batch import TrainBatch
from mmfusion.model import VIEWS, MMFusionModel, MMFusionOutput
from mmfusion.stages.optimization import Optimization
from mmfusion.stages.stage import Stage, model_inputs


class Stage2(Stage):
    """Trains query against fused product vector; the single views stay on as regularisers.

    After arXiv:2603.04836 for the order of training; modality dropout as in multimodal practice, so that a product
    without its photo or its text is met in training.
    """

    def __init__(
        self,
        model: MMFusionModel,
        optimization: Optimization | None = None,
        *,
        fused_weight: float = 1.0,
        query_text_weight: float = 0.2,
        query_image_weight: float = 0.2,
        modality_dropout: float = 0.1,
        loss: str = "contrastive",
        micro_batch: int = 0,
        titles_to_photos: bool = False,
    ) -> None:
        """Takes a model.

        Args:
            model: Model to train.
            optimization: Learning rates and schedule.
            fused_weight: Weight of the graded loss between queries and fused vectors, above 0.
            query_text_weight: Weight of the same for the text view, at least 0.
            query_image_weight: Weight of the same for the photo view, at least 0.
            modality_dropout: Share of products that lose their text or (as often) their photo in a training step,
                in [0, 1); only products that have both lose one.
            loss, micro_batch, titles_to_photos: As in [`Stage`].
        """
        super().__init__(model, optimization, loss=loss, micro_batch=micro_batch, titles_to_photos=titles_to_photos)
        self.weights = {"fused": fused_weight, "query_text": query_text_weight, "query_image": query_image_weight}
        self.modality_dropout = modality_dropout
        if fused_weight <= 0 or min(self.weights.values()) < 0:
            raise ValueError(f"Loss weights are {self.weights}; fused must be above 0, the others at least 0.")
        if not 0.0 <= modality_dropout < 1.0:
            raise ValueError(f"modality_dropout is {modality_dropout}; give a number in [0, 1).")

    def terms(self, batch: TrainBatch) -> dict[str, tuple[float, Tensor]]:
        output = self.embed(drop_modalities(model_inputs(batch), self.modality_dropout))
        has_text, has_image = output.modality_present.unbind(1)
        queries, values = output.query_view_embeds, {"fused": self.fused_term(output, batch)}
        if self.weights["query_text"]:
            values["query_text"] = self.query_term(queries, output.text_embeds, batch, has_text)
        # Even of a batch without photos: the loss is a meeting of all ranks, and another one's batch may have some.
        if self.weights["query_image"] and self.model.config.fusion != "text_only":
            values["query_image"] = self.query_term(queries, output.image_embeds, batch, has_image)
        both = output.modality_present.all(1)
        if both.any():
            # A spread of 0 is a gate that looks at no product.
            share = output.modality_weights[both, 1].detach()
            gate = {"train/image_weight": share.mean(), "train/image_weight_spread": share.std(correction=0)}
            self.log_dict(gate, batch_size=len(both))
        terms = {name: (self.weights[name], value) for name, value in values.items()}
        if output.query_weights is not None:
            for name, weight in zip(VIEWS, output.query_weights.detach().mean(0), strict=True):
                self.log(f"train/query_weight/{name}", weight, batch_size=len(output.query_weights))
        if output.fusion_penalty is not None:
            terms["fusion_penalty"] = (1.0, output.fusion_penalty)
        if output.expert_load is not None:
            for expert, load in enumerate(output.expert_load.detach()):
                self.log(f"train/expert_load/{expert}", load, batch_size=len(both))
        return terms

    def fused_term(self, output: MMFusionOutput, batch: TrainBatch) -> Tensor:
        """Mean of the graded losses of the vectors at full width and at each width of `matryoshka_dims`."""
        queries, products = output.query_embeds, output.product_embeds
        assert queries is not None and products is not None
        widths = [None, *self.model.config.matryoshka_dims]
        shortened = [(self.model.shorten(queries, dim), self.model.shorten(products, dim)) for dim in widths]
        return torch.stack([self.query_term(left, right, batch, None) for left, right in shortened]).mean()

    def ranked_views(self, output: MMFusionOutput) -> dict[str, Tensor]:
        assert output.product_embeds is not None
        return {"fused": output.product_embeds}


def drop_modalities(inputs: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Hides the text or the photos of a random share of the products that have both.

    Args:
        inputs: Arguments of the model's `forward`; not changed.
        share: In [0, 1).

    Returns:
        The inputs, with rows of `product_attention_mask` set to 0 or of `photo_mask` to False.
    """
    if share == 0 or "photo_mask" not in inputs:
        return inputs
    text_mask, photo_mask = inputs["product_attention_mask"], inputs["photo_mask"]
    both = text_mask.any(1) & photo_mask.any(1)
    draw = torch.rand(len(both), device=both.device)
    no_text, no_photo = both & (draw < share / 2), both & (draw >= share / 2) & (draw < share)
    return {
        **inputs,
        "product_attention_mask": text_mask.masked_fill(no_text[:, None], 0),
        "photo_mask": photo_mask & ~no_photo[:, None],
    }
