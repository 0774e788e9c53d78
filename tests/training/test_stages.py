"""What the stages train, on which products, and what they leave alone."""

import copy
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from training_runs import assert_same_ends, fit
from two_ranks import build_model

from mmfusion.data.catalogue import Catalogue
from mmfusion.data.datamodule import MMFusionDataModule
from mmfusion.data.feature_cache import FeatureCache, FeatureCacheError, build_feature_cache, build_text_cache
from mmfusion.data.tables import ProductTable, QueryTable
from mmfusion.data.toy_catalogue import write_toy_catalogue
from mmfusion.distributed.shards import gradient_norm
from mmfusion.model import MMFusionModel, MMFusionProcessor
from mmfusion.stages import NonFiniteLossError, Optimization, Stage, Stage1, Stage2
from mmfusion.stages.optimization import can_fuse, parameter_groups, warmup_cosine
from mmfusion.stages.stage import model_inputs
from mmfusion.stages.stage2 import drop_modalities
from mmfusion.training import cache_frozen


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stages")
    write_toy_catalogue(folder / "catalogue", num_products=100)
    return folder


@pytest.fixture(scope="module")
def catalogue(folder: Path) -> Catalogue:
    return Catalogue.load(folder / "catalogue", cache_dir=folder / "cache")


@pytest.fixture
def tower(folder: Path) -> Iterator[tuple[MMFusionModel, MMFusionProcessor]]:
    model, processor = build_model(folder / "backbones")
    yield model.float(), processor


