"""The model as a SentenceTransformer: the same vectors, tasks and prompts, similarity, shortening, saving, refusals."""

from __future__ import annotations

import functools
import importlib.util
import io
import json
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bare_environment import build_bare_environment, run_bare
from loopback_hub.server import LoopbackHub
from PIL import Image
from tiny_encoders import tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, ViTImageProcessorPil

from mmfusion import MMFusionModel, MMFusionProcessor
from mmfusion.data.photos import decode_photo
from mmfusion.retrieval.query_tower import write_query_tower

sentence_transformers = pytest.importorskip("sentence_transformers", minversion="6")
SentenceTransformer = sentence_transformers.SentenceTransformer

CHECKOUT = Path(__file__).resolve().parents[2]
CODE = CHECKOUT / "mmfusion" / "model" / "sentence_transformers_mmfusion.py"

# Each is a model whose vectors a careless adapter would get wrong, with the fields of its processor.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({"fusion": "cross_attention", "matryoshka_dims": [8]}, {}),
    "routed": ({"fusion": "gated", "query_router": True, "matryoshka_dims": [8]}, {}),
    "prompts": (
        {"fusion": "concat", "share_text_encoder": False},
        {"query_prompt": "query: ", "product_prompt": "passage: ", "product_template": "{title} - {brand}"},
    ),
}

QUERIES = ["red dress", "shoe", "acme red shoe dress acme", "  red   acme "]


def _processor(**fields: Any) -> MMFusionProcessor:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "dress", "shoe", "query", "passage", ":", "acme", "-", "find"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=40, **special)
    return MMFusionProcessor(ViTImageProcessorPil(size={"height": 32, "width": 32}), fast, **fields)


def _photo(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 24, 3), dtype=np.uint8))


def _products() -> list[dict[str, Any]]:
    """Products as the processor takes them: with and without text, and with no photo, one and two."""
    texts = ["red dress", "", "shoe acme", "dress shoe red acme acme", "acme", "red"]
    photos: list[Any] = [_photo(1), _photo(2), None, [_photo(3), _photo(4)], None, _photo(5)]
    return [{"title": text, "brand": "acme", "image": own} for text, own in zip(texts, photos, strict=True)]


