"""What both stages share: losses over train judgements, parameter groups, schedule and validation by ranking."""

from contextlib import ExitStack
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor

from mmfusion.allocator import keep_freed_memory, return_freed_memory
from mmfusion.data.batch import TrainBatch
from mmfusion.distributed import all_reduce_sum, world_size
from mmfusion.distributed.shards import clip_gradients, complete_gradients, gathered, is_sharded
from mmfusion.evaluation.metrics import RetrievalNDCGAtK, RetrievalRecallAtK
from mmfusion.losses import LOSSES
from mmfusion.model import MMFusionModel, MMFusionOutput
from mmfusion.model.errors import MMFusionError
from mmfusion.stages.gradient_cache import check_rows_are_independent, embed_in_micro_batches
from mmfusion.stages.lora import adapted_layers
from mmfusion.stages.optimization import Optimization, can_fuse, freeze_by_rate, parameter_groups, warmup_cosine
from mmfusion.stages.sharding import shard

QUERIES, PRODUCTS = 0, 1
RECALL_AT, NDCG_AT, TITLES_AT = 100, 10, 10
_QUERIES_AT_ONCE = 256


class NonFiniteLossError(MMFusionError, RuntimeError):
    """The loss became NaN or infinite."""


class Stage(L.LightningModule):
    """Base of the stages; a subclass says which terms its loss has and what it ranks in validation.

    Attributes:
        model: The model in training; hand it on with `model.save_pretrained`, as a `.ckpt` is for resuming only.
        schedules: First step and number of steps of each schedule of learning rates, more than one where a finished
            training was extended; empty: one over all steps.
        compared: What the first graded term of the last training batch compared, without gradients, for callbacks:
            queries (Q, D), products (P, D), and which products are present, (P,) bool or None for all.
    """

    def __init__(
        self,
        model: MMFusionModel,
        optimization: Optimization | None = None,
        *,
        loss: str = "contrastive",
        micro_batch: int = 0,
        titles_to_photos: bool = False,
    ) -> None:
        """Takes a model.

        Args:
            model: Model to train.
            optimization: Learning rates and schedule; default: [`Optimization`]'s defaults.
            loss: Over all pairs of two sets: `contrastive` ([`GradedContrastiveLoss`]), `sigmoid`
                ([`GradedSigmoidLoss`]), or one that [`register_loss`] added.
            micro_batch: Rows of which activations are held at a time ([`embed_in_micro_batches`]); 0 holds all.
            titles_to_photos: Whether the queries of validation are titles, and its products show their photos alone:
                what is measured is Recall@10 from titles to photos, and nothing that could be taken for queries.
        """
        super().__init__()
        if loss not in LOSSES:
            raise ValueError(
                f"loss is {loss!r}; give one of {', '.join(LOSSES)}, or import the file that registers it."
            )
        if micro_batch < 0:
            raise ValueError(f"micro_batch is {micro_batch}; give a number of rows, or 0 to embed a batch at once.")
        self.model = model
        self.optimization = optimization or Optimization()
        self.graded_loss, self.pair_loss = LOSSES[loss](), LOSSES[loss]()
        self.micro_batch = micro_batch
        freeze_by_rate(model, self.optimization)
        self.titles_to_photos = titles_to_photos
        self.schedules: list[tuple[int, int]] = []
        self._collected: tuple[list[Any], list[Any]] = ([], [])
        self._sharded = False
        self._gathered = ExitStack()
        self._embedded: MMFusionOutput | None = None
        self.compared: tuple[Tensor, Tensor, Tensor | None] | None = None
        # from_pretrained gives a model in evaluation mode, and Lightning keeps the mode it finds.
        self.train()

    def terms(self, batch: TrainBatch) -> dict[str, tuple[float, Tensor]]:
        """Weight and value of each loss term of a batch, by name."""
        raise NotImplementedError

    def ranked_views(self, output: MMFusionOutput) -> dict[str, Tensor]:
        """Product embeddings (P, D) to rank in validation, by name; the first one chooses checkpoints."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        if self.micro_batch:
            check_rows_are_independent(self.model)

    def configure_model(self) -> None:
        # Lightning comes here for each of fit and validate.
        if self._sharded or not isinstance(self.trainer.strategy, ModelParallelStrategy):
            return
        if self.micro_batch:
            raise ValueError(
                f"micro_batch is {self.micro_batch}, which FSDP cannot do: it reduces gradients in the backward pass "
                "that gradient caching replaces. Give --micro_batch 0 and --hardware.activation_checkpointing true, "
                "or --hardware.strategy ddp."
            )
        assert self.device_mesh is not None
        shard(self.model, self.device_mesh["data_parallel"])
        self._sharded = is_sharded(self.model)

    def train(self, mode: bool = True) -> "Stage":
        """Sets training mode; frozen encoders stay in evaluation mode, as their dropout would only be noise."""
        super().train(mode)
        for encoder in (self.model.text_model, self.model.query_model, self.model.vision_model):
            if encoder is not None and not any(parameter.requires_grad for parameter in encoder.parameters()):
                encoder.eval()
        return self

    def training_step(self, batch: TrainBatch, batch_idx: int) -> Tensor:
        if "judgements" not in batch:
            raise TypeError(
                "The batch has no judgements, which MMFusionDataModule adds on the way to the device; call "
                "trainer.fit(stage, datamodule=MMFusionDataModule(…))."
            )
        self.compared = None
        terms = self.terms(batch)
        loss = torch.stack([weight * value for weight, value in terms.values()]).sum()
        # The mean over ranks is the loss of the global batch, where one rank's part of it depends on their number.
        values = torch.stack([loss, *(value for _, value in terms.values())])
        means = dict(zip(("loss", *terms), all_reduce_sum(values) / world_size(), strict=True))
        # Not of the own loss: ranks agree, as one that ends alone leaves the others waiting for its gradients.
        if not torch.isfinite(means["loss"]):
            self._stop(
                batch, bool(torch.isfinite(loss)), {name: float(value.detach()) for name, (_, value) in terms.items()}
            )
        self.log("train/loss", means.pop("loss"), prog_bar=True, batch_size=len(batch["query_rows"]))
        logged = {f"train/{name}": value for name, value in means.items()}
        logged["train/logit_scale"] = self.model.logit_scale.detach().exp()
        self.log_dict(logged, batch_size=len(batch["query_rows"]))
        return loss if world_size() == 1 and not self._sharded else loss + self._anchor()

    def on_train_start(self) -> None:
        # Adapters are for those who have little memory: holes between activations took half as much again.
        if adapted_layers(self.model):
            return_freed_memory()
        else:
            keep_freed_memory()
        # On a CPU half of the tokens of a batch would be padding; fewer texts together would not keep the cores busy.
        self.model.texts_at_once = 32 if self.device.type == "cpu" else None
        if len(self.schedules) > 1:
            # The checkpoint that an extension begins with has the rate with which the schedule before it ended.
            schedule: Any = self.lr_schedulers()
            for group, peak, share in zip(
                schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
            ):
                group["lr"] = peak * share(schedule.last_epoch)

    def on_after_backward(self) -> None:
        self._embedded = None
        # What a batch has nothing for, as the vision encoder without a photo: optimizers see the same parameters in
        # every step. Ranks of DDP have seen to that, as they need a gradient from each parameter: see `_anchor`.
        if self._sharded or world_size() == 1:
            complete_gradients(self.parameters())

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        if gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            # Lightning knows no shards, and rejects fused optimizers in mixed precision, scaled or not.
            clip_gradients(self.parameters(), gradient_clip_val)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        rows = batch.pop("query_rows" if dataloader_idx == QUERIES else "product_rows")
        self._judgements = batch.pop("judgements")
        output = self.model(**batch, views_only=self.views_only)
        if dataloader_idx == QUERIES:
            views = {"query": output.query_embeds}
        else:
            views = {**self.ranked_views(output), "present": output.modality_present}
        self._collected[dataloader_idx].append((rows.cpu(), {name: view.float().cpu() for name, view in views.items()}))

    def on_validation_epoch_start(self) -> None:
        # A rank may have one batch more than the others.
        self._gathered.enter_context(gathered(self.model))
        self._collected = ([], [])

    def on_validation_epoch_end(self) -> None:
        self._gathered.close()
        query_rows, queries = _of_all_ranks(self._collected[QUERIES])
        product_rows, views = _of_all_ranks(self._collected[PRODUCTS])
        has_text, has_image = views.pop("present").any(0).tolist()
        # Where no product has a text or a photo, that view is arbitrary, and so would be its figures.
        missing = {name for name, there in (("text", has_text), ("image", has_image)) if not there}
        if self.titles_to_photos:
            views, missing = {"title_to_photo": next(iter(views.values()))}, set()
        for name, products in views.items():
            if name in missing:
                continue
            metrics = self._rank(queries["query"], products, query_rows, product_rows)
            for metric, value in metrics.items():
                self.log(f"val/{name}/{metric}", value, prog_bar=metric.endswith("@10"), rank_zero_only=False)

    def _rank(self, queries: Tensor, products: Tensor, query_rows: Tensor, product_rows: Tensor) -> dict[str, float]:
        """Recall@100 and nDCG@10 in [0, 1] of queries (Q, D) over all given products (N, D); NaN where undefined.

        From titles to photos it is Recall@10 alone.

        Ties stay in the order in which they come; use `mmfusion.evaluation` for figures to report.
        """
        relevant = max(self._judgements.levels)
        recall_at = TITLES_AT if self.titles_to_photos else RECALL_AT
        recall, ndcg = RetrievalRecallAtK(recall_at, relevant_grade=relevant), RetrievalNDCGAtK(NDCG_AT)
        for part in torch.arange(len(queries)).split(_QUERIES_AT_ONCE):
            grades = self._judgements(query_rows[part], product_rows)
            ranked = (queries[part] @ products.T).topk(min(RECALL_AT, len(products)), dim=1).indices
            recall.update(grades.gather(1, ranked), (grades >= relevant).sum(1))
            ndcg.update(grades.gather(1, ranked), grades.topk(min(NDCG_AT, len(products)), dim=1).values)
        # Not by `compute`: ranks have nothing to add up, as each has all queries, and a mean over no query is NaN here.
        means = [float(metric.total / metric.num_queries) for metric in (recall, ndcg)]
        found = dict(zip((f"recall@{recall_at}", f"ndcg@{NDCG_AT}"), means, strict=True))
        return {name: value for name, value in found.items() if not self.titles_to_photos or name.startswith("recall")}

    def configure_optimizers(self) -> Any:
        groups = parameter_groups(self.model, self.optimization)
        biases = [*self.graded_loss.parameters(), *self.pair_loss.parameters()]
        if biases:
            rate = self.optimization.learning_rate
            groups.append({"params": biases, "lr": rate, "weight_decay": 0.0, "name": "loss"})
        fused = can_fuse(self.device, self.trainer.precision)
        optimizer = torch.optim.AdamW(groups, lr=self.optimization.learning_rate, fused=fused)
        schedules = self.schedules or [(0, int(self.trainer.estimated_stepping_batches))]
        schedule = warmup_cosine(optimizer, schedules, self.optimization)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    views_only = False

    def embed(self, inputs: dict[str, Tensor], **options: Any) -> Any:
        """The model's output for a training batch, an [`MMFusionOutput`], all at once or in micro-batches."""
        if self.micro_batch:
            return embed_in_micro_batches(self.model, inputs, self.micro_batch, **options)
        output = self.model(**inputs, **options)
        self._embedded = output if self._sharded else None
        return output

    def query_term(self, queries: Tensor, products: Tensor, batch: TrainBatch, present: Tensor | None) -> Tensor:
        """Graded loss between queries (Q, D) and one view of the products (P, D), with (P,) bool `present`."""
        if self.compared is None:
            self.compared = queries.detach(), products.detach(), present
        grades = batch["judgements"].of_queries
        loss: Tensor = self.graded_loss(queries, products, grades, self.model.logit_scale, right_mask=present)
        return loss

    def _anchor(self) -> Tensor:
        # A batch without a single photo leaves the vision encoder out of the graph; DDP wants a gradient from each
        # trainable parameter on each rank. FSDP wants what ran in the forward pass, which may be gathered no more, to
        # run in the backward pass.
        parts = [p for p in self.parameters() if p.requires_grad]
        if self._embedded is not None:
            parts = [value for value in self._embedded.values() if value.requires_grad]
        return 0.0 * torch.stack([part.sum() for part in parts]).sum()

    def _stop(self, batch: TrainBatch, finite: bool, values: dict[str, float]) -> None:
        if finite:
            raise NonFiniteLossError(
                f"The loss of another rank is not finite at step {self.global_step}; see its error."
            )
        ids = batch["judgements"].catalogue.product_ids[batch["product_rows"].cpu().numpy()][:8]
        raise NonFiniteLossError(
            f"The loss is not finite at step {self.global_step} on rank {self.global_rank} ({values}); first products "
            f"of the batch: {', '.join(map(str, ids))}. Lower the learning rates, or check these products."
        )


def model_inputs(batch: TrainBatch) -> dict[str, Tensor]:
    """What the model reads of a batch: all but the rows of the catalogue and their judgements."""
    return {name: value for name, value in batch.items() if not name.endswith(("_rows", "judgements"))}  # type: ignore[misc]


def _of_all_ranks(parts: list[tuple[Tensor, dict[str, Tensor]]]) -> tuple[Tensor, dict[str, Tensor]]:
    """Rows (N,) and embeddings (N, D) by view, from the batches of all ranks."""
    ranks = [parts]
    if world_size() > 1:
        ranks = [parts] * world_size()
        dist.all_gather_object(ranks, parts)
    rows, views = zip(*(part for parts in ranks for part in parts), strict=True)
    return torch.cat(rows), {name: torch.cat([view[name] for view in views]) for name in views[0]}
