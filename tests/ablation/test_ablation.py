"""The ablation: its plan, its steps with stand-ins for recipes, its numbers on synthetic results, and one small run."""

import csv
import dataclasses
import json
import subprocess
import sys
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from commands import config_of
from processes import run_to_end

from mmfusion.ablation import AblationError, AblationSettings, run_ablation, with_bases
from mmfusion.ablation.ablation import collect, write_ablation
from mmfusion.ablation.plan import AblationStep, plan_ablation
from mmfusion.ablation.steps import StepFailedError, duration, run_steps, tail, time_left
from mmfusion.ablation.variants import all_variants, reasons_not_run
from mmfusion.evaluation import Evaluation, Slice
from mmfusion.evaluation.comparison import Ablation, Results, Row, average, compare, difference
from mmfusion.stages import Optimization
from mmfusion.training import starting_base

CHECKOUT = Path(__file__).resolve().parents[2]


def settings_in(folder: Path, **changes: Any) -> AblationSettings:
    given: dict[str, Any] = {"seeds": (0,), "base": str(folder / "given"), "vision_blocks": 4, "embedding_dim": 32}
    kinds: dict[str, Any] = {"fusions": ("cross_attention",), "default_fusion": "cross_attention"}
    return AblationSettings(output=folder, **{**given, **kinds, **changes})


def planned(settings: AblationSettings) -> dict[str, dict[str, str]]:
    return {str(step.stem.relative_to(settings.output)): dict(step.flags) for step in plan_ablation(settings)}


def evaluation(name: str, recall: list[float | None], seed: int = 0, **changes: Any) -> Evaluation:
    """Queries alternate between two kinds."""
    kinds = ["visual" if place % 2 else "textual" for place in range(len(recall))]
    values = {"recall@100": recall, "ndcg@10": recall}
    table = {"query_id": [f"q{place}" for place in range(len(recall))], "kind": kinds, **values}
    means = {metric: float(np.mean([v for v in column if v is not None])) for metric, column in values.items()}
    slices = []
    for kind in ("textual", "visual"):
        own = [value for value, label in zip(recall, kinds, strict=True) if label == kind and value is not None]
        slices.append(Slice("query", "kind", kind, len(own), {metric: float(np.mean(own)) for metric in values}))
    fields: dict[str, Any] = {
        "pool": "split",
        "num_queries": len(recall),
        "num_products": 10,
        "num_queries_without_relevant": recall.count(None),
        "num_queries_without_gain": 0,
        "num_queries_without_ranking": 0,
        "relevant_grade": 3,
        "judgements_by_grade": {3: 9},
    }
    provenance = {"split": "val", "seed": seed}
    return Evaluation(
        name, **{**fields, **changes}, means=means, slices=slices, per_query=pa.table(table), provenance=provenance
    )


def around(level: float, num_queries: int = 60, seed: int = 0) -> list[float | None]:
    rng = np.random.default_rng(seed)
    return list(np.clip(level + 0.05 * rng.standard_normal(num_queries), 0, 1))


def test_a_seed_is_planned_from_the_first_variant_up_and_shares_its_first_stage(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, fusions=("gated", "cross_attention"), perturbations=("typos",))
    assert list(planned(settings)) == [
        "val/bm25",
        *("seed0/stage1_text", "seed0/text_only", "val/text_only.seed0", "val/text_only.seed0.typos"),
        *("seed0/naive_concat", "val/naive_concat.seed0"),
        *("seed0/stage1", "seed0/concat", "val/concat.seed0", "seed0/gated", "val/gated.seed0"),
        *("seed0/cross_attention", "val/cross_attention.seed0", "val/cross_attention.seed0.typos"),
        *("seed0/routed", "val/routed.seed0", "val/routed_equal_bytes.seed0"),
        *("seed0/one_stage", "val/one_stage.seed0"),
    ]
    assert reasons_not_run(settings).keys() == {"larger_generic"}


