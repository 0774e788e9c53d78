"""How a job has a CPU compute its encoders, and that nothing but the last digits depends on it."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from tiny_encoders import photos, texts, tiny_model, tiny_processor
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmfusion.embedding.layout import laid_out_for_cpu
from mmfusion.retrieval.fingerprint import model_fingerprint


@pytest.mark.parametrize(("vision", "moved"), [("mobilenet_v2", True), ("resnet", True), ("vit", False)])
def test_weights_of_convolutions_change_their_place_and_no_vector(vision: str, moved: bool) -> None:
    model, processor = tiny_model(vision=vision), tiny_processor()
    inputs, pixels = texts([4, 6, 3]), photos(3)
    names, before = list(model.state_dict()), {name: value.clone() for name, value in model.state_dict().items()}
    fingerprint = model_fingerprint(model, processor)
    with torch.inference_mode():
        expected = model.get_product_features(**inputs, pixel_values=pixels)
        with laid_out_for_cpu(model):
            found = model.get_product_features(**inputs, pixel_values=pixels)
    wide = [one for one in model.vision_model.parameters() if one.ndim == 4 and min(one.shape[1:]) > 1]
    assert wide and all(one.is_contiguous() is not moved for one in wide)
    # Batch norms of tiny encoders make much of the last digits.
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert torch.cosine_similarity(found, expected).min() > 0.999999
    assert list(model.state_dict()) == names and model_fingerprint(model, processor) == fingerprint
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_linear_layers_are_computed_by_onednn_without_gradients_or_autocast() -> None:
    model, calls = tiny_model(vision="vit"), Calls()
    untouched = deepcopy(model)
    inputs, pixels = texts([4, 6, 3]), photos(3)
    layers = [
        one for part in (model.text_model, model.vision_model) for one in part.modules() if type(one) is nn.Linear
    ]
    with laid_out_for_cpu(model):
        with torch.inference_mode(), calls:
            found = model.get_product_features(**inputs, pixel_values=pixels)
        assert calls.names.count("mkldnn._linear_pointwise.default") == len(layers)
        with calls:
            with_gradients = model.get_product_features(**inputs, pixel_values=pixels)
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                model.get_product_features(**inputs, pixel_values=pixels)
    with torch.inference_mode(), calls:
        after = model.get_product_features(**inputs, pixel_values=pixels)
    assert calls.names.count("mkldnn._linear_pointwise.default") == len(layers)
    torch.testing.assert_close(found, after, atol=1e-6, rtol=0)
    assert torch.equal(after, untouched.get_product_features(**inputs, pixel_values=pixels))
    for outcome in (with_gradients, untouched.get_product_features(**inputs, pixel_values=pixels)):
        outcome[:, 0].sum().backward()
    expected = {name: one.grad for name, one in untouched.named_parameters() if one.grad is not None}
    assert len(expected) > len(layers)
    torch.testing.assert_close({name: model.get_parameter(name).grad for name in expected}, expected)


class Calls(TorchDispatchMode):
    """Notes the names of operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))
