"""Which ways of training help: python tests/benchmarks/training_choices.py --help (by hand; takes minutes per choice)

Each choice trains a fusion network from the same weights, with the recipes' own stages, data, seed and budget; one
thing differs:

- plain: stage 2 over frozen encoders, as recipes/stage2.py does it
- average: an exponential moving average of the weights takes their place at the end
- near_misses: further products of a batch are products of the second-best grade of its own queries (right type, and all
  but one of what was asked for), rather than drawn evenly
- encoder: stage 1, then *plain*: what the next two are compared with
- by_depth: *encoder* with a rate for each block of the text encoder, 0.8 times that of the block above it
- lora: *encoder* with low-rank adapters in the text encoder (arXiv:2106.09685, needs peft), merged into it afterwards

The folders hold models; recipes/evaluate.py --compare puts intervals beside the differences.
"""

import argparse
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from torch import nn

from mmfusion.data.datamodule import MMFusionDataModule
from mmfusion.data.loaders import ResumableLoader
from mmfusion.data.qrels import Qrels
from mmfusion.data.sampler import PairSampler
from mmfusion.data.tables import PairRows, PairTable, text_lengths
from mmfusion.model import MMFusionModel
from mmfusion.stages import Optimization, Stage, Stage1, Stage2
from mmfusion.stages.optimization import warmup_cosine
from mmfusion.training import Hardware, build_trainer, cache_frozen, fit, load_base, load_catalogue, open_run

FIRST = Optimization(learning_rate=1e-3, text_learning_rate=1e-4, vision_learning_rate=0)
SECOND = Optimization(learning_rate=2e-3, text_learning_rate=0, vision_learning_rate=0, weight_decay=0.3)
DEPTH_DECAY, LORA_RANK, LORA_RATE, AVERAGE = 0.8, 16, 5e-4, 0.98


class NearMisses(PairSampler):
    """Draws further products among those of the second-best grade of the batch's queries."""

    def __init__(self, qrels: Qrels, lengths: Any, **arguments: Any) -> None:
        super().__init__(qrels, lengths, **arguments)
        self._misses = arguments["extra_products"]
        levels = np.unique(qrels.grade)
        assert len(levels) > 1, "near misses need two grades"
        keep = qrels.grade == levels[-2]
        self._miss_queries, self._miss_products = qrels.query[keep], qrels.product[keep]

    def __iter__(self) -> Iterator[PairRows]:
        for index, batch in enumerate(super().__iter__()):
            rng = np.random.default_rng([self.seed, self.epoch, index, 2])
            drawn = batch.products[: len(batch.queries)]
            near = np.setdiff1d(self._miss_products[np.isin(self._miss_queries, batch.queries)], drawn)
            size = min(self._misses, len(near))
            yield PairRows(batch.queries, np.concatenate([drawn, rng.choice(near, size, replace=False)]))


class Data(MMFusionDataModule):
    """The data module of the recipes with another sampler."""

    sampler: type[PairSampler] = PairSampler

    def train_dataloader(self) -> ResumableLoader:
        sampler = self.sampler(
            self.train_qrels,
            text_lengths(self.catalogue, self.processor.template_columns),
            batch_size=self.batch_size,
            seed=self.seed,
            pool=self.train_rows,
            extra_products=self.extra_products,
        )
        return ResumableLoader(PairTable(self._queries, self._train_products), sampler=sampler, **self._loading())


class ByDepth(Stage1):
    """Stage 1 with a learning rate for each block of the text encoder."""

    def configure_optimizers(self) -> Any:
        found: dict[tuple[float, float], list[nn.Parameter]] = {}
        blocks = 1 + max(_block(name) for name, _ in self.model.text_model.named_parameters())
        text = {id(value): _block(name) for name, value in self.model.text_model.named_parameters()}
        for value in self.model.parameters():
            if value.requires_grad:
                depth = DEPTH_DECAY ** (blocks - 1 - text[id(value)]) if id(value) in text else 1.0
                rate = self.optimization.text_learning_rate if id(value) in text else self.optimization.learning_rate
                decay = self.optimization.weight_decay if value.ndim >= 2 else 0.0
                found.setdefault((depth * rate, decay), []).append(value)
        groups = [{"params": own, "lr": rate, "weight_decay": decay} for (rate, decay), own in found.items()]
        optimizer = torch.optim.AdamW(groups)
        schedule = warmup_cosine(optimizer, [(0, int(self.trainer.estimated_stepping_batches))], self.optimization)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _block(name: str) -> int:
    """Place of a parameter's block; below the first, -1."""
    found = re.search(r"\.(\d+)\.", name)
    return int(found.group(1)) if found else -1


