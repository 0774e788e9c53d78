"""What stage 1 and stage 2 share: their settings, and the steps around the training itself."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import lightning as L

from mmfusion.data.catalogue import Catalogue
from mmfusion.data.datamodule import MMFusionDataModule
from mmfusion.data.photo_check import check_photos
from mmfusion.data.pseudo_queries import with_pseudo_queries
from mmfusion.data.text_check import warn_of_texts
from mmfusion.extras import library
from mmfusion.model import MMFusionModel, MMFusionProcessor
from mmfusion.stages import Lora, Optimization, Stage
from mmfusion.training import (
    Hardware,
    HubCheckpoints,
    Run,
    build_trainer,
    cache_frozen,
    continue_from_hub,
    fit,
    load_catalogue,
    note_catalogue,
    open_run,
    preflight,
    recorded_arguments,
)
from mmfusion.training.best import KeepBest
from mmfusion.training.run import is_first_rank

# Settings that the data module takes under the same names.
_DATA_OPTIONS = (
    "batch_size",
    "seed",
    "dev_fraction",
    "dev_by",
    "extra_products",
    "no_duplicates",
    "group_by",
    "hard_negatives",
    "negatives_per_query",
    "photo_views",
    "shuffle_buffer",
)


@dataclass
class StageConfig:
    """Settings of a training.

    Attributes:
        base: Folder or Hub id of the model to start from.
        output: Folder for everything that is written.
        catalogue: Folder, fsspec URL or Hub id of a catalogue; default: the one that the base was trained on.
        cache_dir: Folder in which all commands share the catalogue as they map it into memory; default: the environment
            variable MMFUSION_CACHE, or else the output folder, with hard links to what folders beside it have.
        unknown_judgements: What to do with judgements of queries or products that the catalogue lacks: stop with an
            error, or drop them and say how many.
        steps: Optimizer steps. A run that has finished continues where the same command asks for more: the added steps
            warm up and decay once more.
        batch_size: Pairs of query and product per device and batch, at least 2.
        extra_products: Further train products per device and batch, as negatives; cheap where encoders are frozen.
        no_duplicates: What no two products of a batch, over all devices, share: product, photo and title, or some of
            them, e.g. [product,photo]; default: they are not compared.
        group_by: Product column, e.g. category, that has one value in a batch as far as a value has enough queries:
            harder negatives; default: batches are mixed.
        hard_negatives: Folder that `mmfusion mine` wrote, for mined negatives of the queries; default: none.
        negatives_per_query: Mined negatives per query and batch, as further products; default: 1.
        accumulate: Batches per optimizer step.
        micro_batch: Queries or products whose activations are held at a time at most (fewer of long texts), so that a
            large batch fits into memory: towers run twice, with the same dropout, and gradients are those of the whole
            batch. 0 holds all.
        loss: Loss over the pairs of a batch: contrastive (softmax over all candidates), or sigmoid (each pair by
            itself; ranks pass negatives on instead of gathering them), or one that a module in the environment variable
            MMFUSION_IMPORT registers.
        optimization: Learning rates and schedule; an encoder whose rate is 0 is frozen and its features are cached.
        lora: Low-rank adapters that are trained in place of the encoders' weights, for less memory.
        query_text_weight: Weight of the loss between queries and product texts.
        query_image_weight: Weight of the loss between queries and photos.
        allow_missing_photos: Whether to continue where fewer than half of the photos that products name can be read.
        photo_views: Views of each photo to train with: the photo as it is, and others that are cropped and perhaps
            mirrored. Features of frozen encoders are cached for each.
        freeze_vision_blocks: Lowest blocks of the vision encoder to freeze where its rate is above 0; 0 trains all.
        feature_cache: Folder for features of frozen encoders and blocks, which are computed once, to share it among
            runs; default: in the output folder. Not used with stream.
        dev_fraction: Share of train queries held out for validation instead of the val split, from 0 to below 1.
        dev_by: Query column whose values stay together in that fold; default: the query text.
        pseudo_queries: Whether titles and attributes of products stand in for queries, where nobody has logged any: the
            catalogue's own queries are not read, a tenth of its products is held out, and validation measures Recall@10
            from their titles to their photos. See `with_pseudo_queries`; not with stream.
        stream: Whether products are read from where they are, for catalogues larger than memory and disk: nothing is
            cached, and an epoch visits each product that a query asks for rather than each query.
        shuffle_buffer: Products that each worker of a stream holds to draw from, in addition to a row group.
        checkpoint_every: Optimizer steps between checkpoints.
        validate_every: Optimizer steps between validations on the val split.
        keep: Whether the model folder gets the last model, or the one that did best in validation (by nDCG@10 of the
            first view that the stage ranks).
        patience: Validations in a row without a better score after which training stops; default: never.
        log_to: Where curves go besides the CSV file.
        hardware: Devices, precision and workers.
        hub: Where checkpoints are pushed during training; default: nowhere.
        resume: Run on the Hub to continue here with its own arguments, as hub:org/run or hub:org/run@revision.
        trust_checkpoint: Whether that run may belong to someone else.
        dry_run: Whether to take one step with the largest batch, print the plan (parameters, tokens and photos per
            step, memory, time, disk), and write nothing. If memory runs out, it names a micro_batch that fits.
        seed: Random seed for new weights, order of batches, choice of positives, and dropout.
    """

    base: str | None = None
    output: str = "outputs/stage"
    catalogue: str | None = None
    cache_dir: str | None = None
    unknown_judgements: Literal["error", "drop"] = "error"
    steps: int = 400
    batch_size: int = 64
    extra_products: int = 0
    no_duplicates: list[str] | None = None
    group_by: str | None = None
    hard_negatives: str | None = None
    negatives_per_query: int | None = None
    accumulate: int = 1
    micro_batch: int = 0
    loss: str = "contrastive"
    optimization: Optimization = field(default_factory=Optimization)
    lora: Lora = field(default_factory=Lora)
    query_text_weight: float = 1.0
    query_image_weight: float = 1.0
    allow_missing_photos: bool = False
    photo_views: int = 1
    freeze_vision_blocks: int = 0
    feature_cache: str | None = None
    dev_fraction: float = 0.0
    dev_by: str | None = None
    pseudo_queries: bool = False
    stream: bool = False
    shuffle_buffer: int = 4096
    checkpoint_every: int = 100
    validate_every: int = 100
    keep: Literal["last", "best"] = "last"
    patience: int | None = None
    log_to: Literal["csv", "tensorboard", "wandb"] = "csv"
    hardware: Hardware = field(default_factory=Hardware)
    hub: HubCheckpoints = field(default_factory=HubCheckpoints)
    resume: str | None = None
    trust_checkpoint: bool = False
    dry_run: bool = False
    seed: int = 0


Config = TypeVar("Config", bound=StageConfig)


def begin(name: str, config: Config) -> tuple[Config, Run]:
    """Opens the output folder; the config of a run that continues from the Hub is that run's own."""
    if config.resume:
        config = continue_from_hub(name, config)
    if config.lora.rank is not None:
        library("peft", "lora")
    run = open_run(config.output, name, recorded_arguments(config), dry_run=config.dry_run, extendable=True)
    if run.complete:
        print(f"{run.folder} is complete; raise --steps to extend it, or give another --output to train again.")
        _say_next(run, config)
    L.seed_everything(config.seed, verbose=False)
    return config, run


