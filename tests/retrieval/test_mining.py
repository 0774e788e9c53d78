"""Mined hard negatives: what a slow twin finds, after a kill and with several processes too; and what is refused."""

import importlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from commands import command
from processes import run_to_end
from two_ranks import build_model

from mmfusion.data.catalogue import Catalogue
from mmfusion.data.datamodule import MMFusionDataModule
from mmfusion.data.hard_negatives import MANIFEST, SCHEMA, TABLE, HardNegatives, HardNegativesError
from mmfusion.data.qrels import Qrels
from mmfusion.data.toy_catalogue import write_toy_catalogue
from mmfusion.retrieval import ProductIndex
from mmfusion.retrieval.embedding import embed_products, embed_queries
from mmfusion.retrieval.mining import Miner, MiningSettings
from mmfusion.stages import Stage2
from mmfusion.training import load_base
from mmfusion.training.checkpoints import RandomState

CHECKOUT = Path(__file__).resolve().parents[2]
SETTINGS: dict[str, Any] = {"first_rank": 2, "last_rank": 40, "num_negatives": 6, "relative_margin": 0.02}
STEPS = 14

# Ends like a machine without power: in the middle of the third shard, of which a part is on the disk.
KILLED = """
import os, signal, sys
import pyarrow.parquet as pq
from mmfusion.commands.mine import Config, main
write, count = pq.write_table, 0
def write_and_die(table, file):
    global count
    count += "shard-" in str(getattr(file, "name", file))
    if count == 3:
        file.write(b"PAR1 half of a shard"), file.flush(), os.kill(os.getpid(), signal.SIGKILL)
    write(table, file)
pq.write_table = write_and_die
main(Config(**{arguments}))
"""

Recipe = Callable[..., None]


