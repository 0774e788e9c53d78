"""`mmfusion fit` of what a program has in memory: a model, and products."""

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmfusion.commands.fit import Config, FitError, begin, main
from mmfusion.commands.search import photos_of
from mmfusion.importers.records import write_records
from mmfusion.model import MMFusionModel, MMFusionProcessor
from mmfusion.retrieval.fingerprint import model_fingerprint
from mmfusion.retrieval.hits import PhotoSource
from mmfusion.training.checkpoints import save_whole
from mmfusion.training.run import finished_record
from mmfusion.training.sources import load_base

logger = logging.getLogger(__name__)


def fit_records(
    model: MMFusionModel,
    processor: MMFusionProcessor,
    products: Any,
    *,
    output: str | os.PathLike[str],
    clicks: Any = None,
    queries: Any = None,
    qrels: Any = None,
    **settings: Any,
) -> tuple[Path, Path, PhotoSource | None]:
    """Fits a model; see `Retriever.fit`.

    Returns:
        Folder of the model that was trained, and of the index; and the photos of its products.

    Raises:
        FitError: The output folder began with another model, or queries come with files, which have their own.
    """
    folder = Path(output).absolute()
    base, in_files = folder / "start", isinstance(products, (str, os.PathLike))
    if in_files and (queries is not None or qrels is not None):
        raise FitError("queries and qrels go with products in memory; with files give judgements=, or a catalogue.")
    sources = [os.fspath(products) if in_files else str(folder / "records")]
    wanted = Config(sources=sources, output=str(folder), base=str(base), **_known({**settings, "clicks": clicks}))
    # What is fitted is a catalogue by then, which has its judgements.
    config = wanted if in_files else replace(wanted, clicks=None, judgements=None)
    # Before anything is written to the folder, which may belong to another run.
    run = begin(config, folder)
    if not (base / "config.json").is_file():
        save_whole(base, model, processor)
    elif model_fingerprint(*load_base(str(base))) != model_fingerprint(model, processor):
        raise FitError(f"The run in {run.folder} began with another model; give another output.")
    if not in_files:
        log = write_records(folder / "records", products, queries, qrels, settings=wanted)
        for line in [*log.lines(), *(f"rejected: {why}: {n:,}" for why, n in log.rejected_by_reason.most_common())]:
            logger.warning("%s", line)
    main(config)
    stage = "stage2" if (folder / "stage2" / "config.json").is_file() else "stage1"
    index = folder / "index"
    return folder / stage, index / "index", photos_of(str(index), finished_record(index, "index", "index"))


def _known(settings: Mapping[str, Any]) -> dict[str, Any]:
    unknown = sorted(settings.keys() - Config.__dataclass_fields__.keys())
    if unknown:
        raise FitError(f"{unknown[0]!r} is not a setting of fit; they are {', '.join(Config.__dataclass_fields__)}.")
    return dict(settings)