def add_lora(model: MMFusionModel) -> Callable[[], None]:
    """Puts adapters beside the text encoder's linear layers and freezes those; returns what merges them."""
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import Linear

    settings = LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, lora_dropout=0.05, target_modules="all-linear")
    inject_adapter_in_model(settings, model.text_model)

    def merge() -> None:
        for name, layer in list(model.text_model.named_modules()):
            if isinstance(layer, Linear):
                layer.merge()
                model.text_model.set_submodule(name, layer.get_base_layer())

    return merge


class Training:
    """Trainings that differ in one thing."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        arguments.output.mkdir(parents=True, exist_ok=True)
        self.catalogue = load_catalogue(arguments.catalogue, None, arguments.output)

    def fusion(
        self, name: str, base: Path, sampler: type[PairSampler] = PairSampler, callbacks: tuple[Callback, ...] = ()
    ) -> None:
        L.seed_everything(self.arguments.seed, verbose=False)
        model, processor = load_base(str(base), fusion=self.arguments.fusion)
        sizes = (self.arguments.stage2_batch_size, self.arguments.extra_products)
        data = self._data(processor, sampler, *sizes)
        self._fit(name, model, processor, data, SECOND, Stage2, self.arguments.stage2_steps, callbacks)

    def both(self, name: str, stage: type[Stage1] = Stage1, lora: bool = False) -> None:
        L.seed_everything(self.arguments.seed, verbose=False)
        model, processor = load_base(self.arguments.base)
        merge = add_lora(model) if lora else None
        data = self._data(processor, PairSampler, self.arguments.batch_size, 0)
        rates = replace(FIRST, text_learning_rate=LORA_RATE) if lora else FIRST
        first = f"{name}_stage1"
        self._fit(first, model, processor, data, rates, stage, self.arguments.stage1_steps, (), merge)
        self.fusion(name, self.arguments.output / first)

    def _data(self, processor: Any, sampler: type[PairSampler], batch_size: int, extra_products: int) -> Data:
        sizes = {"batch_size": batch_size, "extra_products": extra_products, "seed": self.arguments.seed}
        data = Data(self.catalogue, processor, **sizes)
        data.sampler = sampler
        return data

    def _fit(
        self,
        name: str,
        model: MMFusionModel,
        processor: Any,
        data: Data,
        rates: Optimization,
        kind: type[Stage],
        steps: int,
        callbacks: tuple[Callback, ...],
        merge: Callable[[], None] | None = None,
    ) -> None:
        run = open_run(self.arguments.output / name, "benchmark_training_choices", {"name": name})
        if run.complete:
            return
        cache_frozen(model, data, rates, 0, self.arguments.feature_cache)
        trainer = build_trainer(
            run, Hardware(accelerator="cpu"), steps=steps, accumulate=1, checkpoint_every=steps, validate_every=steps
        )
        trainer.callbacks.extend(callbacks)  # type: ignore[attr-defined]
        fit(run, trainer, kind(model, rates), data, processor)
        if merge is not None:
            merge()
            model.save_pretrained(run.folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("choices", nargs="+", help="names from the list above")
    parser.add_argument("--catalogue", required=True, help="with a train and a val split")
    parser.add_argument("--base", required=True, help="model that stage 1 begins with")
    parser.add_argument("--stage1", type=Path, help="what stage 1 made of it, for the choices of stage 2")
    parser.add_argument("--feature_cache", required=True, type=Path, help="as of the recipes; frozen photos go there")
    parser.add_argument("--output", required=True, type=Path, help="folder of the models, a folder each")
    parser.add_argument("--fusion", default="gated")
    parser.add_argument("--stage1_steps", type=int, default=120)
    parser.add_argument("--stage2_steps", type=int, default=150)
    parser.add_argument("--batch_size", type=int, default=128, help="of stage 1")
    parser.add_argument("--stage2_batch_size", type=int, default=384)
    parser.add_argument("--extra_products", type=int, default=384)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    training = Training(arguments)
    known: dict[str, Callable[[], None]] = {
        "plain": lambda: training.fusion("plain", arguments.stage1),
        "average": lambda: training.fusion("average", arguments.stage1, callbacks=(EMAWeightAveraging(decay=AVERAGE),)),
        "near_misses": lambda: training.fusion("near_misses", arguments.stage1, NearMisses),
        "encoder": lambda: training.both("encoder"),
        "by_depth": lambda: training.both("by_depth", ByDepth),
        "lora": lambda: training.both("lora", lora=True),
    }
    for choice in arguments.choices:
        if choice not in known:
            parser.error(f"{choice!r} is not a choice; known are {', '.join(known)}")
        known[choice]()


if __name__ == "__main__":
    main()
