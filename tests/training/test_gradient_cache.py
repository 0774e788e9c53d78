"""Gradient caching against a forward pass with its whole graph: dropout, autocast, accumulation, and its limits."""

from itertools import accumulate
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from tiny_encoders import photos, texts, tiny_model
from torch import Tensor
from training_runs import fit
from two_ranks import build_model

from mmfusion.data.catalogue import Catalogue
from mmfusion.data.datamodule import MMFusionDataModule
from mmfusion.data.toy_catalogue import write_toy_catalogue
from mmfusion.model import MMFusionModel, MMFusionOutput
from mmfusion.stages import Lora, Stage1, Stage2, add_adapters
from mmfusion.stages.gradient_cache import _micro_batches, check_rows_are_independent, embed_in_micro_batches
from mmfusion.training.checkpoints import check_fits

SIZE = 3


def inputs() -> dict[str, Tensor]:
    """7 products, some without text or photo, of which a whole micro-batch has no photo; 5 queries."""
    products, queries = texts([4, 0, 6, 3, 2, 5, 1]), texts([3, 2, 4, 1, 2], seed=3)
    mask = torch.tensor([[True], [True], [False], [False], [False], [False], [True]])
    return {
        **{f"product_{name}": value for name, value in products.items()},
        **{f"query_{name}": value for name, value in queries.items()},
        "pixel_values": photos(7),
        "photo_mask": mask,
    }


def dropping(**config: Any) -> MMFusionModel:
    """In training mode, with dropout in the encoders, the projections and the fusion network."""
    fields = {"fusion": "gated", "fusion_dropout": 0.3, "projection_hidden_size": 8, "projection_dropout": 0.3}
    return tiny_model("bert", "resnet", **{**fields, **config}).train()


