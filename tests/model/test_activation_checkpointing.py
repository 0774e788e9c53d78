"""Activation checkpointing: the same gradients with fewer activations, for every family of encoders."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from tiny_encoders import photos, texts, tiny_model
from torch import Tensor, nn

from mmfusion import MMFusionModel
from mmfusion.model.vision_encoders import blocks_of
from mmfusion.stages.gradient_cache import embed_in_micro_batches
from mmfusion.training.hardware import checkpoint_activations

# MobileNetV2, ResNet and ConvNeXt know nothing of checkpointing by themselves.
ENCODERS = [("bert", "vit"), ("modernbert", "mobilenet_v2"), ("xlm_roberta", "resnet"), ("siglip", "siglip")]
ENCODERS += [("clip", "clip"), ("bert", "convnext"), ("bert", "dinov2"), ("siglip2", "siglip2"), ("bert", "dinov3")]


class Saved:
    """Bytes that autograd keeps, parameters aside."""

    def __init__(self) -> None:
        self.storages: dict[int, int] = {}


@contextmanager
def counting(model: nn.Module) -> Iterator[Saved]:
    saved = Saved()
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept.append(tensor)
            saved.storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


def inputs() -> dict[str, Tensor]:
    queries, products = texts([3, 5, 2, 4]), texts([6, 4, 5, 3])
    named = {f"query_{name}": value for name, value in queries.items()}
    named |= {f"product_{name}": value for name, value in products.items()}
    return {**named, "pixel_values": photos(4), "photo_mask": torch.ones(4, 1, dtype=torch.bool)}


def step(model: MMFusionModel, micro_batch: int = 0) -> tuple[dict[str, Tensor], int]:
    """Gradients of a loss, by name, with dropout, and the bytes that the forward pass left behind."""
    model.zero_grad()
    torch.manual_seed(5)
    with counting(model) as saved:
        output = embed_in_micro_batches(model, inputs(), micro_batch) if micro_batch else model(**inputs())
        loss = (output.query_embeds @ output.product_embeds.T).logsumexp(1).sum()
    loss.backward()
    gradients = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    return gradients, sum(saved.storages.values())


def by_transformers(model: MMFusionModel) -> None:
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


@pytest.mark.parametrize("enable", [checkpoint_activations, by_transformers])
@pytest.mark.parametrize(("text", "vision"), ENCODERS)
def test_gradients_are_the_same_with_fewer_activations(
    text: str, vision: str, enable: Callable[[MMFusionModel], None]
) -> None:
    model = tiny_model(text, vision).train()
    names = list(model.state_dict())
    expected, before = step(model)
    assert any(name.startswith("vision_model") for name in expected)
    enable(model)
    found, after = step(model)
    assert list(model.state_dict()) == names
    assert after < 0.6 * before, f"{after} of {before} bytes"
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)
    model.gradient_checkpointing_disable()
    _, again = step(model)
    assert again == before


def test_micro_batches_run_with_it() -> None:
    model = tiny_model("bert", "resnet").train()
    expected, _ = step(model, micro_batch=3)
    checkpoint_activations(model)
    found, _ = step(model, micro_batch=3)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)


@pytest.mark.parametrize("vision", ["vit", "mobilenet_v2"])
def test_states_below_the_top_and_frozen_blocks_go_with_it(vision: str) -> None:
    model = tiny_model("bert", vision, vision_feature_layers=[1, 2], neck_hidden_size=8, neck_heads=2).train()
    model.freeze_vision(1)
    batch = inputs()
    batch["vision_activations"] = model.get_vision_activations(batch.pop("pixel_values")[:, 0]).unsqueeze(1)

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        torch.manual_seed(5)
        model(**batch).product_embeds[:, 0].sum().backward()
        return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}

    expected = gradients()
    assert any(name.startswith("vision_model") for name in expected)
    checkpoint_activations(model)
    for name, value in gradients().items():
        torch.testing.assert_close(value, expected[name], msg=name)


def test_evaluation_is_left_alone() -> None:
    model = tiny_model("bert", "resnet")
    _, before = step(model)
    checkpoint_activations(model)
    _, after = step(model)
    assert after == before


def test_batch_norm_that_gathers_statistics_is_refused() -> None:
    model = tiny_model("bert", "resnet", freeze_batch_norm=False)
    with pytest.raises(ValueError, match=r"gathers BatchNorm statistics.*freeze_batch_norm=True"):
        checkpoint_activations(model)


@pytest.mark.parametrize(("text", "vision"), ENCODERS)
def test_encoders_attend_by_sdpa(text: str, vision: str) -> None:
    model = tiny_model(text, vision)
    for encoder in model.encoders():
        if any("attention" in name.lower() for name, _ in encoder.named_modules()):
            assert encoder.config._attn_implementation == "sdpa", type(encoder).__name__
        assert blocks_of(encoder)
