"""How a job lays out the weights of a vision encoder, and that nothing but the last digits depends on it."""

import pytest
import torch
from tiny_encoders import photos, texts, tiny_model, tiny_processor

from mmfusion.embedding.job import channels_last
from mmfusion.retrieval.fingerprint import model_fingerprint


@pytest.mark.parametrize(("vision", "moved"), [("mobilenet_v2", True), ("resnet", True), ("vit", False)])
def test_weights_of_convolutions_change_their_place_and_no_vector(vision: str, moved: bool) -> None:
    model, processor = tiny_model(vision=vision), tiny_processor()
    inputs, pixels = texts([4, 6, 3]), photos(3)
    names, before = list(model.state_dict()), {name: value.clone() for name, value in model.state_dict().items()}
    fingerprint = model_fingerprint(model, processor)
    with torch.inference_mode():
        expected = model.get_product_features(**inputs, pixel_values=pixels)
        channels_last(model)
        found = model.get_product_features(**inputs, pixel_values=pixels)
    wide = [one for one in model.vision_model.parameters() if one.ndim == 4 and min(one.shape[1:]) > 1]
    assert wide and all(one.is_contiguous() is not moved for one in wide)
    # Batch norms of tiny encoders make much of the last digits.
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert torch.cosine_similarity(found, expected).min() > 0.999999
    assert list(model.state_dict()) == names and model_fingerprint(model, processor) == fingerprint
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