def with_graph(model: MMFusionModel, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The slow twin: the same micro-batches in the same order, products and longest texts first, all graphs held."""
    outputs: dict[str, Tensor] = {}
    for side in ("product", "query"):
        rows = {name: value for name, value in batch.items() if name.startswith("query_") == (side == "query")}
        lengths = rows[f"{side}_attention_mask"].sum(1)
        order, parts = lengths.argsort(stable=True, descending=True), []
        for part in order.split(SIZE):
            length = max(1, lengths[part].max())
            tokens = {name: value[part][:, :length] for name, value in rows.items() if side in name}
            parts.append(model(**{name: value[part] for name, value in rows.items()} | tokens))
        back = order.argsort()
        outputs |= {name: torch.cat([part[name] for part in parts])[back] for name in parts[0] if parts[0][name].ndim}
    return outputs


def gradients(model: MMFusionModel, output: Any) -> dict[str, Tensor]:
    """Of a loss that joins all rows of all views."""
    views = [output[name] for name in ("query_embeds", "product_embeds", "text_embeds", "image_embeds")]
    everything = torch.cat(views).double()
    (everything @ everything.T * torch.linspace(-1, 1, len(everything))).square().sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("lora", [Lora(), Lora(rank=2, dropout=0.5, targets="*layer*", vision_targets="convolution")])
def test_dropout_is_replayed_exactly(lora: Lora) -> None:
    model, batch = dropping().double(), inputs()
    add_adapters(model, lora)
    for name, value in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(value)
    torch.manual_seed(5)
    twin = with_graph(model, batch)
    torch.manual_seed(5)
    cached = embed_in_micro_batches(model, batch, SIZE)
    torch.testing.assert_close(cached.product_embeds, twin["product_embeds"])
    expected, drawn = gradients(model, twin), torch.get_rng_state()
    found = gradients(model, cached)
    assert torch.equal(torch.get_rng_state(), drawn), "the replay moved the random state"
    assert found.keys() == expected.keys() and any(name.startswith("vision_model") for name in found)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12, msg=name)
    torch.manual_seed(6)
    other = gradients(model, embed_in_micro_batches(model, batch, SIZE))
    assert not torch.allclose(other["query_projection.weight"], found["query_projection.weight"])


@pytest.mark.parametrize("inside", [False, True])
def test_autocast_is_replayed_wherever_backward_is_called(inside: bool) -> None:
    model, batch = dropping(), inputs()
    results = []
    for embed in (with_graph, lambda model, batch: embed_in_micro_batches(model, batch, SIZE)):
        torch.manual_seed(5)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = embed(model, batch)
            if inside:
                results.append((output, gradients(model, output)))
        if not inside:
            results.append((output, gradients(model, output)))
    (twin, expected), (cached, found) = results
    assert cached.query_embeds.dtype == twin["query_embeds"].dtype
    assert torch.equal(cached.query_embeds, twin["query_embeds"])
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # The twin adds up the gradients of micro-batches in bfloat16.
        assert (found[name] - value).norm() <= 0.05 * value.norm() + 1e-4, name


def test_no_more_rows_than_a_micro_batch_have_a_graph() -> None:
    model, seen = dropping(), []

    def watch(_: Any, arguments: Any, output: Tensor) -> None:
        seen.append((len(output), torch.is_grad_enabled()))

    model.query_projection.register_forward_hook(watch)
    output = embed_in_micro_batches(model, inputs(), SIZE)
    assert seen == [(3, False), (2, False)]
    gradients(model, output)
    assert seen[2:] == [(3, True), (2, True)]


def test_a_micro_batch_of_long_texts_has_fewer_rows() -> None:
    model, seen = tiny_model("bert", "resnet").eval(), list[tuple[int, ...]]()
    batch = inputs() | {f"product_{name}": value for name, value in texts([1, 12, 2, 1, 3, 1, 1]).items()}
    twin = gradients(model, model(**batch))
    model.text_model.register_forward_hook(lambda _, __, output: seen.append(output.last_hidden_state.shape[:2]))
    output = embed_in_micro_batches(model, batch, SIZE)
    # Products, of which 3 of twice the average length have 18 tokens; then queries.
    assert seen == [(1, 12), (3, 3), (3, 1), (3, 4), (2, 2)]
    found = gradients(model, output)
    assert found.keys() == twin.keys()
    for name, value in twin.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("lengths", [[5] * 9, [64] + [1] * 8, [8, 7, 6, 5, 4, 3, 2, 1], [3], []])
def test_micro_batches_hold_all_rows_and_a_bounded_number_of_tokens(lengths: list[int]) -> None:
    sizes = _micro_batches(lengths, 4)
    assert sum(sizes) == len(lengths) and all(1 <= size <= 4 for size in sizes)
    for start, size in zip(accumulate(sizes, initial=0), sizes, strict=False):
        assert size == 1 or size * lengths[start] <= 8 * sum(lengths) / len(lengths)


def test_a_micro_batch_gives_gradients_of_the_words_that_it_has() -> None:
    model, seen = tiny_model("bert", "resnet").eval(), list[Any]()
    words = model.text_model.embeddings.word_embeddings
    expected = gradients(model, model(**inputs()))["text_model.embeddings.word_embeddings.weight"]
    words.weight.register_hook(lambda gradient: seen.append(gradient.layout))
    found = gradients(model, embed_in_micro_batches(model, inputs(), SIZE))
    # Three micro-batches of products and two of queries; then their sum, for the optimizer.
    assert seen == [torch.sparse_coo] * 5 + [torch.strided] and not words.sparse
    torch.testing.assert_close(found["text_model.embeddings.word_embeddings.weight"], expected, rtol=1e-4, atol=1e-5)


def test_a_side_that_the_loss_does_not_read_is_not_run_again() -> None:
    model, seen = tiny_model("bert", "resnet").eval(), list[int]()
    output = embed_in_micro_batches(model, inputs(), SIZE)
    model.text_model.register_forward_hook(lambda _, __, output: seen.append(len(output.last_hidden_state)))
    output.query_embeds.sum().backward()
    assert seen == [3, 2] and model.query_projection.weight.grad.any() and model.text_projection.weight.grad is None


def test_frozen_parts_get_no_gradient_and_are_left_out() -> None:
    model = dropping()
    for part in (model.text_model, model.query_projection, model.vision_model):
        part.requires_grad_(False)
    output = embed_in_micro_batches(model, inputs(), SIZE)
    assert isinstance(output, MMFusionOutput) and output.modality_present.dtype == torch.bool
    found = gradients(model, output)
    assert found and not any(name.startswith(("text_model", "query_projection", "vision_model")) for name in found)


def test_statistics_of_a_micro_batch_are_refused() -> None:
    check_rows_are_independent(dropping())
    with pytest.raises(ValueError, match=r"vision_model\S+ gathers BatchNorm.*freeze_batch_norm=True.*--micro_batch 0"):
        check_rows_are_independent(dropping(freeze_batch_norm=False))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    write_toy_catalogue(folder / "catalogue", num_products=100)
    return folder


def test_clipped_accumulated_steps_end_with_the_same_weights(folder: Path) -> None:
    ends = []
    for micro_batch in (0, 3):
        model, processor = build_model(folder / "backbones", fusion="gated")
        catalogue = Catalogue.load(folder / "catalogue", cache_dir=folder / "cache")
        data = MMFusionDataModule(catalogue, processor, batch_size=4, extra_products=3)
        L.seed_everything(1, verbose=False)
        stage = Stage2(model, modality_dropout=0.4, micro_batch=micro_batch)
        options = {"precision": "64-true", "accumulate_grad_batches": 2, "gradient_clip_val": 0.1}
        fit(stage, data, limit_val_batches=0, **options)
        ends.append({name: value.clone() for name, value in model.state_dict().items()})
    for name, value in ends[0].items():
        # Softmax ignores a bias of keys: its gradient is rounding, which Adam scales up.
        if "key.bias" not in name:
            torch.testing.assert_close(ends[1][name], value, rtol=1e-6, atol=1e-8, msg=name)


@pytest.mark.parametrize("stage", [Stage1, Stage2])
def test_a_sigmoid_loss_trains_its_bias_which_is_no_part_of_the_model(folder: Path, stage: Any) -> None:
    model, processor = build_model(folder / "backbones")
    catalogue = Catalogue.load(folder / "catalogue", cache_dir=folder / "cache")
    trained = stage(model.float(), loss="sigmoid", micro_batch=5)
    trainer = fit(trained, MMFusionDataModule(catalogue, processor, batch_size=8), limit_val_batches=0)
    assert torch.isfinite(trainer.callback_metrics["train/loss"])
    assert trained.graded_loss.logit_bias.item() != -10.0
    assert "graded_loss.logit_bias" in trained.state_dict()
    assert not any("logit_bias" in name for name in model.state_dict())


class SaveFirstStep(L.Callback):
    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 1:
            trainer.save_checkpoint(self.path)


def test_a_run_that_goes_on_from_a_checkpoint_ends_with_the_same_bias(folder: Path, tmp_path: Path) -> None:
    catalogue = Catalogue.load(folder / "catalogue", cache_dir=folder / "cache")
    biases = []
    for checkpoint in (None, tmp_path / "one.ckpt"):
        model, processor = build_model(folder / "backbones")
        stage = Stage2(model.float(), loss="sigmoid", modality_dropout=0.0)
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        callbacks: list[L.Callback] = [SaveFirstStep(tmp_path / "one.ckpt")]
        trainer = L.Trainer(accelerator="cpu", max_steps=2, limit_val_batches=0, callbacks=callbacks, **quiet)
        data = MMFusionDataModule(catalogue, processor, batch_size=8)
        trainer.fit(stage, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        biases.append(stage.graded_loss.logit_bias.item())
    whole, resumed = biases
    saved = torch.load(tmp_path / "one.ckpt", weights_only=True)["state_dict"]["graded_loss.logit_bias"].item()
    assert resumed == pytest.approx(whole, abs=1e-6)
    assert abs(resumed - saved) > 1e-4
    # `mmfusion stage2` asks this before it resumes.
    check_fits(tmp_path / "one.ckpt", Stage2(model, loss="sigmoid").state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"loss": "hinge"}, "loss is 'hinge'; give one of contrastive, sigmoid"), ({"micro_batch": -1}, "is -1")],
)
def test_stages_refuse_a_loss_or_micro_batch_that_is_none(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Stage1(tiny_model(), **options)
