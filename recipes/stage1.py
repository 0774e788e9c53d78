"""Stage 1: fine-tune the encoders on the catalogue and align queries with titles and photos."""

from pathlib import Path
from typing import Literal

import lightning as L

from mmfusion.data.datamodule import MMFusionDataModule
from mmfusion.stages import Optimization, Stage1
from mmfusion.training import (
    Hardware,
    HubCheckpoints,
    build_trainer,
    cache_frozen,
    continue_from_hub,
    decisive,
    fit,
    load_base,
    load_catalogue,
    note_catalogue,
    open_run,
    preflight,
    run_command,
    starting_base,
)


def main(
    catalogue: str | None = None,
    base: str | None = None,
    output: str = "outputs/stage1",
    steps: int = 400,
    batch_size: int = 64,
    extra_products: int = 0,
    no_duplicates: str | None = None,
    group_by: str | None = None,
    hard_negatives: str | None = None,
    negatives_per_query: int | None = None,
    accumulate: int = 1,
    micro_batch: int = 0,
    loss: Literal["contrastive", "sigmoid"] = "contrastive",
    optimization: Optimization = Optimization(learning_rate=1e-3, text_learning_rate=1e-3, vision_learning_rate=1e-3),
    query_text_weight: float = 1.0,
    query_image_weight: float = 1.0,
    title_image_weight: float = 0.3,
    photo_views: int = 1,
    freeze_vision_blocks: int = 0,
    feature_cache: str | None = None,
    dev_fraction: float = 0.0,
    dev_by: str | None = None,
    stream: bool = False,
    shuffle_buffer: int = 4096,
    checkpoint_every: int = 100,
    validate_every: int = 100,
    log_to: Literal["csv", "tensorboard", "wandb"] = "csv",
    hardware: Hardware = Hardware(),
    hub: HubCheckpoints = HubCheckpoints(),
    resume: str | None = None,
    trust_checkpoint: bool = False,
    dry_run: bool = False,
    num_products: int = 2000,
    seed: int = 0,
) -> None:
    """Trains both encoders and writes the model, its processor, curves and checkpoints; run again to resume.

    Args:
        catalogue: Folder, fsspec URL or Hub id of a catalogue; default: the toy catalogue, drawn into the output.
        base: Folder or Hub id of an mmfusion model (see base.py); default: tiny encoders built in the output folder.
        output: Folder for everything that is written.
        steps: Optimizer steps.
        batch_size: Pairs of query and product per device and batch, at least 2.
        extra_products: Further train products per device and batch, as negatives; cheap where encoders are frozen.
        no_duplicates: What no two products of a batch, over all devices, share: product, photo and title, or some of
            them, separated by commas; default: they are not compared.
        group_by: Product column, e.g. category, that is of one value in a batch as far as a value has enough queries:
            harder negatives; default: batches are mixed.
        hard_negatives: Folder that mine.py wrote, for mined negatives of the queries; default: none.
        negatives_per_query: Mined negatives per query and batch, as further products; default: 1.
        accumulate: Batches per optimizer step.
        micro_batch: Queries or products whose activations are held at a time, so that a large batch fits into memory:
            towers run twice, with the same dropout, and gradients are those of the whole batch. 0 holds all.
        loss: Over the pairs of a batch: contrastive (softmax over all candidates), or sigmoid (each pair by itself;
            ranks pass negatives on instead of gathering them).
        optimization: Learning rates and schedule. The defaults suit tiny encoders trained from scratch; for
            pretrained ones use text_learning_rate=1e-4 and vision_learning_rate=3e-4.
        query_text_weight: Weight of the loss between queries and product texts.
        query_image_weight: Weight of the loss between queries and photos; with title_image_weight also 0, photos are
            not read at all.
        title_image_weight: Weight of the loss that pairs titles with their photos.
        photo_views: Views of each photo to train with: it as it is, and others that are cropped and perhaps mirrored.
            Features of frozen encoders are cached for each.
        freeze_vision_blocks: Lowest blocks of the vision encoder to freeze where its rate is above 0.
            0 trains all from photos.
        feature_cache: Folder for features of frozen encoders and blocks, which are computed once, to share it among
            runs; default: in the output folder. Not used with stream.
        dev_fraction: Share of train queries held out for validation instead of the val split, from 0 to below 1.
        dev_by: Query column whose values stay together in that fold; default: the query text.
        stream: Whether products are read where they lie, for catalogues larger than memory and disk: nothing is
            cached, and an epoch visits each product that a query asks for rather than each query.
        shuffle_buffer: Products that each worker of a stream holds to draw from, beside a row group.
        checkpoint_every: Optimizer steps between checkpoints.
        validate_every: Optimizer steps between validations on the val split.
        log_to: Where curves go besides the CSV file.
        hardware: Devices, precision and workers.
        hub: Where checkpoints are pushed while training goes on; default: nowhere.
        resume: Run on the Hub to continue here with its own arguments, as hub:org/run or hub:org/run@revision.
        trust_checkpoint: Whether that run may be somebody else's.
        dry_run: Whether to take one step with the largest batch, print the plan (parameters, tokens and photos per
            step, memory, time, disk), and write nothing. If memory runs out, it names a micro_batch that fits.
        num_products: Size of the toy catalogue.
        seed: Of weights, order of batches, choice of positives, and dropout.
    """
    if resume:
        return main(**continue_from_hub("stage1", main, locals()))
    arguments = decisive(locals())
    run = open_run(output, "stage1", arguments, dry_run=dry_run)
    if run.complete:
        return print(f"{run.folder} is complete; delete it or give another --output to train again.")
    L.seed_everything(seed, verbose=False)
    model, processor = load_base(starting_base(base, run.folder))
    products = load_catalogue(catalogue, base, run.folder, num_products, stream=stream)
    note_catalogue(run, products)
    data = MMFusionDataModule(
        products,
        processor,
        batch_size=batch_size,
        num_workers=hardware.num_workers,
        seed=seed,
        photos=bool(query_image_weight or title_image_weight),
        dev_fraction=dev_fraction,
        dev_by=dev_by,
        extra_products=extra_products,
        no_duplicates=no_duplicates,
        group_by=group_by,
        hard_negatives=hard_negatives,
        negatives_per_query=negatives_per_query,
        photo_views=photo_views,
        shuffle_buffer=shuffle_buffer,
    )
    cache_frozen(model, data, optimization, freeze_vision_blocks, Path(feature_cache or run.folder / "feature_cache"))
    stage = Stage1(
        model,
        optimization,
        query_text_weight=query_text_weight,
        query_image_weight=query_image_weight,
        title_image_weight=title_image_weight,
        loss=loss,
        micro_batch=micro_batch,
    )
    if dry_run:
        return preflight(run, hardware, stage, data, steps=steps, accumulate=accumulate, validate_every=validate_every)
    trainer = build_trainer(
        run,
        hardware,
        steps=steps,
        accumulate=accumulate,
        checkpoint_every=checkpoint_every,
        validate_every=validate_every,
        log_to=log_to,
        hub=hub,
    )
    fit(run, trainer, stage, data, processor)


if __name__ == "__main__":
    run_command(main)