def test_variants_get_the_same_budget_and_differ_in_what_their_name_says(tmp_path: Path) -> None:
    first = Optimization(learning_rate=0.1, text_learning_rate=0.2, vision_learning_rate=0.3)
    second = Optimization(learning_rate=0.4, text_learning_rate=0.0, vision_learning_rate=0.0)
    settings = settings_in(
        tmp_path,
        stage1_steps=30,
        stage2_steps=12,
        batch_size=8,
        stage2_batch_size=16,
        stage1_optimization=first,
        stage2_optimization=second,
        stage2_options={"modality_dropout": 0.2, "query_text_weight": 0.5},
    )
    plan = planned(settings)
    text, text_only = plan["seed0/stage1_text"], plan["seed0/text_only"]
    assert (text["query_image_weight"], text["title_image_weight"]) == ("0", "0")
    assert text["optimization.text_learning_rate"] == plan["seed0/stage1"]["optimization.text_learning_rate"] == "0.2"
    assert (text_only["query_text_weight"], text_only["query_image_weight"]) == ("0", "0")
    naive, concat, one = plan["seed0/naive_concat"], plan["seed0/concat"], plan["seed0/one_stage"]
    assert naive["optimization.text_learning_rate"] == naive["optimization.vision_learning_rate"] == "0.0"
    assert (naive["base"], concat["base"]) == (str(tmp_path / "given"), str(tmp_path / "seed0" / "stage1"))
    assert (naive["fusion"], concat["fusion"], one["fusion"]) == ("concat", "concat", "cross_attention")
    assert [flags["steps"] for flags in (text, text_only, naive, concat, one)] == ["30", "12", "42", "12", "42"]
    assert [flags["batch_size"] for flags in (text, text_only, naive, one)] == ["8", "16", "16", "8"]
    assert (one["optimization.text_learning_rate"], one["optimization.vision_learning_rate"]) == ("0.2", "0.3")
    assert (concat["modality_dropout"], concat["query_text_weight"]) == ("0.2", "0.5")
    assert {flags["seed"] for name, flags in plan.items() if name.startswith("seed0")} == {"0"}
    assert {flags["split"] for name, flags in plan.items() if name.startswith("val/")} == {"val"}


def test_weighted_means_are_three_variants_that_differ_in_the_share_of_the_text(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, fusions=("weighted_mean", "gated"), default_fusion="gated", extra_products=7)
    plan = planned(settings)
    shares = {
        name.removeprefix("seed0/"): json.loads(flags["fusion_config"])
        for name, flags in plan.items()
        if flags.get("fusion") == "weighted_mean"
    }
    assert shares == {
        "weighted_mean_text_90": {"fusion_text_weight": 0.9},
        "weighted_mean_text_10": {"fusion_text_weight": 0.1},
        "weighted_mean_learned": {"fusion_text_weight": 0.5, "fusion_learned_weights": True},
    }
    given = {name: flags.get("extra_products", "") for name, flags in plan.items() if name.startswith("seed0/")}
    assert given["seed0/gated"] == given["seed0/weighted_mean_learned"] == given["seed0/naive_concat"] == "7"
    assert (given["seed0/stage1"], given["seed0/one_stage"]) == ("", "0")


def test_each_state_of_the_vision_encoder_has_a_cache_of_its_own(tmp_path: Path) -> None:
    def caches(**changes: Any) -> dict[str, str]:
        plan = planned(settings_in(tmp_path, feature_cache=tmp_path / "cache", seeds=(0, 1), **changes))
        return {
            name: str(Path(flags["feature_cache"]).relative_to(tmp_path / "cache"))
            for name, flags in plan.items()
            if "feature_cache" in flags
        }

    found = caches(freeze_vision_blocks=2)
    assert found["seed0/naive_concat"] == found["seed1/naive_concat"] == "frozen_vision"
    assert found["seed0/stage1"] == found["seed1/concat"] == "lower_2_blocks"
    assert found["val/concat.seed0"] == "lower_2_blocks/val_pool"
    frozen = Optimization(vision_learning_rate=0.0)
    found = caches(stage2_optimization=frozen)
    assert found["seed0/stage1"] == "photos"
    assert (found["seed0/concat"], found["seed1/concat"]) == ("seed0_stage1", "seed1_stage1")
    assert found["val/concat.seed1"] == "seed1_stage1/val_pool"
    found = caches(stage1_optimization=frozen, stage2_optimization=frozen)
    assert {name for name in found.values() if "val_pool" not in name} == {"frozen_vision"}