def mine() -> Recipe:
    return command("mine")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalogue, a model, and what the recipe mined with it in one process."""
    folder = tmp_path_factory.mktemp("mining")
    write_toy_catalogue(folder / "catalogue", num_products=120)
    model, processor = build_model(folder / "backbones")
    model.float().save_pretrained(folder / "base"), processor.save_pretrained(folder / "base")
    mine()(**arguments(folder, "mined"))
    return folder


def arguments(folder: Path, output: str) -> dict[str, Any]:
    places = {"catalogue": folder / "catalogue", "base": folder / "base", "output": folder / output}
    return {**{name: str(path) for name, path in places.items()}, "shard_size": 8, **SETTINGS}


@pytest.fixture(scope="module")
def catalogue(folder: Path) -> Catalogue:
    return Catalogue.load(folder / "catalogue", cache_dir=folder / "cache")


def twin(
    scores: dict[tuple[int, int], float], ids: dict[int, str], qrels: Qrels, settings: MiningSettings
) -> list[tuple[int, int, int]]:
    """(query, product, rank) of all negatives, by what the settings say and nothing else."""
    found = []
    for query in sorted({query for query, _ in scores}):
        ranked = sorted((p for q, p in scores if q == query), key=lambda p: (scores[query, p], ids[p]), reverse=True)
        grades = dict(zip(*(column.tolist() for column in qrels.for_query(query)), strict=True))
        best = max(grades.values())
        positives = [scores[query, product] for product, grade in grades.items() if grade == best]
        positive = {"min": min, "max": max, "mean": lambda all_: sum(all_) / len(all_)}[settings.positive_score](
            positives
        )
        taken = 0
        for rank, product in enumerate(ranked, start=1):
            score, grade = scores[query, product], grades.get(product, 0)
            if not settings.first_rank <= rank <= settings.last_rank or taken == settings.num_negatives:
                continue
            if grade == best or grade > settings.max_negative_grade:
                continue
            if settings.absolute_margin is not None and score > positive - settings.absolute_margin:
                continue
            if settings.relative_margin is not None and score > positive - settings.relative_margin * abs(positive):
                continue
            found.append((query, product, rank))
            taken += 1
    return found


def test_the_recipe_finds_what_brute_force_finds_among_train_products_alone(folder: Path, catalogue: Catalogue) -> None:
    model, processor = load_base(str(folder / "base"))
    qrels, products = catalogue.split_qrels("train"), catalogue.product_rows("train")
    queries = np.unique(qrels.query[qrels.grade > 0])
    left = embed_queries(model.eval(), processor, catalogue, queries).astype(np.float64)
    right = embed_products(model, processor, catalogue, products).embeds.astype(np.float64)
    exact = (left @ right.T).astype(np.float32)
    scores = {
        (q, p): float(exact[i, j]) for i, q in enumerate(queries.tolist()) for j, p in enumerate(products.tolist())
    }
    ids = dict(zip(products.tolist(), map(str, catalogue.product_ids[products]), strict=True))
    expected = twin(scores, ids, qrels, MiningSettings(**SETTINGS))
    table = pq.read_table(folder / "mined" / TABLE)
    assert table.schema.equals(SCHEMA)
    named = [(str(catalogue.query_ids[q]), ids[p], rank) for q, p, rank in expected]
    assert named == list(
        zip(*(table.column(name).to_pylist() for name in ("query_id", "product_id", "rank")), strict=True)
    )
    np.testing.assert_allclose(table.column("score"), [scores[q, p] for q, p, _ in expected], atol=1e-6)
    manifest = json.loads((folder / "mined" / MANIFEST).read_text())
    assert manifest["counts"]["negatives"] == len(expected) > 50
    assert manifest["counts"]["queries_without"] == len(queries) - len({q for q, _, _ in expected})
    assert manifest["settings"]["first_rank"] == 2 and len(manifest["model_fingerprint"]) == 64


@pytest.mark.parametrize(
    "settings",
    [
        {"relative_margin": None},
        {"relative_margin": None, "absolute_margin": 0.1, "positive_score": "min"},
        {"relative_margin": 0.3, "absolute_margin": 0.05, "positive_score": "max"},
        {"first_rank": 7, "last_rank": 9, "relative_margin": None, "max_negative_grade": 1},
        {"num_negatives": 2, "relative_margin": None, "max_negative_grade": 5},
        {"last_rank": 1000, "num_negatives": 1000, "relative_margin": None},
    ],
)
@pytest.mark.parametrize("factory", ["Flat", "HNSW32"])
def test_windows_margins_grades_and_caps_are_those_of_a_slow_twin(settings: dict[str, Any], factory: str) -> None:
    rng = np.random.default_rng(len(settings))
    queries, products = rng.normal(size=(9, 8)).astype(np.float32), rng.normal(size=(40, 8)).astype(np.float32)
    products[7] = products[3]
    rows, names = np.arange(100, 140), [f"p{row:03d}" for row in rng.permutation(40)]
    judged = [(q, int(p), int(rng.integers(1, 4))) for q in range(9) for p in rng.choice(rows, 6, replace=False)]
    qrels = Qrels(*(np.array(column) for column in zip(*judged, strict=True)))
    index = ProductIndex.build(products, names, model_fingerprint="m", factory=factory)
    chosen = MiningSettings(**settings)
    mined = Miner(index, products, rows, qrels, chosen).mine(queries, np.arange(9), list("012345678"))
    exact = (queries.astype(np.float64) @ products.astype(np.float64).T).astype(np.float32)
    scores = {(q, 100 + p): float(exact[q, p]) for q in range(9) for p in range(40)}
    expected = twin(scores, dict(zip(rows.tolist(), names, strict=True)), qrels, chosen)
    found = zip(*(mined.column(name).to_pylist() for name in ("query_id", "product_id", "rank")), strict=True)
    assert list(found) == [(str(query), names[product - 100], rank) for query, product, rank in expected]
    assert expected


def test_a_killed_mining_goes_on_with_two_processes_and_gives_the_same_table(folder: Path) -> None:
    given = arguments(folder, "killed")
    script = KILLED.replace("{arguments}", repr(given))
    # As many threads as here: with others, the last bit of an embedding may round otherwise.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", script]
    done = run_to_end(command, cwd=CHECKOUT, env=environment, timeout=600)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (work,) = (folder / "killed" / "cache").glob("mining_*")
    whole = {path.name: path.stat().st_mtime_ns for path in work.glob("shard-*")}
    assert sorted(whole) == ["shard-000000.parquet", "shard-000001.parquet"]
    assert not (folder / "killed" / TABLE).exists()
    embedded, read = (work / "products.npy").stat().st_mtime_ns, []
    module = importlib.import_module("mmfusion.commands.mine")
    kept = module.MiningShards.read

    def read_and_look(shards: Any) -> Any:
        read.extend((shards.path(shard).name, shards.path(shard).stat().st_mtime_ns) for shard in range(len(shards)))
        assert (work / "products.npy").stat().st_mtime_ns == embedded
        return kept(shards)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.MiningShards, "read", read_and_look)
        mine()(**given, num_workers=2)
    assert dict(read).items() >= whole.items()
    one, two = (pq.read_table(folder / name / TABLE) for name in ("mined", "killed"))
    assert one.equals(two)
    assert not work.exists()


def test_a_complete_mining_is_left_alone_and_other_settings_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (folder / "mined" / TABLE).stat().st_mtime_ns
    mine()(**arguments(folder, "mined"))
    assert "is complete" in capsys.readouterr().out
    with pytest.raises(ValueError, match="last_rank was 40, now 50"):
        mine()(**{**arguments(folder, "mined"), "last_rank": 50})
    assert (folder / "mined" / TABLE).stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"first_rank": 0}, "first_rank 0 to last_rank 100"),
        ({"first_rank": 9, "last_rank": 8}, "first_rank 9 to last_rank 8"),
        ({"num_negatives": 0}, "num_negatives is 0"),
        ({"absolute_margin": -0.1}, "absolute_margin is -0.1"),
        ({"relative_margin": float("nan")}, "relative_margin is nan"),
        ({"max_negative_grade": -1}, "max_negative_grade is -1"),
        ({"shard_size": 0}, "shard_size is 0"),
    ],
)
def test_settings_out_of_range_are_refused_before_anything_is_written(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        mine()(output=str(tmp_path / "mined"), **settings)
    assert not (tmp_path / "mined").exists()


def rewritten(folder: Path, target: Path, **columns: list[Any]) -> Path:
    """The mined table with its first row changed, as if it had been mined before there were checksums."""
    table = pq.read_table(folder / "mined" / TABLE)
    for name, first in columns.items():
        values = [*first, *table.column(name).to_pylist()[len(first) :]]
        table = table.set_column(
            table.column_names.index(name), SCHEMA.field(name), pa.array(values, SCHEMA.field(name).type)
        )
    target.mkdir()
    pq.write_table(table, target / TABLE)
    manifest = json.loads((folder / "mined" / MANIFEST).read_text())
    del manifest["sha256"]
    (target / MANIFEST).write_text(json.dumps(manifest))
    return target


def test_a_table_with_ids_that_cannot_be_negatives_is_refused_with_the_first_of_them(
    folder: Path, catalogue: Catalogue, tmp_path: Path
) -> None:
    test_product = str(catalogue.product_ids[catalogue.product_rows("test")[0]])
    test_query = str(catalogue.query_ids[catalogue.query_rows("test")[0]])
    qrels = catalogue.split_qrels("train")
    top = int(np.flatnonzero(qrels.grade == qrels.grade.max())[0])
    best = str(catalogue.query_ids[qrels.query[top]]), str(catalogue.product_ids[qrels.product[top]])
    cases = {
        "unknown": ({"product_id": ["nobody"]}, "row 0: product 'nobody' is not in the catalogue"),
        "query": ({"query_id": ["nobody"]}, "row 0: query 'nobody' is not in the catalogue"),
        "test": ({"product_id": [test_product]}, f"product '{test_product}' is not in the train split"),
        "test_query": ({"query_id": [test_query]}, f"query '{test_query}' is not in the train split"),
        "best": ({"query_id": [best[0]], "product_id": [best[1]]}, f"'{best[1]}' is judged at the best grade"),
    }
    for name, (columns, message) in cases.items():
        with pytest.raises(HardNegativesError, match=message):
            HardNegatives.load(rewritten(folder, tmp_path / name, **columns), catalogue)


def test_a_table_of_another_catalogue_and_files_that_are_missing_or_damaged_are_refused(
    folder: Path, catalogue: Catalogue, tmp_path: Path
) -> None:
    write_toy_catalogue(tmp_path / "other", num_products=120, seed=1)
    other = Catalogue.load(tmp_path / "other", cache_dir=tmp_path / "cache")
    with pytest.raises(HardNegativesError, match=r"another catalogue \(catalogue\) than .*other"):
        HardNegatives.load(folder / "mined", other)
    with pytest.raises(FileNotFoundError, match=r"hard_negatives.json is missing.*mmfusion mine"):
        HardNegatives.load(tmp_path, catalogue)
    damaged = rewritten(folder, tmp_path / "damaged")
    (damaged / TABLE).write_bytes((damaged / TABLE).read_bytes()[:200])
    with pytest.raises(HardNegativesError, match=r"hard_negatives.parquet is damaged"):
        HardNegatives.load(damaged, catalogue)
    (damaged / MANIFEST).write_text("{")
    with pytest.raises(HardNegativesError, match=r"hard_negatives.json is damaged"):
        HardNegatives.load(damaged, catalogue)
    short = rewritten(folder, tmp_path / "short")
    pq.write_table(pq.read_table(short / TABLE).slice(1), short / TABLE)
    with pytest.raises(HardNegativesError, match=r"rows, but hard_negatives.json says"):
        HardNegatives.load(short, catalogue)


def test_a_flipped_bit_in_a_table_is_an_error(folder: Path, catalogue: Catalogue, tmp_path: Path) -> None:
    for name in (TABLE, MANIFEST):
        (tmp_path / name).write_bytes((folder / "mined" / name).read_bytes())
    HardNegatives.load(tmp_path, catalogue)
    content = bytearray((tmp_path / TABLE).read_bytes())
    content[len(content) // 3] ^= 1
    (tmp_path / TABLE).write_bytes(content)
    with pytest.raises(HardNegativesError, match=r"hard_negatives.parquet is damaged: it has the checksum"):
        HardNegatives.load(tmp_path, catalogue)


def data(folder: Path, catalogue: Catalogue, **options: Any) -> MMFusionDataModule:
    _, processor = load_base(str(folder / "base"))
    mined = {"hard_negatives": str(folder / "mined"), "negatives_per_query": 2}
    return MMFusionDataModule(catalogue, processor, **{"batch_size": 8, "photos": False, **mined, **options})


def test_batches_hold_mined_negatives_of_their_queries(folder: Path, catalogue: Catalogue) -> None:
    negatives = HardNegatives.load(folder / "mined", catalogue)
    held = 0
    for batch in data(folder, catalogue).train_dataloader():
        queries, products = batch["query_rows"].tolist(), batch["product_rows"].tolist()
        assert len(products) == 8 + 2 * 8 and len(set(products[8:])) == 16
        offered = {row for query in queries for row in negatives.of(query).tolist()}
        mined = [row in offered for row in products[8:]]
        held += sum(mined)
        # Mined ones first, and each query has up to two of its own.
        assert all(mined[: sum(min(1, len(negatives.of(query))) for query in queries) // 2])
    assert held > 8


def test_a_number_without_mined_negatives_and_one_below_1_are_refused(folder: Path, catalogue: Catalogue) -> None:
    with pytest.raises(ValueError, match=r"negatives_per_query is 3 and hard_negatives is None.*mmfusion mine"):
        data(folder, catalogue, hard_negatives=None, negatives_per_query=3)
    with pytest.raises(ValueError, match="negatives_per_query is 0"):
        data(folder, catalogue, negatives_per_query=0)


class SaveAt(L.Callback):
    """Saves a checkpoint after a step, as the recipes' does."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and not self.path.exists():
            trainer.save_checkpoint(self.path)