def snapshot(model: MMFusionModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(model: MMFusionModel, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def test_stage1_leaves_fusion_alone_and_trains_both_encoders(tower: Any, catalogue: Catalogue) -> None:
    model, processor = tower
    before = snapshot(model)
    fit(Stage1(model), MMFusionDataModule(catalogue, processor, batch_size=8))
    names = changed(model, before)
    assert not any(name.startswith("fusion.") for name in names)
    for part in ("text_model.", "vision_model.", "query_projection.", "image_projection.", "logit_scale"):
        assert any(name.startswith(part) for name in names), part
    # BatchNorm statistics stay what they were.
    assert not any("running" in name or "num_batches" in name for name in names)


def test_stage1_without_photo_terms_never_touches_the_vision_side(tower: Any, catalogue: Catalogue) -> None:
    model, processor = tower
    before = snapshot(model)
    stage = Stage1(model, query_image_weight=0, title_image_weight=0)
    fit(stage, MMFusionDataModule(catalogue, processor, batch_size=8, photos=False))
    assert not any(
        name.startswith(("vision_model.", "image_projection.", "fusion.")) for name in changed(model, before)
    )


def test_a_learning_rate_of_zero_freezes_an_encoder(tower: Any, catalogue: Catalogue) -> None:
    model, processor = tower
    before = snapshot(model)
    stage = Stage2(model, Optimization(text_learning_rate=0, vision_learning_rate=0))
    assert not model.text_model.training and model.fusion.training
    fit(stage, MMFusionDataModule(catalogue, processor, batch_size=8))
    names = changed(model, before)
    assert not any(name.startswith(("text_model.", "vision_model.")) for name in names)
    assert any(name.startswith("fusion.") for name in names)


def test_training_on_cached_activations_equals_training_on_photos(
    folder: Path, catalogue: Catalogue, tmp_path: Path
) -> None:
    ends = []
    for cached in (False, True):
        model, processor = build_model(folder / "backbones")
        model.float().freeze_vision(1)
        prefix = {name: value.clone() for name, value in model.vision_prefix_state()}
        data = MMFusionDataModule(catalogue, processor, batch_size=8)
        if cached:
            data.cache_vision(model, tmp_path)
        trainer = fit(Stage2(model, modality_dropout=0.0), data, val_check_interval=1)
        assert ("vision_activations" in data._train_products[np.array([0, 1])]) == cached
        assert all(torch.equal(value, prefix[name]) for name, value in model.vision_prefix_state())
        assert trainer.callback_metrics["val/fused/ndcg@10"] > 0
        ends.append(snapshot(model))
    assert_same_ends(*ends)


def test_training_on_cached_states_of_frozen_encoders_equals_running_them(
    folder: Path, catalogue: Catalogue, tmp_path: Path
) -> None:
    ends = []
    for cached in (False, True):
        model, processor = build_model(folder / "backbones", vision_feature_layers=[0], projection_hidden_size=8)
        optimization = Optimization(text_learning_rate=0, vision_learning_rate=0)
        data = MMFusionDataModule(catalogue, processor, batch_size=8, extra_products=5)
        stage = Stage2(model.float(), optimization, modality_dropout=0.0)
        if cached:
            cache_frozen(model, data, optimization, 0, tmp_path)
        trainer = fit(stage, data, val_check_interval=1)
        batch = data._train_products[data.train_rows[:3]]
        assert ("vision_activations" in batch) == ("product_text_states" in batch) == cached
        assert ("query_text_states" in data._queries[data.val_qrels.query[:2]]) == cached
        assert trainer.callback_metrics["val/fused/ndcg@10"] > 0
        ends.append(snapshot(model))
    assert_same_ends(*ends)


def test_states_of_an_encoder_in_training_or_of_other_texts_are_refused(
    folder: Path, catalogue: Catalogue, tmp_path: Path
) -> None:
    model, processor = build_model(folder / "backbones")
    table, rows = QueryTable(catalogue, processor), catalogue.query_rows("val")
    with pytest.raises(FeatureCacheError, match=r"query text encoder is in training.*text_learning_rate 0"):
        build_text_cache(tmp_path, model, table, rows, "query")
    model.text_model.requires_grad_(False)
    cache = build_text_cache(tmp_path, model, table, rows, "query")
    batch = table[rows[:4]]
    with torch.no_grad():
        live = model.get_query_features(batch["query_input_ids"], batch["query_attention_mask"])
        found = cache.texts(rows[:4])
        assert torch.equal(found["attention_mask"], batch["query_attention_mask"])
        states = found["text_states"]
        stored = model.get_query_features(batch["query_input_ids"], batch["query_attention_mask"], states)
    torch.testing.assert_close(stored, live, rtol=1e-4, atol=1e-5)
    with pytest.raises(FeatureCacheError, match=r"Row \d+ is not in the feature cache"):
        cache.texts(catalogue.query_rows("test")[:1])
    with torch.no_grad():
        torch.nn.init.normal_(next(iter(model.text_model.parameters())))
    other = build_text_cache(tmp_path, model, table, rows, "query")
    assert not torch.equal(other.texts(rows[:4])["text_states"], states)


def test_means_of_cached_states_are_those_of_the_states_and_a_text_without_tokens_has_none(tmp_path: Path) -> None:
    rows, lengths = np.array([3, 5, 8, 9]), [2, 0, 3, 1]
    items = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    cache = FeatureCache(tmp_path / "texts", rows, "key", [(lengths[:2], items[:2]), (lengths[2:], items[2:])])
    for opened in (cache, pickle.loads(pickle.dumps(cache))):
        asked = np.array([8, 5, 9, 3, 8])
        whole, means = opened.texts(asked), opened.texts(asked, means=True)
        assert whole["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]]
        expected = torch.stack([torch.tensor(items[2:5]), torch.zeros(3, 4)])
        assert torch.equal(whole["text_states"][:2], expected)
        assert means["attention_mask"].tolist() == [[1], [0], [1], [1], [1]]
        assert means["input_ids"].shape == (5, 1) and whole["input_ids"].shape == (5, 3)
        of_states = whole["text_states"].sum(1) / whole["attention_mask"].sum(1, keepdim=True).clamp_min(1)
        torch.testing.assert_close(means["text_states"][:, 0], of_states)
    nothing = opened.texts(np.array([5]))
    assert nothing["text_states"].shape == (1, 1, 4) and not nothing["attention_mask"].any()


@pytest.mark.parametrize(("fusion", "length"), [("gated", 1), ("cross_attention", None)])
def test_a_fusion_that_reads_no_tokens_is_trained_on_means_of_texts(
    fusion: str, length: int | None, folder: Path, catalogue: Catalogue, tmp_path: Path
) -> None:
    model, processor = build_model(folder / "backbones", fusion=fusion)
    optimization = Optimization(text_learning_rate=0, vision_learning_rate=0)
    data = MMFusionDataModule(catalogue, processor, batch_size=8)
    stage = Stage2(model.float(), optimization, modality_dropout=0.0)
    live = next(iter(data.train_dataloader()))
    cache_frozen(model, data, optimization, 0, tmp_path)
    data.setup("fit")
    cached = next(iter(data.train_dataloader()))
    longest = int(live["product_attention_mask"].sum(1).max())
    assert cached["product_text_states"].shape[1] == (length or longest)
    assert cached["query_text_states"].shape[1] == 1
    pooled, states = model.photo_sizes
    width = cached["vision_activations"].shape[2]
    assert width == pooled if length else (width > pooled and (width - pooled) % states == 0)
    found = []
    for batch in (live, cached):
        stage.zero_grad()
        output = model.eval()(**model_inputs(batch))
        scores = output.query_embeds @ output.product_embeds.T
        (scores * torch.linspace(-1, 1, scores.shape[1])).sum().backward()
        gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
        found.append((output.query_embeds.detach(), output.product_embeds.detach(), gradients))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert found[0][2]


def test_a_batch_without_photos_gives_the_vision_encoder_a_gradient_of_zeros(tower: Any, catalogue: Catalogue) -> None:
    model, processor = tower
    seen = []

    class Gradients(L.Callback):
        def on_before_optimizer_step(self, _: object, stage: L.LightningModule, optimizer: object) -> None:
            seen.append({name: value.grad for name, value in stage.named_parameters() if value.requires_grad})

    data = MMFusionDataModule(catalogue, processor, batch_size=8, photos=False)
    fit(Stage2(model), data, limit_val_batches=0, callbacks=[Gradients()])
    of_photos = [value for name, value in seen[0].items() if name.startswith("model.vision_model")]
    assert of_photos and all(value is not None and not value.any() for value in of_photos)
    assert all(value is not None for value in seen[0].values())


def test_a_cache_of_another_model_photo_or_processor_is_refused(
    folder: Path, catalogue: Catalogue, tmp_path: Path
) -> None:
    model, processor = build_model(folder / "backbones")
    model.freeze_vision(1)
    table, rows = ProductTable(catalogue, processor), catalogue.product_rows("val")
    before = torch.get_rng_state()
    cache = build_feature_cache(tmp_path / "cache", model, table, rows)
    found = build_feature_cache(tmp_path / "cache", model, table, rows).photos(rows)
    # Training goes the same way whether a cache had to be built or not.
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(found["vision_activations"], cache.photos(rows)["vision_activations"])
    with pytest.raises(FeatureCacheError, match="not in the feature cache"):
        cache.photos(catalogue.product_rows("test")[:1])
    with pytest.raises(FeatureCacheError, match=r"another model, processor or set of photos.*delete the folder"):
        build_feature_cache(tmp_path / "cache", model, table, rows[1:])
    processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    with pytest.raises(FeatureCacheError, match="another model, processor"):
        build_feature_cache(tmp_path / "cache", model, table, rows)
    _, processor = build_model(folder / "backbones")
    with torch.no_grad():
        next(model.vision_model.parameters()).add_(1.0)
    with pytest.raises(FeatureCacheError, match="another model, processor"):
        build_feature_cache(tmp_path / "cache", model, ProductTable(catalogue, processor), rows)


def test_losses_see_train_products_and_judgements_only(tower: Any, catalogue: Catalogue) -> None:
    _, processor = tower
    data = MMFusionDataModule(catalogue, processor, batch_size=4)
    train_products, train_queries = catalogue.product_rows("train"), catalogue.query_rows("train")
    assert np.isin(data.train_qrels.product, train_products).all()
    assert np.isin(data.train_qrels.query, train_queries).all()
    for batch in data.train_dataloader():
        assert np.isin(batch["product_rows"].numpy(), train_products).all()
        assert np.isin(batch["query_rows"].numpy(), train_queries).all()


def test_batches_bring_the_judgements_of_their_split(tower: Any, catalogue: Catalogue) -> None:
    _, processor = tower
    data = MMFusionDataModule(catalogue, processor, batch_size=4)
    loaders = [(data.train_dataloader(), data.train_qrels), *((one, data.val_qrels) for one in data.val_dataloader())]
    for loader, qrels in loaders:
        judgements = data.transfer_batch_to_device(next(iter(loader)), torch.device("cpu"), 0)["judgements"]
        queries, products = qrels.query[:5], qrels.product[:5]
        grades = judgements(torch.from_numpy(queries), torch.from_numpy(products))
        assert grades.tolist() == qrels.grades(queries, products).tolist() and grades.max() > 0


def test_train_batches_bring_the_grades_of_their_pairs(tower: Any, catalogue: Catalogue) -> None:
    _, processor = tower
    data = MMFusionDataModule(catalogue, processor, batch_size=4, extra_products=3)
    for batch in data.train_dataloader():
        queries, products = batch["query_rows"], batch["product_rows"]
        judgements = data.transfer_batch_to_device(batch, torch.device("cpu"), 0)["judgements"]
        of_queries, same_product = (
            judgements.of_queries.table(len(products)),
            judgements.same_product.table(len(products)),
        )
        assert torch.equal(of_queries, judgements(queries, products)) and of_queries.any(1).all()
        assert torch.equal(same_product, (products[:, None] == products).long())
        assert judgements.of_queries.levels == data.levels and judgements.same_product.levels == (1,)


def test_a_dev_fold_takes_whole_values_of_a_column_out_of_training(tower: Any, catalogue: Catalogue) -> None:
    _, processor = tower
    data = MMFusionDataModule(catalogue, processor, batch_size=4, dev_fraction=0.4, dev_by="constraints")
    asked = np.array(catalogue.queries["constraints"])
    held_out, kept = set(asked[data.val_qrels.query]), set(asked[data.train_qrels.query])
    assert held_out and kept and not held_out & kept
    assert np.isin(data.val_qrels.query, catalogue.query_rows("train")).all()


def test_products_without_splits_are_cached_once(tower: Any, catalogue: Catalogue) -> None:
    _, processor = tower
    whole = Catalogue(catalogue.products.remove_columns("split"), catalogue.queries, catalogue.qrels)
    data = MMFusionDataModule(whole, processor, batch_size=4)
    assert len(data.val_qrels) and data._val_products is data._train_products
    assert MMFusionDataModule(catalogue, processor, batch_size=4)._val_products is not data._train_products
    hidden = MMFusionDataModule(whole, processor, batch_size=4, val_texts=False)
    assert hidden._val_products is not hidden._train_products


def test_modality_dropout_takes_one_modality_of_products_that_have_both() -> None:
    torch.manual_seed(0)
    inputs = {
        "product_attention_mask": torch.ones(2000, 3, dtype=torch.long),
        "photo_mask": torch.ones(2000, 2, dtype=torch.bool),
    }
    inputs["product_attention_mask"][:500] = 0
    inputs["photo_mask"][500:1000] = False
    dropped = drop_modalities(inputs, 0.4)
    text, photo = dropped["product_attention_mask"].any(1), dropped["photo_mask"].any(1)
    assert (text | photo).all()
    assert not text[:500].any() and photo[:500].all()
    assert text[500:1000].all() and not photo[500:1000].any()
    assert 0.15 < (~text[1000:]).float().mean() < 0.25 and 0.15 < (~photo[1000:]).float().mean() < 0.25
    assert inputs["photo_mask"][1000:].all()


def test_parameter_groups_cover_each_trainable_parameter_once_and_decay_matrices_only(tower: Any) -> None:
    model, _ = tower
    groups = parameter_groups(model, Optimization(weight_decay=0.1))
    members = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(members) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    for group in groups:
        assert all((parameter.ndim >= 2) == (group["weight_decay"] == 0.1) for parameter in group["params"])
    assert {group["name"].removesuffix("_no_decay") for group in groups} == {"text", "vision", "head"}


def test_learning_rate_warms_up_and_decays_in_optimizer_steps() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = warmup_cosine(optimizer, [(0, 100)], Optimization(warmup_fraction=0.1, final_fraction=0.05))
    rates = []
    for _ in range(101):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert 0 < rates[0] < rates[5] < rates[10] == 1.0
    assert all(later <= earlier for earlier, later in pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(0.05)


def test_an_extension_warms_up_and_decays_once_more() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    once, twice = (
        warmup_cosine(optimizer, schedules, Optimization(warmup_fraction=0.2)).lr_lambdas[0]
        for schedules in ([(0, 10)], [(0, 10), (6, 10)])
    )
    assert [twice(step) for step in range(6)] == [once(step) for step in range(6)]
    assert [twice(step + 6) for step in range(10)] == [once(step) for step in range(10)]


def test_the_optimizer_is_fused_unless_gradients_are_scaled() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert can_fuse(cpu, "32-true") and can_fuse(gpu, "32-true") and can_fuse(gpu, "bf16-mixed")
    assert not can_fuse(gpu, "16-mixed") and not can_fuse(torch.device("mps"), "32-true")


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_are_clipped_for_a_fused_optimizer(precision: Any, tower: Any, catalogue: Catalogue) -> None:
    # Lightning's own clipping would refuse it.
    norms = []

    class Norm(L.Callback):
        def on_before_zero_grad(self, _: object, stage: L.LightningModule, optimizer: torch.optim.Optimizer) -> None:
            assert optimizer.defaults["fused"]
            norms.append(float(gradient_norm(stage.parameters())))

    model, processor = tower
    data = MMFusionDataModule(catalogue, processor, batch_size=8)
    fit(Stage1(model), data, precision=precision, gradient_clip_val=0.01, callbacks=[Norm()])
    # Zeroed before the first step; what the first step took is there before the second.
    assert norms[-1] == pytest.approx(0.01, rel=1e-3)


def test_a_nan_stops_with_step_rank_and_product_ids(tower: Any, catalogue: Catalogue) -> None:
    model, processor = tower
    with torch.no_grad():
        model.text_projection.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteLossError, match=r"step 0 on rank 0.*first products of the batch: \S+"):
        fit(Stage1(model), MMFusionDataModule(catalogue, processor, batch_size=4))


def test_batches_without_judgements_are_an_error(tower: Any, catalogue: Catalogue) -> None:
    model, processor = tower
    loader = MMFusionDataModule(catalogue, processor, batch_size=4).train_dataloader()
    trainer = L.Trainer(accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, barebones=True)
    with pytest.raises(TypeError, match=r"no judgements.*datamodule=MMFusionDataModule"):
        trainer.fit(Stage1(model), loader)


def test_bf16_mixed_trains_with_finite_losses(tower: Any, catalogue: Catalogue) -> None:
    model, processor = tower
    before = snapshot(model)
    data = MMFusionDataModule(catalogue, processor, batch_size=8)
    trainer = fit(Stage2(model), data, precision="bf16-mixed")
    assert torch.isfinite(trainer.callback_metrics["train/loss"])
    assert 0.0 < trainer.callback_metrics["train/image_weight"] < 1.0
    assert 0.0 < trainer.callback_metrics["train/image_weight_spread"] < 0.5
    assert all(value.dtype == before[name].dtype for name, value in model.state_dict().items())
    assert any(name.startswith("fusion.") for name in changed(model, before))


# Of the loss of the third step, relative: half precision rounds similarities to 8 bits, and the logit scale multiplies
# them by 20.
HALF_TOLERANCE = 0.05


@pytest.mark.parametrize("stage", [Stage1, partial(Stage2, modality_dropout=0.0)], ids=["stage1", "stage2"])
def test_half_precision_trains_as_single_precision_does(
    stage: Callable[[MMFusionModel], Stage], tower: Any, catalogue: Catalogue
) -> None:
    model, processor = tower
    losses = []
    for precision in ("32-true", "bf16-mixed"):
        data = MMFusionDataModule(catalogue, processor, batch_size=8)
        trainer = fit(stage(copy.deepcopy(model)), data, precision=precision, max_steps=3, gradient_clip_val=1.0)
        losses.append(float(trainer.callback_metrics["train/loss"]))
    assert losses[1] != losses[0]
    assert losses[1] == pytest.approx(losses[0], rel=HALF_TOLERANCE)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda model: Stage1(model, query_text_weight=-1), "at least 0"),
        (lambda model: Stage1(model, query_text_weight=0, query_image_weight=0, title_image_weight=0), "above 0"),
        (lambda model: Stage2(model, fused_weight=0), "above 0"),
        (lambda model: Stage2(model, modality_dropout=1.0), r"modality_dropout is 1.0.*\[0, 1\)"),
        (lambda model: Optimization(learning_rate=-1.0), "learning_rate is -1.0"),
        (lambda model: Optimization(warmup_fraction=2.0), "warmup_fraction is 2.0"),
    ],
)
def test_settings_out_of_range_are_refused(make: Any, message: str, tower: Any) -> None:
    with pytest.raises(ValueError, match=message):
        make(tower[0])
