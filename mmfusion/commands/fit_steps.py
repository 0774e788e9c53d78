"""What `mmfusion fit` knows of a catalogue, what it plans from that, and the commands that it runs."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from mmfusion.ablation.steps import model_digest
from mmfusion.commands import base, embed, evaluate, index, report, stage1, stage2
from mmfusion.data.catalogue import Catalogue
from mmfusion.data.catalogue_schema import GRADES_KEY, TABLES, TEMPLATE_KEY
from mmfusion.data.tables import photo_counts
from mmfusion.evaluation import Evaluation
from mmfusion.evaluation.tables import percent
from mmfusion.files import sha256_of
from mmfusion.stages import Optimization
from mmfusion.training.catalogue_cache import load_shared
from mmfusion.training.run import read_record

if TYPE_CHECKING:
    from mmfusion.commands.fit import Config

# Frozen encoders and cached features: what is trained is small, and batches are large.
_STAGE2 = Optimization(2e-3, 0.0, 0.0, weight_decay=0.3)
_MOST_PAIRS, _MOST_PAIRS_2, _MOST_EXTRA = 128, 384, 640
_VALIDATIONS = 10
# Queries of validation below which the best model would be chosen by chance.
_LEAST_TO_CHOOSE_BY = 10
# Of decoding and embedding a product, roughly, on a CPU.
_PER_PRODUCT = 0.02
# Products whose neighbours a report shows where there are no queries.
_NEIGHBOURS = 24
# Results by the models that they are of.
_RESULTS = {"text_only": "text_only", "stage2": "fusion"}
DEFAULT_TEXT, DEFAULT_VISION = "sentence-transformers/all-MiniLM-L6-v2", "google/mobilenet_v2_1.0_224"
# Colours and patterns are in lower blocks of an encoder that was trained to name objects.
_DEFAULT_FIELDS = {"vision_feature_layers": [5, 11], "projection_hidden_size": 512}


class Facts(NamedTuple):
    """What there is to train with.

    Attributes:
        catalogue: Folder of the catalogue.
        digest: What changes when its products, queries or judgements do.
        products: Number of products.
        photos: Whether a product names a photo.
        train, val, test: Judged queries with something to find, by split.
        labels: How the judgements came about.
        template: Product text that the import recommends.
    """

    catalogue: str
    digest: str
    products: int
    photos: bool
    train: int
    val: int
    test: int
    labels: str
    template: str

    def __str__(self) -> str:
        queries = f"{self.train:,} queries to train on, {self.val:,} to validate, {self.test:,} to test"
        if not self.train:
            queries = (
                "no queries: titles and attributes stand in for them, and what is learned is which photo belongs to "
                "which title"
            )
        photos = "" if self.photos else "; no product names a photo, so that a model of texts alone is trained"
        return f"{self.products:,} products; {queries}{photos}"


class Step(NamedTuple):
    """A command of the run.

    Attributes:
        name: Of the step.
        title: What it does.
        main: The command.
        config: Its settings.
        output: What it leaves: a folder, or a file.
        made_of: What goes into it: "catalogue", and names of steps that make models.
        starts_anew: Whether its folder has to go when that has changed.
        bar: Beginning of the description of the bar that tells how far it is.
        seconds: A guess of how long it takes.
    """

    name: str
    title: str
    main: Callable[[Any], None]
    config: Any
    output: Path
    made_of: tuple[str, ...]
    starts_anew: bool
    bar: str
    seconds: float

    @property
    def steps(self) -> int | None:
        """Optimizer steps, of a training."""
        found: int | None = getattr(self.config, "steps", None)
        return found

    def digests(self, folder: Path, facts: Facts) -> dict[str, str]:
        """Digests of what goes into it, as that is now."""
        return {
            name: facts.digest if name == "catalogue" else str(model_digest(str(folder / name)))
            for name in self.made_of
        }

    def says(self) -> str | None:
        """A line about its result."""
        record = (read_record(self.output) or {}) if self.output.is_dir() else {}
        if best := record.get("best"):
            what = "title → photo Recall@10" if "title_to_photo" in best["metric"] else best["metric"]
            return (
                f"{self.title}: best after {best['step']} of {record['steps']} steps, {what} {percent(best['value'])} %"
            )
        if self.output.parent.name == "evaluation":
            result = Evaluation.load(self.output.parent, self.output.stem)
            found = ", ".join(f"{name} {percent(value)} %" for name, value in result.means.items())
            return f"{self.title}: {found}"
        return None


def read_facts(catalogue: str, folder: Path) -> Facts:
    """What is in a catalogue, which may lack queries.

    Args:
        catalogue: Folder.
        folder: Output folder, for memory-mapped tables.
    """
    place = Path(catalogue)
    files = sorted(
        path for name in TABLES for path in [*place.glob(f"{name}*.parquet"), *place.glob(f"{name}/*.parquet")]
    )
    judged = all(
        any(path.is_relative_to(place / name) or path.name.startswith(name) for path in files) for name in TABLES
    )
    # In a folder beside those of the commands, which share its tables.
    loaded = load_shared(Catalogue.load if judged else Catalogue.load_products, catalogue, folder / "facts")
    counts = {}
    for split in ("train", "val", "test"):
        qrels = loaded.split_qrels(split) if judged and "split" in loaded.queries.column_names else loaded.qrels
        counts[split] = len(np.unique(qrels.query[qrels.grade > 0]))
    if judged and "split" not in loaded.queries.column_names:
        counts |= {"val": 0, "test": 0}
    notes: dict[bytes, bytes] = {}
    for path in files:
        notes |= pq.read_schema(path).metadata or {}
    digest = "".join(sha256_of(path)[:16] for path in files)
    photos = bool(photo_counts(loaded, 1).any())
    labels, template = (notes.get(key, b"").decode() for key in (GRADES_KEY, TEMPLATE_KEY))
    return Facts(
        catalogue, digest, len(loaded.products), photos, **counts, labels=labels, template=template or "{title}"
    )


def plan_for(config: "Config", facts: Facts) -> dict[str, dict[str, Any]]:
    """Batches and steps of both stages, by what there is to train with.

    A batch has at most a quarter of the queries, so that an epoch has a few; a stage sees each query about ten times,
    within bounds, and validates ten times. Where there are few val queries, a tenth of the train queries takes their
    place, and where these are few, too, the last model is kept rather than the best.
    """
    # Of each product its title, words of it, and perhaps attributes.
    pairs = facts.train or 2 * facts.products * 9 // 10
    few = bool(facts.train) and facts.val < _LEAST_TO_CHOOSE_BY
    fold = few and facts.train >= 10 * _LEAST_TO_CHOOSE_BY
    pairs = pairs * 9 // 10 if fold else pairs
    plan = {}
    for name, most, steps in (("stage1", _MOST_PAIRS, config.steps), ("stage2", _MOST_PAIRS_2, config.stage2_steps)):
        batch = config.batch_size or _size(pairs, most)
        steps = steps or min(max(10 * pairs // batch, 100), 1000) // _VALIDATIONS * _VALIDATIONS
        every = max(1, steps // _VALIDATIONS)
        plan[name] = {
            "steps": steps,
            "batch_size": batch,
            "extra_products": 0 if name == "stage1" else min(_MOST_EXTRA, facts.products // 4),
            "validate_every": every,
            "checkpoint_every": every,
            "dev_fraction": 0.1 if fold else 0.0,
            "keep": "last" if few and not fold else "best",
            "pseudo_queries": not facts.train,
        }
    return plan


def _size(pairs: int, most: int) -> int:
    """A power of two, at most a quarter of the pairs."""
    return int(min(most, max(2, 2 ** int(np.log2(max(pairs // 4, 2))))))


def steps_of(config: "Config", folder: Path, facts: Facts, plan: Mapping[str, Mapping[str, Any]]) -> list[Step]:
    """The commands in their order."""
    compared = ["text_only"] if facts.photos and facts.train else []
    titles = {"stage2": "stage 2: fusion", "text_only": "text only, to compare"}
    fused = [_stage2(config, folder, facts, plan, name, titles[name]) for name in ("stage2", *compared) if facts.train]
    return [
        *([_base(config, folder, facts)] if config.base is None else []),
        _stage1(config, folder, facts, plan),
        *fused,
        *_evaluations(config, folder, facts, compared),
        _embed(config, folder, facts),
        _index(folder, facts),
        _report(config, folder, facts, shows_queries=bool(compared) and _split(facts) is not None),
    ]


def final_stage(facts: Facts) -> str:
    """The stage whose model is the result.

    Without queries it is the first one: the fusion network stays at its start, where text and photo weigh the same. On
    titles it would learn to look at texts, as each title finds its own (docs/benchmarks/fit.md).
    """
    return "stage2" if facts.train else "stage1"


def _base(config: "Config", folder: Path, facts: Facts) -> Step:
    fields = config.model_config
    if fields is None and config.vision == DEFAULT_VISION:
        fields = _DEFAULT_FIELDS
    if config.fusion is not None:
        fields = {**(fields or {}), "fusion": config.fusion}
    settings = base.Config(
        text=config.text,
        vision=config.vision,
        output=str(folder / "base"),
        image_size=config.image_size,
        product_template=config.product_template or facts.template,
        model_config=fields,
        trust_remote_code=config.trust_remote_code,
        seed=config.seed,
    )
    return Step("base", "base model", base.main, settings, folder / "base", (), False, "", 10.0)


def _stage1(config: "Config", folder: Path, facts: Facts, plan: Mapping[str, Mapping[str, Any]]) -> Step:
    blind: dict[str, Any] = {} if facts.photos else {"query_image_weight": 0.0, "title_image_weight": 0.0}
    settings = stage1.Config(
        base=config.base or str(folder / "base"),
        optimization=config.optimization,
        lora=config.lora,
        **_training(config, folder, facts, plan["stage1"], "stage1"),
        **blind,
    )
    seconds = 0.04 * plan["stage1"]["steps"] * plan["stage1"]["batch_size"] + _PER_PRODUCT * facts.products
    output, made_of = folder / "stage1", ("base",) if config.base is None else ()
    return Step(
        "stage1",
        "stage 1: queries, titles and photos",
        stage1.main,
        settings,
        output,
        made_of,
        True,
        "Stage1",
        seconds,
    )


def _stage2(
    config: "Config", folder: Path, facts: Facts, plan: Mapping[str, Mapping[str, Any]], name: str, title: str
) -> Step:
    own = plan["stage2"]
    # Photos are told apart by the model; a frozen vision encoder is the one of stage 1, whose features will do.
    cached_by = "stage1" if config.optimization.vision_learning_rate == 0 else "stage2"
    settings = stage2.Config(
        base=str(folder / "stage1"),
        optimization=_STAGE2,
        fusion=config.fusion if name == "stage2" and facts.photos else "text_only",
        feature_cache=str(folder / cached_by / "feature_cache"),
        **_training(config, folder, facts, own, name),
    )
    seconds = 0.002 * own["steps"] * (own["batch_size"] + own["extra_products"])
    seconds += _PER_PRODUCT * facts.products if name == "stage2" else 0.0
    return Step(name, title, stage2.main, settings, folder / name, ("stage1",), True, "Stage2", seconds)


def _training(config: "Config", folder: Path, facts: Facts, plan: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {
        **plan,
        "output": str(folder / name),
        "catalogue": facts.catalogue,
        "patience": config.patience,
        "allow_missing_photos": config.allow_missing_photos,
        "hardware": config.hardware,
        "seed": config.seed,
    }


def _split(facts: Facts) -> Any:
    """Split to evaluate on; None where no queries are left for that."""
    return "test" if facts.test else "val" if facts.val else None


def _evaluations(config: "Config", folder: Path, facts: Facts, compared: list[str]) -> Iterator[Step]:
    split = _split(facts)
    if split is None:
        return
    place = folder / "evaluation"
    by_model = [(name, name, "model") for name in [*compared, "stage2"]]
    rankers: list[tuple[str, str, Any]] = [("bm25", "stage2", "bm25"), *by_model]
    for name, model, ranker in rankers:
        settings = evaluate.Config(
            catalogue=facts.catalogue,
            base=str(folder / model),
            output=str(place),
            name=_RESULTS.get(name, name),
            ranker=ranker,
            split=split,
            label_source=facts.labels,
            allow_missing_photos=config.allow_missing_photos,
            num_workers=config.hardware.num_workers,
            seed=config.seed,
        )
        result = place / f"{_RESULTS.get(name, name)}.json"
        seconds = 5 + (0.0 if ranker == "bm25" else _PER_PRODUCT * facts.products)
        made_of = ("catalogue", model)
        title = f"evaluate {_RESULTS.get(name, name)} on {split}"
        yield Step(f"evaluate_{name}", title, evaluate.main, settings, result, made_of, False, "embedding", seconds)


def _embed(config: "Config", folder: Path, facts: Facts) -> Step:
    output = folder / "embeddings"
    settings = embed.Config(
        catalogue=facts.catalogue,
        base=str(folder / final_stage(facts)),
        output=str(output),
        allow_missing_photos=config.allow_missing_photos,
        hardware=config.hardware,
    )
    seconds = _PER_PRODUCT * facts.products
    made_of = ("catalogue", final_stage(facts))
    return Step("embed", "embed", embed.main, settings, output, made_of, True, "embedding", seconds)


def _index(folder: Path, facts: Facts) -> Step:
    settings = index.Config(
        embeddings=str(folder / "embeddings"), catalogue=facts.catalogue, output=str(folder / "index"), lexical=True
    )
    made_of = ("catalogue", final_stage(facts))
    return Step("index", "index", index.main, settings, folder / "index", made_of, False, "", 3.0)


def _report(config: "Config", folder: Path, facts: Facts, *, shows_queries: bool) -> Step:
    names = ["bm25", _RESULTS["text_only"], _RESULTS["stage2"]]
    settings = report.Config(
        results=str(folder / "evaluation"),
        order=names if shows_queries else None,
        baseline=str(folder / "text_only"),
        base=str(folder / final_stage(facts)),
        catalogue=facts.catalogue,
        output=str(folder / "report"),
        neighbours=0 if shows_queries else _NEIGHBOURS,
        allow_missing_photos=config.allow_missing_photos,
        num_workers=config.hardware.num_workers,
        seed=config.seed,
    )
    page, made_of = folder / "report" / "report.html", ("catalogue", final_stage(facts))
    return Step(
        "report", "report", report.main, settings, page, made_of, False, "embedding", _PER_PRODUCT * facts.products
    )
