"""Train and evaluate every variant of the ablation, from BM25 to the fusion kinds, and compare them in one table."""

from pathlib import Path
from typing import Any

from mmfusion.ablation import AblationSettings, Split, run_ablation
from mmfusion.ablation.bases import count_vision_blocks, read_embedding_dim
from mmfusion.evaluation.perturb import Perturbation
from mmfusion.stages import Optimization
from mmfusion.training import Hardware, run_command


def main(
    catalogue: str | None = None,
    base: str | None = None,
    output: str = "outputs/ablation",
    variants: tuple[str, ...] | None = None,
    seeds: tuple[int, ...] = (0, 1, 2),
    fusions: tuple[str, ...] = ("image_only", "weighted_mean", "bilinear", "moe", "cross_attention", "gated"),
    default_fusion: str = "gated",
    larger_base: str | None = None,
    stage1_steps: int = 400,
    stage2_steps: int = 200,
    batch_size: int = 64,
    stage2_batch_size: int = 64,
    extra_products: int = 0,
    photo_views: int = 1,
    stage1_optimization: Optimization = Optimization(
        learning_rate=1e-3, text_learning_rate=1e-3, vision_learning_rate=1e-3
    ),
    stage2_optimization: Optimization = Optimization(
        learning_rate=1e-3, text_learning_rate=3e-4, vision_learning_rate=3e-4
    ),
    stage1_options: dict[str, Any] | None = None,
    stage2_options: dict[str, Any] | None = None,
    freeze_vision_blocks: int = 0,
    feature_cache: str | None = None,
    split: Split = "val",
    perturbations: tuple[Perturbation, ...] = (
        "misleading_titles",
        "typos",
        "photos_dropped",
        "text_dropped",
        "photos_shuffled",
    ),
    product_slices: tuple[str, ...] = (),
    label_source: str = "",
    validate_every: int = 100,
    checkpoint_every: int = 100,
    hardware: Hardware = Hardware(),
    num_products: int = 2000,
    keep_working_files: bool = False,
    dry_run: bool = False,
    table_only: bool = False,
) -> None:
    """Writes ablation.<split>.md, .csv and .png; run again to go on where it stopped.

    Each variant is trained by the other recipes, as sub-processes whose logs lie beside their folders.

    Args:
        catalogue: Folder, fsspec URL or Hub id of a catalogue; default: the toy catalogue, drawn into the output.
        base: Folder or Hub id of an mmfusion model (see base.py); default: tiny encoders built in the output folder.
        output: Folder for everything that is written.
        variants: Variants to run, e.g. [bm25,text_only,concat]; default: all. The others are "not run" in the table.
        seeds: Of training; a variant is the mean of its seeds.
        fusions: Fusion kinds to compare beside text_only and concat, which are variants of their own; weighted_mean is
            three variants: text's share fixed at 0.9, at 0.1, and learned.
        default_fusion: The one of them that is also perturbed, routed and trained in one stage.
        larger_base: Model with a larger generic vision encoder, for the variant larger_generic; default: it is not run.
        stage1_steps: Optimizer steps of stage 1.
        stage2_steps: Optimizer steps of stage 2; variants without a stage 1 have the sum of both.
        batch_size: Pairs of query and product per batch in stage 1.
        stage2_batch_size: The same in stage 2, and in the variants over frozen encoders without a stage 1.
        extra_products: Further train products per batch of stage 2, as negatives.
        photo_views: Views of each photo to train with: it as it is, and crops, perhaps mirrored.
        stage1_optimization: Learning rates and schedule of stage 1. An encoder whose rate is 0 is frozen and its
            features are cached. The defaults suit tiny encoders trained from scratch.
        stage2_optimization: The same of stage 2.
        stage1_options: Further flags of stage1.py as JSON, e.g. {"title_image_weight": 0.5}, for every variant.
        stage2_options: Further flags of stage2.py as JSON, e.g. {"modality_dropout": 0.2}, for every variant.
        freeze_vision_blocks: Lowest vision blocks to freeze where the vision encoder is trained; 0 trains all.
        feature_cache: Folder for features of frozen encoders, shared by all runs; default: in the output folder.
        split: Queries of the table. Choose on val, and ask for test once.
        perturbations: Perturbed evaluations of the default fusion and of text only.
        product_slices: Product columns whose values slice Recall, e.g. text_stripped.
        label_source: Who or what judged, printed beside the numbers.
        validate_every: Optimizer steps between validations.
        checkpoint_every: Optimizer steps between checkpoints.
        hardware: Devices, precision and workers.
        num_products: Size of the toy catalogue.
        keep_working_files: Keeps checkpoints and copies of the catalogue in the folders of finished trainings.
        dry_run: Prints the commands and does nothing.
        table_only: Writes the table of what is finished and runs nothing, e.g. while another process runs the rest.
    """
    settings = AblationSettings(
        output=Path(output).absolute(),
        catalogue=_absolute(catalogue),
        base=_absolute(base),
        larger_base=_absolute(larger_base),
        vision_blocks=None if base is None else count_vision_blocks(base),
        larger_vision_blocks=None if larger_base is None else count_vision_blocks(larger_base),
        embedding_dim=read_embedding_dim(base),
        variants=variants,
        seeds=seeds,
        fusions=fusions,
        default_fusion=default_fusion,
        stage1_steps=stage1_steps,
        stage2_steps=stage2_steps,
        batch_size=batch_size,
        stage2_batch_size=stage2_batch_size,
        extra_products=extra_products,
        photo_views=photo_views,
        stage1_optimization=stage1_optimization,
        stage2_optimization=stage2_optimization,
        stage1_options=stage1_options or {},
        stage2_options=stage2_options or {},
        freeze_vision_blocks=freeze_vision_blocks,
        feature_cache=None if feature_cache is None else Path(feature_cache).absolute(),
        validate_every=validate_every,
        checkpoint_every=checkpoint_every,
        hardware=hardware,
        split=split,
        perturbations=perturbations,
        product_slices=product_slices,
        label_source=label_source,
        num_products=num_products,
    )
    checkout = Path(__file__).resolve().parent.parent
    run_ablation(settings, checkout, keep_working_files=keep_working_files, dry_run=dry_run, table_only=table_only)


def _absolute(source: str | None) -> str | None:
    """A folder as an absolute path, as recipes run in the checkout; a URL or Hub id as it is."""
    return str(Path(source).absolute()) if source is not None and Path(source).exists() else source


if __name__ == "__main__":
    run_command(main)
