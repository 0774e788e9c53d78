"""Where a command gets its base model and its catalogue from."""

import logging
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock
from transformers import PreTrainedConfig

from mmfusion.data.catalogue import Catalogue
from mmfusion.data.hub_ids import check_readable
from mmfusion.data.streamed_catalogue import StreamedCatalogue
from mmfusion.data.toy_catalogue import write_toy_catalogue
from mmfusion.data.toy_encoders import write_toy_encoders
from mmfusion.files import absolute_place, is_hub_id
from mmfusion.model import MMFusionConfig, MMFusionModel, MMFusionProcessor
from mmfusion.model.configuration_mmfusion import own_fields
from mmfusion.model.errors import explain
from mmfusion.retrieval.query_tower import load_with_info
from mmfusion.training.catalogue_cache import load_shared
from mmfusion.training.run import Run, RunError, read_record

logger = logging.getLogger(__name__)


def load_catalogue(
    source: str | None,
    base: str | None,
    folder: Path,
    num_products: int = 2000,
    *,
    stream: bool = False,
    products_only: bool = False,
    unknown: Literal["error", "drop"] = "error",
    cache_dir: str | None = None,
) -> Catalogue:
    """Loads a catalogue; without a source the one that the base was trained on, or else the toy catalogue.

    Args:
        source: Folder, fsspec URL or Hub data set id.
        base: Folder of the base model, or None.
        folder: Output folder of the run; the toy catalogue goes there.
        num_products: Size of the toy catalogue.
        stream: Leaves texts and photos of products where they are.
        products_only: Reads no queries and judgements; not of a stream.
        unknown: What to do with judgements of unknown queries or products; see [`Catalogue.load`].
        cache_dir: Folder for the memory-mapped tables; see `load_shared`.
    """
    if source is None and base is not None:
        source = (read_record(Path(base)) or {}).get("catalogue")
    if source is None:
        with _one_rank_at_a_time(folder):
            source = str(write_toy_catalogue(folder / "toy_catalogue", num_products=num_products))
    load: Any = StreamedCatalogue.load if stream else Catalogue.load_products if products_only else Catalogue.load
    if not products_only:
        load = partial(load, unknown=unknown)
    catalogue: Catalogue = load_shared(load, source, folder, cache_dir, base)
    logger.info("%r", catalogue)
    return catalogue


def forget_other_tables(catalogue: Catalogue, folder: Path) -> None:
    """Removes the tables of earlier contents of a catalogue, and those that a kill left unfinished.

    Each has about the size of the uncompressed catalogue, photos included, and none is read again.

    Args:
        catalogue: What is in use; no rank or worker may still be loading it.
        folder: Output folder of the run, with the tables in `cache/catalogue`.
    """
    cache = (folder / "cache" / "catalogue").resolve()
    used = {Path(file["filename"]).resolve() for file in catalogue.products.cache_files}
    for path in list(cache.rglob("*.arrow*")):
        if path.parent == cache and path.resolve() not in used:
            path.unlink()
        elif path.parent not in {cache, *(file.parent for file in used)}:
            # Of a Hub data set, as its library takes the folder of a revision for whole.
            shutil.rmtree(path.parent, ignore_errors=True)


def note_catalogue(run: Run, catalogue: Catalogue) -> None:
    """Notes in the record where the catalogue is and what is in it.

    Raises:
        RunError: The run started with other contents: other products, queries, splits or judgements.
    """
    contents = catalogue.contents_digest()
    if run.record.get("catalogue_contents") not in (None, contents):
        raise RunError(
            f"The catalogue {catalogue.source!r} is not the one that this run started with: ids, splits or judgements "
            "differ; give the same --catalogue, or another --output to start again."
        )
    run.note(catalogue=absolute_place(catalogue.source), catalogue_contents=contents)


