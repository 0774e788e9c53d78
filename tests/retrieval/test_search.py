"""Query encoders, and search by text with them."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from published_model import embed_queries, products, write_model_folder
from tiny_encoders import VISION_ENCODERS, tiny_model

from mmfusion import MMFusionModel, MMFusionProcessor, ProductIndex
from mmfusion.retrieval import QueryEncoder, Searcher
from mmfusion.retrieval.fingerprint import model_fingerprint
from mmfusion.retrieval.query_tower import load_query_tower, query_tower
from mmfusion.retriever import Retriever

Loaded = tuple[MMFusionModel, MMFusionProcessor]


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "routed"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = tmp_path_factory.mktemp("model") / "model"
    write_model_folder(folder, query_router=request.param, matryoshka_dims=[16])
    return MMFusionModel.from_pretrained(folder).eval(), MMFusionProcessor.from_pretrained(folder)


def index_of(loaded: Loaded, truncate_dim: int | None = None) -> ProductIndex:
    model, processor = loaded
    with torch.inference_mode():
        embeds = model.get_product_features(**processor(products=products()), truncate_dim=truncate_dim)
    return ProductIndex.build(embeds, ["dress", "mug", "photo"], model_fingerprint=model_fingerprint(model, processor))


def test_the_torch_encoder_gives_the_vectors_of_the_model(loaded: Loaded) -> None:
    encoder: QueryEncoder = Retriever(*loaded)
    vectors = encoder.encode_queries(["red dress", "blue mug"])
    np.testing.assert_array_equal(vectors, embed_queries(*loaded).numpy())
    assert vectors.dtype == np.float32 and vectors.shape[1] == encoder.dimension
    assert encoder.fingerprint == model_fingerprint(*loaded)


@pytest.mark.parametrize("truncate_dim", [None, 16])
def test_hits_are_those_of_vectors_of_the_width_of_the_index(loaded: Loaded, truncate_dim: int | None) -> None:
    model, processor = loaded
    index = index_of(loaded, truncate_dim)
    searcher = Searcher(Retriever(*loaded), index)
    with torch.inference_mode():
        expected = model.get_query_features(**processor(queries=["red dress", "mug"]), truncate_dim=truncate_dim)
    np.testing.assert_allclose(searcher.embed(["red dress", "mug"]), expected.numpy(), atol=1e-6)
    assert [hit.product_id for hit in searcher.search("red dress")] == [
        hit.product_id for hit in index.search(expected[:1], 10)[0]
    ]
    assert [len(hits) for hits in searcher.search(["red dress", "mug"], k=2)] == [2, 2]


def test_an_index_in_milvus_is_searched_by_text_as_one_with_faiss(loaded: Loaded, tmp_path: Path) -> None:
    pytest.importorskip("milvus_lite")
    index = index_of(loaded)
    with index.to("milvus", uri=tmp_path / "index.db") as milvus:
        mine, theirs = (Searcher(Retriever(*loaded), one).search("red dress", 3) for one in (milvus, index))
        assert [hit.product_id for hit in mine] == [hit.product_id for hit in theirs]
        assert [hit.score for hit in mine] == pytest.approx([hit.score for hit in theirs], abs=1e-5)
        other = MMFusionModel.from_pretrained(loaded[0].config._name_or_path)
        other.logit_scale.data += 1
        with pytest.raises(ValueError, match=r"collection 'products' at .* was built with model"):
            Searcher(Retriever(other, loaded[1]), milvus)


def test_no_query_finds_nothing_and_a_blank_one_is_refused(loaded: Loaded) -> None:
    searcher = Searcher(Retriever(*loaded), index_of(loaded))
    assert searcher.search([]) == []
    with pytest.raises(ValueError, match="Query 1 is ' '; a query is a text with at least one visible character"):
        searcher.search(["red dress", " "])


def test_the_query_tower_alone_serves_the_index_of_the_whole_model_and_another_model_does_not(
    loaded: Loaded, tmp_path: Path
) -> None:
    model, processor = loaded
    index = index_of(loaded)
    tower = query_tower(model)
    tower.config.query_tower_of = model_fingerprint(model, processor)
    whole, alone = (Searcher(Retriever(one, processor), index) for one in (model, tower))
    assert alone.search("red dress") == whole.search("red dress")
    other = MMFusionModel.from_pretrained(write_model_folder(tmp_path / "other", seed=1))
    with pytest.raises(ValueError, match="load the index's model"):
        Searcher(Retriever(other, processor), index)


def test_an_index_that_the_vectors_do_not_fit_is_refused(loaded: Loaded) -> None:
    encoder = Retriever(*loaded)
    wide = np.eye(3, encoder.dimension + 1, dtype=np.float32)
    index = ProductIndex.build(wide, ["a", "b", "c"], model_fingerprint=encoder.fingerprint)
    with pytest.raises(ValueError, match=f"dimension {encoder.dimension + 1}, which query vectors"):
        Searcher(encoder, index)


def test_threads_get_their_own_vectors(loaded: Loaded) -> None:
    encoder = Retriever(*loaded)
    batches = [[f"red dress {number}"] * (1 + number % 3) + ["mug " * (1 + number)] for number in range(24)]
    expected = [encoder.encode_queries(texts) for texts in batches]
    with ThreadPoolExecutor(8) as pool:
        for one, other in zip(pool.map(encoder.encode_queries, batches), expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("vision", sorted(VISION_ENCODERS))
def test_the_tower_of_a_folder_has_the_name_of_the_model_whatever_its_vision_encoder(
    vision: str, loaded: Loaded, tmp_path: Path
) -> None:
    # transformers saves ViT and DINO under other names than they have in memory, by which the fingerprint goes.
    processor = loaded[1]
    tiny_model("bert", vision).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    tower, its_processor = load_query_tower(tmp_path)
    whole = MMFusionModel.from_pretrained(tmp_path)
    assert model_fingerprint(tower, its_processor) == model_fingerprint(whole, processor)
    assert tower.vision_model is None