def test_a_router_is_the_only_difference_to_the_default_and_its_model_is_evaluated_twice(tmp_path: Path) -> None:
    plan = planned(settings_in(tmp_path, variants=("cross_attention", "routed", "routed_equal_bytes")))
    plain, routed = plan["seed0/cross_attention"], plan["seed0/routed"]
    assert {name for name in routed if routed[name] != plain.get(name)} == {"output", "query_router"}
    assert (routed["base"], routed["query_router"]) == (str(tmp_path / "seed0" / "stage1"), "true")
    whole, cut = plan["val/routed.seed0"], plan["val/routed_equal_bytes.seed0"]
    assert {name for name in cut if cut[name] != whole.get(name)} == {"name", "truncate_dim", "allow_untrained_width"}
    assert (cut["base"], cut["truncate_dim"]) == (str(tmp_path / "seed0" / "routed"), "10")
    assert cut["allow_untrained_width"] == "true"


def test_a_shortened_router_alone_is_trained_in_the_folder_of_the_whole_one(tmp_path: Path) -> None:
    plan = planned(settings_in(tmp_path, variants=("routed_equal_bytes",)))
    assert list(plan) == ["seed0/stage1", "seed0/routed", "val/routed_equal_bytes.seed0"]


@pytest.mark.parametrize(
    ("changes", "skipped"),
    [
        ({"embedding_dim": 2}, {"routed_equal_bytes": "embedding_dim is 2"}),
        ({"embedding_dim": None}, {"routed_equal_bytes": "embedding_dim is None"}),
        (
            {"fusions": ("image_only",), "default_fusion": "image_only"},
            {"routed": "single view", "routed_equal_bytes": "single view"},
        ),
    ],
)
def test_what_cannot_be_routed_says_why(changes: dict[str, Any], skipped: dict[str, str], tmp_path: Path) -> None:
    found = reasons_not_run(settings_in(tmp_path, **changes))
    assert {name for name in found if name.startswith("routed")} == set(skipped)
    assert all(reason in found[name] for name, reason in skipped.items())


def test_every_flag_is_one_of_its_recipe(tmp_path: Path) -> None:
    settings = settings_in(
        tmp_path, base=None, larger_base="org/larger", product_slices=("text_stripped",), label_source="made up"
    )
    steps = plan_ablation(settings)
    assert {step.recipe for step in steps} == {"base", "stage1", "stage2", "evaluate"}
    for step in steps:
        config = config_of(step.recipe, **({"text": "", "vision": ""} if step.recipe == "base" else {}))
        # An unknown one raises an AttributeError.
        attrgetter(*(name for name, _ in step.flags))(config)


def test_the_width_of_the_base_is_read_from_its_folder(tmp_path: Path) -> None:
    tiny = starting_base(None, tmp_path)
    found = with_bases(settings_in(tmp_path, base=tiny, vision_blocks=None, embedding_dim=None))
    assert found.embedding_dim == with_bases(settings_in(tmp_path, base=None)).embedding_dim == 64
    assert found.vision_blocks and found.larger_vision_blocks is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": ()}, r"seeds is \[\]"),
        ({"seeds": (1, 1)}, r"seeds is \[1, 1\]"),
        ({"fusions": ("gatd", "cross_attention")}, "'gatd'.*cross_attention"),
        ({"fusions": ("concat", "cross_attention")}, "'concat', which is a variant of its own"),
        ({"default_fusion": "gated"}, "default_fusion is 'gated'"),
        ({"stage1_steps": 0}, "stage1_steps is 0"),
        ({"variants": ("bm25", "bm25")}, "'bm25' twice"),
    ],
)
def test_settings_that_make_no_ablation_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(AblationError, match=message):
        settings_in(tmp_path, **changes)


def test_an_unknown_variant_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(AblationError, match="'attic'; the variants are bm25, text_only"):
        plan_ablation(settings_in(tmp_path, variants=("attic",)))


def test_a_dry_run_prints_commands_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_ablation(settings_in(tmp_path / "out", variants=("naive_concat",)), dry_run=True)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("mmfusion")] == ["stage2", "evaluate"]
    assert "# not run: text_only (not asked for)" in lines
    assert not (tmp_path / "out").exists()