def starting_base(base: str | None, folder: Path) -> str:
    """The base of stage 1: what the user names, or tiny encoders built in the output folder."""
    if base is not None:
        return base
    from lightning.pytorch.utilities.seed import isolate_rng

    from mmfusion.training.checkpoints import save_whole

    target = folder / "toy_base"
    with _one_rank_at_a_time(folder):
        if not (target / "config.json").exists():
            # A run that was killed before its first checkpoint finds the base, and must draw what the first one drew.
            with isolate_rng():
                backbones = write_toy_encoders(folder / "toy_encoders")
                model = MMFusionModel.from_backbones(str(backbones.text), str(backbones.vision), fusion_hidden_size=128)
                processor = MMFusionProcessor.from_backbones(str(backbones.text), str(backbones.vision))
            save_whole(target, model, processor)
    return str(target)


def _one_rank_at_a_time(folder: Path) -> FileLock:
    """Ranks that torchrun started all come here; the first one writes, and the others find what it wrote."""
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / ".toy.lock")


def load_base(
    base: str,
    *,
    fusion: str | None = None,
    fusion_config: Mapping[str, Any] | None = None,
    query_router: bool | None = None,
) -> tuple[MMFusionModel, MMFusionProcessor]:
    """Loads a model and its processor.

    Args:
        base: Folder or Hub id of an mmfusion model.
        fusion: Kind of fusion network; None keeps the base's own. A new kind starts from initialised weights, and
            everything else must be in the checkpoint.
        fusion_config: Fields of the config that begin with `fusion_`; weights of another shape are initialised again.
        query_router: Whether the query tower weighs views; None keeps the base's own. A new router starts even.

    Raises:
        RunError: There is no such model, it is not an mmfusion model, weights are missing or left over, or
            `fusion_config` names another field.
        ValueError: A value is out of range.
    """
    _check_is_ours(base)
    config = MMFusionConfig.from_pretrained(base)
    known = [name for name in own_fields() if name.startswith("fusion_")]
    unknown = [name for name in fusion_config or {} if name not in known]
    if unknown:
        raise RunError(f"fusion_config names {unknown[0]!r}; the fields of fusion networks are {', '.join(known)}.")
    given = {name: value for name, value in (("fusion", fusion), ("query_router", query_router)) if value is not None}
    changed = {
        name: value for name, value in {**given, **(fusion_config or {})}.items() if getattr(config, name) != value
    }
    for name, value in changed.items():
        setattr(config, name, value)
    config.check()
    renewed = {"query_router." if name == "query_router" else "fusion." for name in changed}
    model, info = load_with_info(base, config=config, ignore_mismatched_sizes=bool(renewed))
    _check_leftovers(base, info, tuple(renewed))
    processor = MMFusionProcessor.from_pretrained(base)
    for name in ("product_template", "query_prompt", "product_prompt"):
        in_model, in_processor = getattr(model.config, name), getattr(processor, name)
        if in_model != in_processor:
            raise RunError(
                f"--base {base!r}: {name} is {in_model!r} in config.json but {in_processor!r} in "
                "processor_config.json; make them equal, as training and indexing must render the same text."
            )
    return model, processor


def _check_is_ours(base: str) -> None:
    if not is_hub_id(base) and not (Path(base) / "config.json").is_file():
        raise RunError(
            f"--base {base!r} is not a model folder (no config.json); run the command before this one, or give a "
            "folder or a Hub id (org/name) of an mmfusion model."
        )
    check_readable(base, "model")
    try:
        found, _ = PreTrainedConfig.get_config_dict(base)
    except OSError as error:
        raise RunError(f"--base {base!r} cannot be read: {explain(error, base)}") from error
    if found.get("model_type") != MMFusionConfig.model_type:
        raise RunError(
            f"--base {base!r} is a {found.get('model_type')!r} model, not an mmfusion model; make one from encoders "
            "with mmfusion base --text … --vision …"
        )


def _check_leftovers(base: str, info: dict[str, Any], may_differ: tuple[str, ...]) -> None:
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        # Keys of another shape come with both shapes.
        keys = sorted(key if isinstance(key, str) else str(key[0]) for key in info.get(kind) or ())
        wrong = [key for key in keys if not key.startswith(may_differ)]
        if wrong:
            raise RunError(
                f"--base {base!r} has {kind.replace('_', ' ')}: {', '.join(wrong[:5])}; the checkpoint is incomplete."
            )
        if kind == "missing_keys" and keys:
            logger.info("new weights, initialised: %s", ", ".join(keys))
