"""How often the best product of a batch is one that the query asks for."""

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from mmfusion.data.datamodule import MMFusionDataModule
from mmfusion.stages import Stage

_MAX_PAIRS = 2**21


class InBatchAccuracy(L.Callback):
    """Logs `train/in_batch_accuracy`, from 0 to 1, in the steps that are logged.

    It is the share of queries of this rank's batch whose best product in it has a positive grade, for what the first
    graded term of the loss compares: the text view in stage 1, the fused vector in stage 2. The vectors are those that
    the loss is given, so that nothing is embedded again; they are compared a chunk at a time, whichever loss it is.
    """

    def __init__(self) -> None:
        self._wanted = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Stage)
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, MMFusionDataModule)

        def look(_: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
            if not self._wanted:
                return
            self._wanted = False
            queries, products, query_rows, product_rows = inputs[:4]
            best = product_rows[best_products(queries, products, options.get("right_mask"))]
            grades = data.train_qrels.grades_of(query_rows.cpu().numpy(), best[:, None].cpu().numpy())
            pl_module.log("train/in_batch_accuracy", float((grades > 0).mean()), batch_size=len(queries))

        self._hook = pl_module.graded_loss.register_forward_pre_hook(look, with_kwargs=True)

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._wanted = (trainer.global_step + 1) % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]

    def on_train_end(self, *_: Any) -> None:
        self._hook.remove()


@torch.no_grad()
def best_products(queries: Tensor, products: Tensor, present: Tensor | None = None) -> Tensor:
    """Position of the product with the highest inner product for each query.

    Args:
        queries: (Q, D).
        products: (P, D).
        present: (P,) bool; products with False are never the best. None means all True.

    Returns:
        (Q,) int64.
    """
    rows = max(1, _MAX_PAIRS // len(products))
    # Products of half precision are equal too often.
    candidates = products.detach().float()
    best = []
    for part in queries.detach().float().split(rows):
        scores = part @ candidates.T
        best.append((scores if present is None else scores.masked_fill(~present, float("-inf"))).argmax(1))
    return torch.cat(best)