def train(
    folder: Path, catalogue: Catalogue, path: Path, checkpoint: Path | None, **options: Any
) -> tuple[L.Trainer, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model, _ = load_base(str(folder / "base"))
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    callbacks = [RandomState(), SaveAt(STEPS - 2, path)]
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        limit_val_batches=0,
        enable_checkpointing=False,
        callbacks=callbacks,
        **quiet,
    )
    trainer.fit(Stage2(model), datamodule=data(folder, catalogue, **options), ckpt_path=checkpoint, weights_only=True)
    return trainer, {name: value.clone() for name, value in model.state_dict().items()}


def test_a_training_with_mined_negatives_and_without_duplicates_resumes_exactly_and_with_no_other_table(
    folder: Path, catalogue: Catalogue, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"no_duplicates": ["product", "photo", "title"], "group_by": "category", "batch_size": 4}
    checkpoint = tmp_path / "step.ckpt"
    whole, weights = train(folder, catalogue, checkpoint, None, **options)
    assert checkpoint.exists() and whole.current_epoch >= 1
    resumed, again = train(folder, catalogue, checkpoint, checkpoint, **options)
    assert resumed.global_step == STEPS
    assert not [name for name, value in weights.items() if not torch.equal(value, again[name])]
    without = {**options, "hard_negatives": None, "negatives_per_query": None}
    with pytest.raises(ValueError, match="other mined negatives, or with none"):
        train(folder, catalogue, checkpoint, checkpoint, **without)
