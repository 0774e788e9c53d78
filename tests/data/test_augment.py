"""Views of photos for training: deterministic, of the same colours, cached or not, and never in validation."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_sampler import sampler
from training_runs import assert_same_ends, fit
from two_ranks import build_model

from mmfusion.data.catalogue import Catalogue
from mmfusion.data.datamodule import MMFusionDataModule
from mmfusion.data.photos import cropped_photo
from mmfusion.data.tables import ProductTable
from mmfusion.data.toy_catalogue import write_toy_catalogue
from mmfusion.stages import Stage2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_catalogue(tmp_path_factory.mktemp("views") / "catalogue", num_products=60)


@pytest.fixture(scope="module")
def catalogue(folder: Path) -> Catalogue:
    return Catalogue.load(folder, cache_dir=folder.parent / "cache")


@pytest.fixture
def tower(folder: Path) -> Any:
    return build_model(folder.parent / "backbones")


def numbered(width: int = 40, height: int = 30) -> Image.Image:
    """Every pixel has a colour of its own: its place."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([rows, columns, rows * 0], axis=-1).astype(np.uint8))


def test_view_0_is_the_photo_and_the_others_are_crops_of_it_that_repeat() -> None:
    photo = numbered()
    assert cropped_photo(photo, "p1", 0) is photo
    views = [np.asarray(cropped_photo(photo, "p1", view)).astype(int) for view in range(1, 30)]
    mirrored = 0
    for number, pixels in enumerate(views, 1):
        height, width = pixels.shape[:2]
        assert 0.7 * 30 <= height <= 29 and 0.7 * 40 <= width <= 38
        # A crop is a rectangle of the original: places go up one by one, columns down where it is mirrored.
        assert (np.diff(pixels[:, :, 0], axis=0) == 1).all()
        steps = np.unique(np.diff(pixels[:, :, 1], axis=1))
        assert len(steps) == 1 and abs(steps[0]) == 1
        mirrored += int(steps[0] < 0)
        assert (pixels == np.asarray(cropped_photo(photo, "p1", number))).all()
    assert 5 < mirrored < 24
    assert len({pixels.tobytes() for pixels in views}) == len(views)
    assert (np.asarray(cropped_photo(photo, "p2", 1)).tobytes()) != views[0].astype(np.uint8).tobytes()


def test_a_photo_of_one_pixel_has_views() -> None:
    assert cropped_photo(Image.new("RGB", (1, 1), "red"), "p", 3).size == (1, 1)


def test_views_are_drawn_by_batch_alike_on_all_ranks_and_after_a_resume() -> None:
    whole = [pair.crop for epoch in range(20) for pair in at(epoch, sampler(batch_size=8, photo_views=3))]
    assert set(whole) == {0, 1, 2}
    for rank in (0, 1):
        part = sampler(batch_size=4, num_replicas=2, rank=rank, photo_views=3)
        assert [pair.crop for epoch in range(20) for pair in at(epoch, part)] == whole
    resumed = sampler(batch_size=8, photo_views=3)
    resumed.start_batch = 3
    assert [pair.crop for pair in resumed] == whole[3:5]
    assert {pair.crop for pair in sampler()} == {0}
    with pytest.raises(ValueError, match="photo_views is 0"):
        sampler(photo_views=0)


def at(epoch: int, batches: Any) -> list[Any]:
    batches.set_epoch(epoch)
    return list(batches)


def test_products_show_the_view_that_is_asked_for(tower: Any, catalogue: Catalogue) -> None:
    table = ProductTable(catalogue, tower[1])
    rows = np.flatnonzero([image is not None for image in catalogue.products["image"]])[:4]
    plain, other = table[rows], table.batch(rows, 1)
    assert torch.equal(plain["pixel_values"], table.batch(rows, 0)["pixel_values"])
    assert not torch.equal(plain["pixel_values"], other["pixel_values"])
    assert torch.equal(plain["product_input_ids"], other["product_input_ids"])


def test_training_on_cached_views_equals_training_on_photos(folder: Path, catalogue: Catalogue, tmp_path: Path) -> None:
    ends = []
    for views, cached in ((3, False), (3, True), (1, False)):
        model, processor = build_model(folder.parent / "backbones")
        model.float().freeze_vision(1)
        data = MMFusionDataModule(catalogue, processor, batch_size=8, photo_views=views, seed=2)
        if cached:
            data.cache_vision(model, tmp_path)
        fit(Stage2(model, modality_dropout=0.0), data)
        ends.append({name: value.clone() for name, value in model.state_dict().items()})
    assert_same_ends(ends[0], ends[1])
    assert any(not torch.allclose(value, ends[2][name], atol=1e-5) for name, value in ends[0].items())
    assert {path.name for path in tmp_path.iterdir()} == {"train", "train_view1", "train_view2", "val"}