STAND_IN = """
import json, pathlib, sys
flags = dict(zip(sys.argv[2::2], sys.argv[3::2]))
folder = pathlib.Path(flags["--output"])
with (pathlib.Path(__file__).parent / "calls").open("a") as calls:
    calls.write(flags.get("--name", folder.name) + "\\n")
if (pathlib.Path(__file__).parent / "broken").exists():
    sys.exit("step 1\\rstep 2\\nValueError: out of paint")
folder.mkdir(parents=True, exist_ok=True)
if "--name" in flags:
    (folder / (flags["--name"] + ".json")).write_text("{}")
    (folder / (flags["--name"] + ".per_query.parquet")).write_text("")
else:
    (folder / "checkpoints").mkdir()
    (folder / "config.json").write_text(folder.name)
    (folder / "run.json").write_text(json.dumps({"complete": True}))
"""


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a stand-in for `mmfusion`, whose commands do nothing but say so."""
    folder = tmp_path / "stand_ins"
    folder.mkdir()
    (folder / "mmfusion.py").write_text(STAND_IN)
    monkeypatch.setattr("mmfusion.ablation.steps.MMFUSION", (sys.executable, str(folder / "mmfusion.py")))
    return folder


def calls(stand_ins: Path) -> list[str]:
    path = stand_ins / "calls"
    found = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return found


def test_finished_steps_are_skipped_and_a_changed_model_is_evaluated_again(stand_ins: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    steps = plan_ablation(settings_in(output, variants=("concat",)))
    finished: list[AblationStep] = []
    run_steps(steps, after=finished.append)
    assert calls(stand_ins) == ["stage1", "concat", "concat.seed0"] and finished == steps
    assert not (output / "seed0" / "concat" / "checkpoints").exists()
    finished.clear()
    run_steps(steps, after=finished.append)
    assert calls(stand_ins) == [] and finished == steps
    (output / "seed0" / "concat" / "config.json").write_text("another model")
    run_steps(steps)
    assert calls(stand_ins) == ["concat.seed0"]
    (output / "val" / "concat.seed0.json").unlink()
    run_steps(steps)
    assert calls(stand_ins) == ["concat.seed0"]
    (output / "seed0" / "stage1" / "config.json").write_text("another model")
    with pytest.raises(AblationError, match=r"was trained from .*stage1, which has changed since; delete"):
        run_steps(steps)


def test_a_table_alone_runs_nothing_and_shows_what_is_finished(
    stand_ins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_in(tmp_path / "out", variants=("text_only", "concat"), perturbations=())
    text_only = [step for step in plan_ablation(settings) if step.variant == "text_only"]
    run_steps(text_only)
    calls(stand_ins)
    done = evaluation("text_only", around(0.5))
    monkeypatch.setattr("mmfusion.ablation.ablation.Evaluation.load", lambda folder, name: done)
    run_ablation(settings, table_only=True)
    assert calls(stand_ins) == []
    page = (tmp_path / "out" / "ablation.val.md").read_text()
    assert "| text_only: text only, fine-tuned | 1 | 5" in page and "not run: not run yet" in page
    assert "ablation.val.md" in capsys.readouterr().out


def test_a_failing_step_stops_with_the_end_of_its_log_and_is_run_again(stand_ins: Path, tmp_path: Path) -> None:
    steps = plan_ablation(settings_in(tmp_path / "out", variants=("naive_concat",)))
    (stand_ins / "broken").touch()
    with pytest.raises(StepFailedError, match=r"naive_concat, seed 0: stage2 failed with exit code 1") as caught:
        run_steps(steps)
    assert "step 2\nValueError: out of paint" in str(caught.value) and "step 1" not in str(caught.value)
    assert caught.value.step.command() in str(caught.value)
    (stand_ins / "broken").unlink()
    run_steps(steps)
    assert calls(stand_ins) == ["naive_concat", "naive_concat", "naive_concat.seed0"]


def test_time_left_comes_from_the_same_variant_of_another_seed(stand_ins: Path, tmp_path: Path) -> None:
    steps = plan_ablation(settings_in(tmp_path / "out", variants=("naive_concat",), seeds=(0, 1)))
    assert time_left(steps, steps) == "time left not known yet"
    run_steps(steps[:1])
    record = tmp_path / "out" / "seed0" / "naive_concat.step.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "seconds": 600}))
    assert time_left(steps[1:], steps) == "at least 10 min left, as 2 steps are the first of their kind"
    assert time_left(steps[2:3], steps) == "about 10 min left"
    assert duration(5400) == "1 h 30 min"


def test_the_end_of_a_log_that_is_missing_or_empty_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty.log").write_text("\n \n")
    assert (tail(tmp_path / "none.log"), tail(tmp_path / "empty.log")) == ("(no log)", "(empty)")


def test_seeds_are_averaged_query_by_query_before_the_bootstrap() -> None:
    first = {seed: evaluation("a", [1.0, 0.5, None, 0.2 * seed], seed) for seed in (0, 1)}
    mean = average(first, "a")
    assert mean.per_query["recall@100"].to_pylist() == [1.0, 0.5, None, pytest.approx(0.1)]
    assert mean.means["recall@100"] == pytest.approx(np.mean([e.means["recall@100"] for e in first.values()]))
    assert mean.slices[1].metrics["ndcg@10"] == pytest.approx((0.25 + 0.35) / 2)
    assert mean.provenance["seeds"] == [0, 1]
    # Seeds that err on different queries by as much cancel out within a query: no spread is left to resample.
    one = {0: evaluation("a", [0.6, 0.4]), 1: evaluation("a", [0.4, 0.6])}
    other = {0: evaluation("b", [0.3, 0.3]), 1: evaluation("b", [0.3, 0.3])}
    found = difference(one, other, "recall@100", num_resamples=50)
    assert (found.low, found.difference, found.high) == (pytest.approx(0.2), pytest.approx(0.2), pytest.approx(0.2))


def test_variants_with_other_seeds_are_compared_on_the_common_ones() -> None:
    one = {0: evaluation("a", [0.6, 0.6]), 7: evaluation("a", [0.0, 0.0])}
    other = {0: evaluation("b", [0.5, 0.5]), 8: evaluation("b", [1.0, 1.0])}
    found = difference(one, other, "ndcg@10", num_resamples=9)
    assert found is not None and found.difference == pytest.approx(0.1)
    assert difference({7: one[7]}, other, "ndcg@10") is None
    unseeded = difference(one, {None: evaluation("bm25", [0.1, 0.1])}, "ndcg@10", num_resamples=9)
    assert unseeded is not None and unseeded.first == pytest.approx(0.3)


def test_seeds_that_were_evaluated_differently_are_refused() -> None:
    first = evaluation("a", [0.5, 0.5])
    with pytest.raises(ValueError, match="num_products=10 but 'b' has num_products=11"):
        average({0: first, 1: evaluation("b", [0.5, 0.5], num_products=11)}, "a")
    renamed = first.per_query.set_column(0, "query_id", pa.array(["q0", "q9"]))
    with pytest.raises(ValueError, match="differ in queries"):
        average({0: first, 1: dataclasses.replace(first, per_query=renamed)}, "a")


def synthetic_results() -> Results:
    levels = {"text_only": 0.5, "naive_concat": 0.6, "concat": 0.4, "cross_attention": 0.8, "one_stage": 0.9}
    seeded = {
        (name, "none"): {seed: evaluation(name, around(level, seed=seed + int(100 * level)), seed) for seed in (0, 1)}
        for name, level in levels.items()
    }
    shuffled = {seed: evaluation("cross_attention", around(0.3, seed=seed), seed) for seed in (0, 1)}
    return {
        ("bm25", "none"): {None: evaluation("bm25", around(0.3))},
        **seeded,
        ("cross_attention", "photos_shuffled"): shuffled,
    }


def rows_of(settings: AblationSettings, results: Results) -> dict[str, Row]:
    rows = compare(all_variants(settings), results, reasons_not_run(settings), num_resamples=200)
    return {row.name: row for row in rows}


def test_variants_out_of_order_are_marked(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, fusions=("gated", "cross_attention"))
    rows = rows_of(settings, synthetic_results())
    assert [name for name, row in rows.items() if row.out_of_order()] == ["concat", "one_stage"]
    found = rows["naive_concat"].get("ndcg@10")
    assert found is not None and found.before is not None and found.reference is not None
    assert 0.05 < found.before.low < found.before.high < 0.15 and found.before == found.reference
    visual = rows["cross_attention"].get("recall@100", "kind", "visual")
    assert visual is not None and visual.reference is not None and visual.reference.num_queries == 30
    assert (rows["gated"].compared, rows["gated"].not_run) == ((), "not run yet")
    assert rows["larger_generic"].not_run.startswith("no --larger_base")


def test_a_variant_is_compared_with_the_nearest_one_that_was_run(tmp_path: Path) -> None:
    results = synthetic_results()
    del results["concat", "none"]
    rows = rows_of(settings_in(tmp_path), results)
    assert rows["cross_attention"].before == "naive_concat"
    assert rows["bm25"].before is None and rows["bm25"].out_of_order() == []


def test_the_table_says_what_was_run_what_was_not_and_how(tmp_path: Path) -> None:
    settings = settings_in(
        tmp_path, seeds=(0, 1), fusions=("gated", "cross_attention"), perturbations=("photos_shuffled",)
    )
    results = synthetic_results()
    settings.output.joinpath("val").mkdir()
    steps = plan_ablation(settings)
    for step in steps:
        found = results.get((step.variant, step.perturbation), {}).get(step.seed)
        if step.name and found:
            dataclasses.replace(found, name=step.name).save(step.folder)
    finished = [step for step in steps if (step.folder / f"{step.name}.json").is_file()]
    numbers = write_ablation(settings, steps, finished)
    page, table_file, picture = (tmp_path / f"ablation.val{ending}" for ending in (".md", ".csv", ".png"))
    page = page.read_text()
    lines = {line.split("|")[1].split(":")[0].strip(): line for line in page.splitlines() if line.startswith("|")}
    assert "**out of order**: Recall@100, nDCG@10" in next(x for x in page.splitlines() if x.startswith("| concat:"))
    assert "not run: no --larger_base was given" in lines["larger_generic"]
    assert lines["cross_attention, photos_shuffled against text_only"].count("[-") == 2
    assert "Fewer than 3 seeds" in page and "commit: no step has finished" in page
    assert "mmfusion stage2 " in page and "--output $OUT/seed0/concat" in page and "--base $BASE" in page
    assert Ablation.load(tmp_path / "ablation.val.json") == numbers
    table = list(csv.DictReader(table_file.open()))
    concat = [
        r for r in table if (r["variant"], r["metric"], r["seed"], r["value"]) == ("concat", "ndcg@10", "mean", "")
    ]
    assert concat[0]["status"] == "out of order" and float(concat[0]["before_high"]) < 0
    assert {r["seed"] for r in table if r["variant"] == "text_only"} == {"mean", "0", "1"}
    assert any(r["perturbation"] == "photos_shuffled" and r["mean"] for r in table)
    assert picture.stat().st_size > 10_000
    mean = Evaluation.load(tmp_path / "val" / "mean", "concat").means
    assert [found.mean for found in numbers.rows[3].overall()] == list(mean.values())


def test_results_are_read_by_variant_seed_and_perturbation(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, variants=("cross_attention",), seeds=(0, 5), perturbations=("typos",))
    steps = plan_ablation(settings)
    for step in steps:
        if step.name:
            evaluation(step.name, [0.5, 0.6]).save(step.folder)
    found = collect(steps)
    assert {key: list(by_seed) for key, by_seed in found.items()} == {
        ("cross_attention", "none"): [0, 5],
        ("cross_attention", "typos"): [0, 5],
    }
    with pytest.raises(FileNotFoundError, match="no evaluation"):
        collect(plan_ablation(dataclasses.replace(settings, seeds=(6,))))


def ablation(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CHECKOUT / "recipes" / "ablation.py"), *arguments]
    return run_to_end(command, children=12)


@pytest.mark.slow
def test_two_variants_from_the_command_line(tmp_path: Path) -> None:
    output = tmp_path / "out"
    base = starting_base(None, tmp_path / "tiny")
    sizes = {"stage1_steps": 1, "stage2_steps": 1, "batch_size": 8, "stage2_batch_size": 8, "num_products": 60}
    flags = {"base": base, "output": output, "variants": "[bm25,naive_concat]", "seeds": "[0]", **sizes}
    done = ablation([part for name, value in flags.items() for part in (f"--{name}", str(value))])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[2/3] naive_concat, seed 0: stage2" in done.stdout
    page = (output / "ablation.val.md").read_text()
    assert "text_only: text only, fine-tuned | – | not run" in page
    assert (output / "seed0" / "naive_concat.log").is_file() and (output / "ablation.val.png").is_file()
    assert (output / "feature_cache" / "frozen_vision" / "val_pool").is_dir()


@pytest.mark.slow
def test_a_whole_ablation_on_the_toy_encoders(tmp_path: Path) -> None:
    output = tmp_path / "out"
    options = ["--fusions", "[gated]", "--num_products", "60", "--seeds", "[0]", "--output", str(output)]
    budget = ["--stage1_steps", "2", "--stage2_steps", "1", "--batch_size", "8", "--stage2_batch_size", "8"]
    done = ablation([*options, *budget])
    assert done.returncode == 0, done.stdout + done.stderr
    table = list(csv.DictReader((output / "ablation.val.csv").open()))
    assert {row["variant"] for row in table if row["status"].startswith("not run")} == {"larger_generic"}
    again = ablation([*options, *budget])
    assert again.returncode == 0 and "seed 0:" not in again.stdout