def open_catalogue(config: StageConfig, run: Run, num_products: int = 2000) -> Catalogue:
    """The catalogue of a training, which must be the one that the run started with."""
    if config.pseudo_queries and (config.stream or config.dev_fraction):
        raise ValueError(
            "--pseudo_queries reads the titles of all products and holds some of them out itself; leave --stream and "
            "--dev_fraction out."
        )
    options: dict[str, Any] = {"stream": config.stream, "products_only": config.pseudo_queries}
    options |= {"unknown": config.unknown_judgements, "cache_dir": config.cache_dir}
    catalogue = load_catalogue(config.catalogue, config.base, run.folder, num_products, **options)
    if config.pseudo_queries:
        catalogue = with_pseudo_queries(catalogue, seed=config.seed)
        run.note(held_out_products=len(catalogue.product_rows("val")))
        print(
            f"{len(catalogue.query_rows('train')):,} pseudo-queries from titles and attributes stand in for queries; "
            "validation measures how titles find photos, and nothing says how people find what they ask for"
        )
    note_catalogue(run, catalogue)
    return catalogue


def build_data(
    config: StageConfig,
    run: Run,
    catalogue: Catalogue,
    model: MMFusionModel,
    processor: MMFusionProcessor,
    *,
    photos: bool,
) -> MMFusionDataModule:
    """Batches of a catalogue, with features of what the config freezes from a cache."""
    options: dict[str, Any] = {name: getattr(config, name) for name in _DATA_OPTIONS}
    options |= {"num_workers": config.hardware.num_workers, "photos": photos, "val_texts": not config.pseudo_queries}
    data = MMFusionDataModule(catalogue, processor, **options)
    warn_of_texts(catalogue, processor)
    if photos:
        check_photos(catalogue, data.train_rows, allow_missing=config.allow_missing_photos)
    folder = Path(config.feature_cache or run.folder / "feature_cache")
    cache_frozen(model, data, config.optimization, config.freeze_vision_blocks, folder)
    return data


def train(config: StageConfig, run: Run, stage: Stage, data: MMFusionDataModule, processor: MMFusionProcessor) -> None:
    """Trains a stage, or resumes its training, and saves the model; a dry run only prints what it would need."""
    length = {"steps": config.steps, "accumulate": config.accumulate, "validate_every": config.validate_every}
    if config.dry_run:
        preflight(run, config.hardware, stage, data, **length)
        if is_first_rank():
            print("next: the same command without --dry_run")
        return
    best = None
    if config.keep == "best" or config.patience is not None:
        if not len(data.val_qrels) or config.validate_every > config.steps:
            raise ValueError(
                f"--keep {config.keep} and --patience {config.patience} need validations, and there are none: "
                f"{len(data.val_qrels)} judgements of val queries, --validate_every {config.validate_every} of --steps "
                f"{config.steps}. Give --dev_fraction 0.1, or validate more often."
            )
        best = KeepBest(run, processor, keep=config.keep == "best", patience=config.patience)
    trainer = build_trainer(
        run,
        config.hardware,
        **length,
        checkpoint_every=config.checkpoint_every,
        log_to=config.log_to,
        hub=config.hub,
        best=best,
    )
    fit(run, trainer, stage, data, processor)
    _say_next(run, config)


def _say_next(run: Run, config: StageConfig) -> None:
    if is_first_rank():
        follows = "stage2" if run.record["recipe"] == "stage1" else "evaluate"
        print(f"next: mmfusion {follows} --base {config.output}")
