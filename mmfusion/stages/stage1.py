"""Stage 1: domain fine-tuning of the encoders, and alignment of queries with titles and photos."""

from torch import Tensor

from mmfusion.data.batch import TrainBatch
from mmfusion.model import MMFusionModel, MMFusionOutput
from mmfusion.stages.optimization import Optimization
from mmfusion.stages.stage import Stage, model_inputs


class Stage1(Stage):
    """Brings queries, product texts and photos into one space; the fusion network is left alone.

    Order of training after arXiv:2603.04836, which does not publish its losses; the three contrastive terms are ours.
    """

    views_only = True

    def __init__(
        self,
        model: MMFusionModel,
        optimization: Optimization | None = None,
        *,
        query_text_weight: float = 1.0,
        query_image_weight: float = 1.0,
        title_image_weight: float = 0.3,
        loss: str = "contrastive",
        micro_batch: int = 0,
        titles_to_photos: bool = False,
    ) -> None:
        """Takes a model.

        Args:
            model: Model to train; its fusion network gets no gradient.
            optimization: Learning rates and schedule.
            query_text_weight: Weight of the graded loss between queries and product texts, at least 0.
            query_image_weight: Weight of the graded loss between queries and photos; 0 leaves photos out.
            title_image_weight: Weight of the loss that pairs each title with its own photo; 0 leaves it out.
            loss, micro_batch, titles_to_photos: As in [`Stage`].
        """
        super().__init__(model, optimization, loss=loss, micro_batch=micro_batch, titles_to_photos=titles_to_photos)
        self.weights = {
            "query_text": query_text_weight,
            "query_image": query_image_weight,
            "title_image": title_image_weight,
        }
        if min(self.weights.values()) < 0 or not any(self.weights.values()):
            raise ValueError(f"Loss weights are {self.weights}; give numbers of at least 0, one of them above 0.")
        model.fusion.requires_grad_(False)
        if not (query_image_weight or title_image_weight):
            for part in (model.vision_model, model.vision_neck, model.image_projection):
                if part is not None:
                    part.requires_grad_(False)

    def terms(self, batch: TrainBatch) -> dict[str, tuple[float, Tensor]]:
        output = self.embed(model_inputs(batch), views_only=True)
        has_text, has_image = output.modality_present.unbind(1)
        queries, values = output.query_view_embeds, {}
        if self.weights["query_text"]:
            values["query_text"] = self.query_term(queries, output.text_embeds, batch, has_text)
        if self.weights["query_image"]:
            values["query_image"] = self.query_term(queries, output.image_embeds, batch, has_image)
        if self.weights["title_image"]:
            values["title_image"] = self.pair_loss(
                output.text_embeds,
                output.image_embeds,
                batch["judgements"].same_product,
                self.model.logit_scale,
                left_mask=has_text,
                right_mask=has_image,
            )
        return {name: (self.weights[name], value) for name, value in values.items()}

    def ranked_views(self, output: MMFusionOutput) -> dict[str, Tensor]:
        assert output.text_embeds is not None and output.image_embeds is not None
        views = {"text": output.text_embeds}
        if self.weights["query_image"]:
            views = {"mean": mean_of_views(output), **views, "image": output.image_embeds}
        return views


def mean_of_views(output: MMFusionOutput) -> Tensor:
    """Sum of the views that are present, (P, D): what cross-attention fusion starts from."""
    assert output.text_embeds is not None and output.image_embeds is not None and output.modality_present is not None
    has_text, has_image = output.modality_present.unsqueeze(-1).unbind(1)
    return output.text_embeds * has_text + output.image_embeds * has_image