@pytest.fixture(scope="module", autouse=True)
def code_of_models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Code that comes with weights is copied below the test's folder, and its modules are forgotten afterwards."""
    path = list(sys.path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield
    sys.path[:] = path
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders of the variants, written once."""
    made: dict[str, Path] = {}

    def folder(variant: str) -> Path:
        if variant not in made:
            made[variant] = _write(tmp_path_factory.mktemp(variant), *VARIANTS[variant])
        return made[variant]

    return folder


def _write(folder: Path, config: dict[str, Any], fields: dict[str, Any]) -> Path:
    model = tiny_model(**config, **fields)
    if model.query_router is not None:
        # A new router weighs all views alike, whatever the query.
        torch.nn.init.normal_(model.query_router.logits.weight, std=2.0)
    model.save_pretrained(folder)
    _processor(**fields).save_pretrained(folder)
    return folder


def _load(folder: Path, **arguments: Any) -> Any:
    return SentenceTransformer(str(folder), trust_remote_code=True, device="cpu", **arguments)


@functools.cache
def _original(folder: Path) -> tuple[MMFusionModel, MMFusionProcessor]:
    return MMFusionModel.from_pretrained(folder), MMFusionProcessor.from_pretrained(folder)


@torch.no_grad()
def _query_vectors(folder: Path, queries: Sequence[str], **options: Any) -> np.ndarray:
    model, processor = _original(folder)
    return model.get_query_features(**processor(queries=queries), **options).numpy()


@torch.no_grad()
def _product_vectors(folder: Path, products: Sequence[dict[str, Any]], **options: Any) -> np.ndarray:
    model, processor = _original(folder)
    return model.get_product_features(**processor(products=products), **options).numpy()


def _assert_same(found: np.ndarray, wanted: np.ndarray) -> None:
    assert found.dtype == np.float32 and found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


# --- The same vectors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_queries_and_products_get_the_vectors_of_the_model(variant: str, folder_of: Callable[[str], Path]) -> None:
    folder, products = folder_of(variant), _products()
    queries, indexed = _query_vectors(folder, QUERIES), _product_vectors(folder, products)
    model = _load(folder)
    for batch_size in (1, 2, 4, 32):
        _assert_same(model.encode_query(QUERIES, batch_size=batch_size), queries)
        _assert_same(model.encode_document(products, batch_size=batch_size), indexed)
    assert np.abs(queries[0] - queries[1]).max() > 0.01 and np.abs(indexed[0] - indexed[2]).max() > 0.01
    assert model.get_embedding_dimension() == queries.shape[1] == indexed.shape[1]
    views = 3 if variant == "routed" else 1
    np.testing.assert_allclose(np.linalg.norm(indexed.reshape(len(indexed), views, -1), axis=2), 1, atol=1e-5)
    if views == 1:
        np.testing.assert_allclose(np.linalg.norm(queries, axis=1), 1, atol=1e-5)


def test_a_product_may_be_a_text_a_photo_or_both(folder_of: Callable[[str], Path]) -> None:
    folder, photo = folder_of("plain"), _photo(7)
    model = _load(folder)
    wanted = _product_vectors(
        folder,
        [
            {"title": "red dress", "image": None},
            {"title": None, "image": photo},
            {"title": "red dress", "image": photo},
            {"title": "red dress", "image": [photo, _photo(8)]},
        ],
    )
    inputs = [
        "red dress",
        photo,
        {"text": "red dress", "image": photo},
        {"text": "red dress", "image": [photo, _photo(8)]},
    ]
    _assert_same(model.encode_document(inputs), wanted)
    for row, item in enumerate(inputs):
        _assert_same(model.encode_document(item), wanted[row])
    for row, item in enumerate([{"text": "red dress"}, {"image": photo}, {"title": "red dress", "image": photo}]):
        _assert_same(model.encode_document(item), wanted[row])
    _assert_same(
        model.encode_document([{"text": None, "image": photo}, {"text": "", "image": [photo]}]), wanted[[1, 1]]
    )
    assert np.abs(wanted[0] - wanted[2]).max() > 1e-3, "the photo must count"
    assert all(model.supports(kind) for kind in ("text", "image", ("image", "text"))) and not model.supports("audio")


def test_a_text_for_a_template_of_several_columns_is_the_rendered_text(folder_of: Callable[[str], Path]) -> None:
    folder = folder_of("prompts")
    wanted = _product_vectors(folder, [{"title": "red  dress", "brand": "acme", "image": None}])
    model = _load(folder)
    _assert_same(model.encode_document(["red dress - acme"]), wanted)
    _assert_same(model.encode_document([{"text": "red dress -  acme"}]), wanted)
    _assert_same(model.encode_document([{"title": "red dress", "brand": "acme"}]), wanted)


# --- Tasks and prompts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["routed", "prompts"])
def test_plain_encode_embeds_products_unless_it_is_told_otherwise(
    variant: str, folder_of: Callable[[str], Path]
) -> None:
    model = _load(folder_of(variant))
    query, product = model.encode_query(QUERIES), model.encode_document(QUERIES)
    assert np.abs(query - product).max() > 1e-3
    for found in (model.encode(QUERIES), model.encode(QUERIES, task="document")):
        _assert_same(found, product)
    _assert_same(model.encode(QUERIES, prompt_name="document"), product)
    _assert_same(model.encode(QUERIES, prompt_name="query"), query)
    _assert_same(model.encode(QUERIES, task="query"), query)
    model.default_prompt_name = "query"
    _assert_same(model.encode(QUERIES), query)


def test_prompts_are_shown_once_applied_and_replaced(folder_of: Callable[[str], Path]) -> None:
    folder = folder_of("prompts")
    model = _load(folder)
    assert model.prompts == {"query": "query: ", "document": "passage: "}
    _assert_same(model.encode(["red"], prompt="query: "), _query_vectors(folder, ["red"]))
    other = _processor(**{**VARIANTS["prompts"][1], "query_prompt": "find: "})
    with torch.no_grad():
        wanted = _original(folder)[0].get_query_features(**other(queries=["red"])).numpy()
    assert np.abs(wanted - _query_vectors(folder, ["red"])).max() > 1e-3
    _assert_same(model.encode_query(["red"], prompt="find: "), wanted)
    _assert_same(_load(folder, prompts={"query": "find: "}).encode_query(["red"]), wanted)
    _assert_same(model.encode_query(["red"]), _query_vectors(folder, ["red"]))


def test_a_model_put_together_by_hand_is_the_same(folder_of: Callable[[str], Path]) -> None:
    from mmfusion.model.sentence_transformers_mmfusion import MMFusionTowers

    for variant, similarity in (("prompts", "cosine"), ("routed", "dot")):
        folder = folder_of(variant)
        model = SentenceTransformer(modules=[MMFusionTowers.load(str(folder))], device="cpu")
        assert model.similarity_fn_name == similarity
        _assert_same(model.encode_query(QUERIES), _query_vectors(folder, QUERIES))
        _assert_same(model.encode_document(_products()), _product_vectors(folder, _products()))


# --- Similarity and shortening -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("variant", "similarity"), [("plain", "cosine"), ("routed", "dot")])
def test_similarity_is_the_score_of_the_model(variant: str, similarity: str, folder_of: Callable[[str], Path]) -> None:
    folder = folder_of(variant)
    model = _load(folder)
    assert model.similarity_fn_name == similarity
    found = model.similarity(model.encode_query(QUERIES), model.encode_document(_products()))
    _assert_same(found.numpy(), _query_vectors(folder, QUERIES) @ _product_vectors(folder, _products()).T)


def test_truncate_dim_shortens_as_the_model_does(folder_of: Callable[[str], Path]) -> None:
    folder, products = folder_of("plain"), _products()
    queries = _query_vectors(folder, QUERIES, truncate_dim=8)
    indexed = _product_vectors(folder, products, truncate_dim=8)
    model = _load(folder)
    _assert_same(model.encode_query(QUERIES, truncate_dim=8), queries)
    _assert_same(model.encode_document(products, truncate_dim=8, batch_size=4), indexed)
    _assert_same(model.encode_query(QUERIES, view_dim=8), queries)
    with pytest.raises(ValueError, match="truncate_dim is 0; give 1 to 24"):
        model.encode_query(QUERIES, truncate_dim=0)
    with model.truncate_embeddings(8):
        _assert_same(model.encode_query(QUERIES), queries)
    short = _load(folder, truncate_dim=8)
    assert short.get_embedding_dimension() == 8
    _assert_same(short.encode_document(products), indexed)
    _assert_same(short.encode_document(products, normalize_embeddings=True), indexed)


def test_views_of_a_routed_model_are_not_cut_apart(folder_of: Callable[[str], Path]) -> None:
    folder, products = folder_of("routed"), _products()
    model = _load(folder)
    refusal = r"truncate_dim is 8, .* query router: .* 24 components side by side, 72 in all.*view_dim.*trained: 8"
    with pytest.raises(ValueError, match=refusal):
        model.encode_query(QUERIES, truncate_dim=8)
    with pytest.raises(ValueError, match=refusal), model.truncate_embeddings(8):
        model.encode_document(products)
    with pytest.raises(ValueError, match=refusal):
        _load(folder, truncate_dim=8)
    _assert_same(model.encode_query(QUERIES, truncate_dim=72), _query_vectors(folder, QUERIES))
    _assert_same(model.encode_query(QUERIES, view_dim=8), _query_vectors(folder, QUERIES, truncate_dim=8))
    _assert_same(model.encode_document(products, view_dim=8), _product_vectors(folder, products, truncate_dim=8))


# --- Saving, other environments, training --------------------------------------------------------------------------

BARE = """
import copy, pickle, sys, numpy as np
from pathlib import Path
from PIL import Image
from sentence_transformers import SentenceTransformer
from transformers import AutoModel

name, out = sys.argv[1], Path(sys.argv[2])
product = {"text": "red dress", "image": Image.open(out / "photo.png")}
def load(source, **arguments):
    return SentenceTransformer(source, trust_remote_code=True, device="cpu", **arguments)
def note(step, model, **options):
    vectors = {"query": model.encode_query(["red acme"], **options)}
    if not options:
        vectors["product"] = model.encode_document([product])
    np.savez(out / f"{step}.npz", **vectors)

first = load(name, revision="main")
note("loaded", first)
note("copied", copy.deepcopy(first))
# Loading it by another way must not put new classes in the place of those of the first.
AutoModel.from_pretrained(name, trust_remote_code=True)
model = load(name)
assert type(model[0].model) is type(first[0].model)
for one in (first, first[0].model, first[0].model.config, first[0].processor, model):
    pickle.loads(pickle.dumps(one))
note("pickled", pickle.loads(pickle.dumps(first)))
pool = first.start_multi_process_pool(["cpu"])
note("pooled", first, pool=pool)
first.stop_multi_process_pool(pool)
first.save_pretrained(str(out / "saved"))
first.push_to_hub(name + "-pushed")
note("again", load(str(out / "saved"), local_files_only=True))
note("pushed", load(name + "-pushed"))
assert "mmfusion" not in sys.modules
"""


def test_where_mmfusion_is_not_installed_it_loads_by_name_pickles_and_loads_again_after_saving(
    folder_of: Callable[[str], Path], hub: LoopbackHub, tmp_path: Path
) -> None:
    folder, name, photo = folder_of("routed"), hub.unique(), _photo(9)
    hub.create_repo(name, {path.name: path.read_bytes() for path in folder.iterdir()}, private=True)
    photo.save(tmp_path / "photo.png")
    python = build_bare_environment(tmp_path / "bare")
    said = run_bare(python, BARE, name, str(tmp_path), environment=hub.environment(tmp_path / "home"), cwd=tmp_path)
    assert "custom code" not in said, "the caller has said so, and is not to be asked again"
    for step in ("loaded", "copied", "pickled", "pooled", "again", "pushed"):
        found = np.load(tmp_path / f"{step}.npz")
        _assert_same(found["query"], _query_vectors(folder, ["red acme"]))
        if step != "pooled":
            _assert_same(found["product"], _product_vectors(folder, [{"title": "red dress", "image": photo}]))
    saved = tmp_path / "saved"
    entry = json.loads((saved / "modules.json").read_text("utf-8"))
    assert [module["type"] for module in entry] == ["sentence_transformers_mmfusion.MMFusionTowers"]
    code = json.loads((saved / "config.json").read_text("utf-8"))["auto_map"]
    assert code["AutoModel"] == "modeling_mmfusion.MMFusionModel", (
        "it is to name the file next to it, not the repository"
    )
    _assert_same(_query_vectors(saved, QUERIES), _query_vectors(folder, QUERIES))


def test_saving_again_keeps_the_settings_and_the_card(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    folder = folder_of("prompts")
    (folder / "README.md").write_text("# A card\n", "utf-8")
    model = _load(folder)
    model.max_seq_length = 16
    model.save_pretrained(str(tmp_path))
    again = _load(tmp_path)
    assert (tmp_path / "README.md").read_text("utf-8") == "# A card\n"
    assert again.prompts == model.prompts and again.similarity_fn_name == "cosine" and again.max_seq_length == 16
    _assert_same(again.encode_document(_products()), model.encode_document(_products()))
    assert not list(tmp_path.rglob("*.bin"))
    with pytest.raises(ValueError, match="safetensors only"):
        model.save_pretrained(str(tmp_path / "unsafe"), safe_serialization=False)


def test_what_a_trainer_sets_on_the_config_is_not_saved(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    model = _load(folder_of("prompts"))
    for name, value in {
        "use_cache": False,
        "pad_token_id": 3,
        "gradient_checkpointing": True,
        "of_some_tool": 1,
    }.items():
        setattr(model.config, name, value)
    model.save_pretrained(str(tmp_path))
    for saved in (_load(tmp_path).config, MMFusionModel.from_pretrained(tmp_path).config):
        assert not hasattr(saved, "use_cache") and not hasattr(saved, "of_some_tool")
    _assert_same(_load(tmp_path).encode_query(QUERIES), model.encode_query(QUERIES))


COLOURS = ["red", "dress", "shoe", "acme"]


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_trained_model_and_its_checkpoints_load_again(
    by_hand: bool, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    pytest.importorskip("accelerate")
    from datasets import Dataset, Features, Value
    from datasets import Image as Photos
    from sentence_transformers.sentence_transformer.losses import (
        CachedMultipleNegativesRankingLoss,
        MultipleNegativesRankingLoss,
    )

    from mmfusion.model.sentence_transformers_mmfusion import MMFusionTowers

    def new_model() -> Any:
        folder = folder_of("plain")
        towers = [MMFusionTowers.load(str(folder))] if by_hand else None
        return SentenceTransformer(modules=towers, device="cpu") if towers else _load(folder)

    products = [{"text": word, "image": _photo(seed)} for seed, word in enumerate(COLOURS)]
    features = Features({"query": Value("string"), "product": {"text": Value("string"), "image": Photos()}})
    pairs = Dataset.from_dict({"query": COLOURS * 2, "product": products * 2}, features=features)
    arguments = sentence_transformers.SentenceTransformerTrainingArguments(
        str(tmp_path / "run"),
        router_mapping={"query": "query", "product": "document"},
        **{"max_steps": 2, "save_steps": 1, "per_device_train_batch_size": 4, "learning_rate": 0.01},
        **{"report_to": [], "use_cpu": True, "disable_tqdm": True, "logging_strategy": "no", "bf16": by_hand},
    )

    def trainer(model: Any) -> Any:
        loss = CachedMultipleNegativesRankingLoss(model, mini_batch_size=2) if by_hand else None
        return sentence_transformers.SentenceTransformerTrainer(
            model=model, args=arguments, train_dataset=pairs, loss=loss or MultipleNegativesRankingLoss(model)
        )

    model = new_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer(model).train()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {"0.model.query_projection.weight", "0.model.image_projection.weight"} <= moved
    model.save_pretrained(str(tmp_path / "final"))
    for folder in (tmp_path / "final", tmp_path / "run" / "checkpoint-2"):
        again = _load(folder)
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())
        if not by_hand:
            # In half precision accelerate leaves its own forward on the model that was trained.
            assert np.array_equal(again.encode_query(QUERIES), model.encode_query(QUERIES))
            assert np.array_equal(again.encode_document(_products()), model.encode_document(_products()))
        assert np.array_equal(again.encode_query(["red"]), _query_vectors(folder, ["red"]))
    shutil.rmtree(tmp_path / "run" / "checkpoint-2")
    resumed = new_model()
    trainer(resumed).train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in resumed.state_dict().items())


def test_training_without_a_task_says_that_the_query_tower_learns_nothing(folder_of: Callable[[str], Path]) -> None:
    model = _load(folder_of("plain"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.preprocess(QUERIES)
        model.train().preprocess(QUERIES, task="query")
        model.preprocess(QUERIES, task="document")
    with pytest.warns(UserWarning, match=r"product tower alone.*router_mapping=\{'COLUMN': 'query'"):
        model.preprocess(QUERIES)


def test_the_longest_text_of_a_training_is_the_one_asked_for(folder_of: Callable[[str], Path]) -> None:
    model = _load(folder_of("plain"))
    for task in ("query", "document"):
        assert model.preprocess([QUERIES[2]], task=task)["input_ids"].shape == (1, 7)
        assert model.preprocess([QUERIES[2]], task=task, max_length=4)["input_ids"].shape == (1, 4)


def test_gradients_reach_both_towers(folder_of: Callable[[str], Path]) -> None:
    model = _load(folder_of("plain")).train()
    for task, inputs in (("query", QUERIES), ("document", _products())):
        model.zero_grad()
        model(model.preprocess(inputs, task=task))["sentence_embedding"].sum().backward()
        towers = model.transformers_model
        grads = towers.query_projection.weight.grad, towers.image_projection.weight.grad
        assert [grad is not None for grad in grads] == [task == "query", task == "document"]


def test_the_query_tower_alone_encodes_queries(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    folder = folder_of("routed")
    whole, processor = _original(folder)
    write_query_tower(whole, processor, tmp_path)
    model = _load(tmp_path)
    assert model.modalities == ["text"] and model.similarity_fn_name == "dot"
    _assert_same(model.encode_query(QUERIES), _query_vectors(folder, QUERIES))
    _assert_same(model.encode(QUERIES), _query_vectors(folder, QUERIES))
    for product in ("red dress", {"title": "red dress", "image": _photo(1)}):
        with pytest.raises(ValueError, match="query tower alone"):
            model.encode_document([product])
    with pytest.raises(ValueError, match="'image' is not supported"):
        model.encode_document([_photo(1)])


def test_a_photo_has_the_vector_of_its_file(folder_of: Callable[[str], Path]) -> None:
    model = _load(folder_of("plain"))
    turned = Image.Exif()
    turned[0x0112] = 6
    phone, cut_out = _photo(1), Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    phone.paste((0, 0, 0), (0, 0, phone.width, phone.height // 3))
    for photo, kind, options in ((phone, "JPEG", {"exif": turned}), (cut_out, "PNG", {})):
        file = io.BytesIO()
        photo.save(file, kind, **options)
        opened, decoded = Image.open(io.BytesIO(file.getvalue())), decode_photo(file.getvalue())
        expected = model.encode_document([{"text": "dress", "image": decoded}])
        _assert_same(model.encode_document([{"text": "dress", "image": opened}]), expected)
        _assert_same(model.encode_document([opened]), model.encode_document([decoded]))
        as_stored = model.encode_document([{"text": "dress", "image": photo.convert("RGB")}])
        assert abs(as_stored - expected).max() > 1e-3


# --- Refusals ------------------------------------------------------------------------------------------------------


def test_inputs_of_another_kind_are_refused(folder_of: Callable[[str], Path]) -> None:
    model = _load(folder_of("plain"))
    for item, reason in (
        ("https://example.com/dress.jpg", r"address of a photo.*opens no files and no URLs.*Image\.open"),
        ("data:image/png;base64,AAAA", "address of a photo"),
        ({"text": "dress", "image": "dress.jpg"}, "photo of product 0 is the text 'dress.jpg'; the processor opens"),
        (Image.new("F", (8, 8)), r"photo of product 0 \(F, 8x8\) cannot be used: floating-point"),
        (np.zeros((8, 8, 3), np.uint8), "A product is a ndarray"),
        ({"text": {"en": "dress"}}, "text of a product is a struct"),
        ({"text": "dress", "title": "dress"}, "either the text, under 'text', or the columns"),
        ({"name": "dress"}, "names the column 'title'"),
        ({"role": "user", "content": "dress"}, "A product is a list"),
    ):
        with pytest.raises(ValueError, match=reason):
            model.encode_document([item])
    for item, reason in (
        (_photo(1), "A query is a .*Image.*; the query tower reads strings only"),
        ({"text": "dress", "image": _photo(1)}, "A query is a dict"),
        ("  ", "Query 0 is '  '"),
    ):
        with pytest.raises(ValueError, match=reason):
            model.encode_query([item])
    _assert_same(model.encode_query([{"text": "red"}]), model.encode_query(["red"]))
    assert model.encode_query(["https://example.com/dress.jpg", "red"]).shape == (2, 24), "a shopper may type anything"
    with pytest.raises(ValueError, match="task is 'classification'; give 'query' for queries"):
        model.encode(["dress"], task="classification")
    with pytest.raises(ValueError, match=r"processor takes none.*max_seq_length"):
        model.encode(["dress"], processing_kwargs={"text": {"max_length": 4}})
    with pytest.raises(ValueError, match=r"no 'token_embeddings'; the vectors .* 'sentence_embedding'"):
        model.encode(["dress"], output_value="token_embeddings")
    with pytest.raises(ValueError, match="backend='torch' only"):
        _load(folder_of("plain"), backend="onnx")


def test_remote_code_needs_the_callers_word(folder_of: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        SentenceTransformer(str(folder_of("plain")), device="cpu")


def test_an_older_sentence_transformers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers.base.modules", None)
    spec = importlib.util.spec_from_file_location("mmfusion.model.once_more", CODE)
    assert spec is not None and spec.loader is not None
    with pytest.raises(ImportError, match=r"sentence-transformers 6 or newer.*pip install -U"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


# --- The files -----------------------------------------------------------------------------------------------------


def test_the_files_name_the_module_and_are_the_same_twice(tmp_path: Path) -> None:
    folder = _write(tmp_path, *VARIANTS["routed"])
    MMFusionModel.from_pretrained(folder).save_pretrained(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    MMFusionModel.from_pretrained(folder).save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert {"modules.json", "config_sentence_transformers.json", CODE.name, "modeling_mmfusion.py"} <= set(before)
    settings = json.loads((folder / "config_sentence_transformers.json").read_text("utf-8"))
    assert settings["similarity_fn_name"] == "dot" and settings["prompts"] == {"query": "", "document": ""}


def test_nothing_else_imports_sentence_transformers() -> None:
    statement = re.compile(r"^\s*(?:from|import)\s+sentence_transformers\b", re.MULTILINE)
    importers = {path for path in (CHECKOUT / "mmfusion").rglob("*.py") if statement.search(path.read_text("utf-8"))}
    assert importers == {CODE}
