"""The query tower in ONNX: the vectors of PyTorch for every family of encoders, and refusals."""

from __future__ import annotations

import importlib
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import sentencepiece
import torch
from commands import command
from processes import run_to_end
from published_model import products, write_model_folder
from starlette.testclient import TestClient
from tiny_encoders import TEXT_ENCODERS, VOCABULARY, tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, SiglipImageProcessorPil, SiglipTokenizer

from mmfusion import MMFusionModel, MMFusionProcessor, ProductIndex
from mmfusion.extras import MissingLibraryError
from mmfusion.files import sha256_of
from mmfusion.model.processing_mmfusion import clean
from mmfusion.onnx import OnnxError, OnnxQueryTower, export, export_query_tower
from mmfusion.onnx.query_tower import tokenize
from mmfusion.onnx.tokens import query_tokenizer
from mmfusion.retrieval import QueryEncoder, Searcher
from mmfusion.retrieval.fingerprint import model_fingerprint
from mmfusion.retrieval.query_tower import write_query_tower
from mmfusion.retriever import Retriever

MAX_LENGTH = 12
HEAD = [{"kind": "dense", "size": 9, "bias": True, "activation": "tanh"}, {"kind": "normalize"}, {"kind": "layer_norm"}]
# Pooling and further parts of the tower; each family is exported once.
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {"role_embedding": True, "query_router": True, "matryoshka_dims": [8]},
    "xlm_roberta": {
        "share_text_encoder": False,
        "projection_hidden_size": 8,
        "text_pooling": "last",
        "text_head": HEAD,
    },
    "modernbert": {"text_pooling": "cls"},
    "clip": {"text_pooling": "pooler"},
    "siglip": {"text_pooling": "pooler"},
    "siglip2": {"text_pooling": "max"},
    "t5": {"text_pooling": "weighted_mean"},
}
TEXTS = ["w5", "w7 w8 w9 w10", " ".join(f"w{number}" for number in range(5, 25)), "w11 unknown w12"]


def processor_of(family: str) -> MMFusionProcessor:
    """A tokenizer of words that ends texts as CLIP does, cuts them, and adds a prompt."""
    vocabulary = {"[PAD]": 0, "[CLS]": 1, "[UNK]": 2, **{f"w{number}": number for number in range(3, VOCABULARY - 1)}}
    vocabulary["[EOS]"] = VOCABULARY - 1
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [EOS]", special_tokens=[("[CLS]", 1), ("[EOS]", VOCABULARY - 1)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    unmasked = family.startswith("siglip")
    return MMFusionProcessor(
        SiglipImageProcessorPil(size={"height": 32, "width": 32}),
        tokenizer,
        query_prompt="w3 ",
        max_query_length=40 if unmasked else MAX_LENGTH,
        pad_to_max_length=unmasked,
    )


def siglip_tokenizer() -> SiglipTokenizer:
    model = io.BytesIO()
    titles = ["red floral summer dress", "blue denim jacket with pockets", "mug hand made ceramic"] * 20
    options = {"vocab_size": 60, "hard_vocab_limit": False, "minloglevel": 2, "pad_id": -1, "bos_id": -1, "unk_id": 0}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(titles), model_writer=model, eos_id=1, add_dummy_prefix=False, **options
    )
    with tempfile.NamedTemporaryFile(suffix=".model") as file:
        file.write(model.getvalue())
        file.flush()
        return SiglipTokenizer(vocab_file=file.name)


def unsettled(model: MMFusionModel) -> MMFusionModel:
    """Without the zeros that parameters start with, so that leaving one out would show."""
    torch.manual_seed(1)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.05)
    return model.eval()


def assert_same_vectors(exported: QueryEncoder, reference: QueryEncoder) -> None:
    for texts in ([TEXTS[0]], [TEXTS[2]], TEXTS, TEXTS[:3], TEXTS * 13):
        np.testing.assert_allclose(exported.encode_queries(texts), reference.encode_queries(texts), atol=1e-5)


def test_every_family_of_text_encoders_is_tried() -> None:
    assert set(FAMILIES) == set(TEXT_ENCODERS)


@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_are_those_of_pytorch(family: str, tmp_path: Path) -> None:
    model, processor = unsettled(tiny_model(family, "vit", **FAMILIES[family])), processor_of(family)
    description = export_query_tower(model, processor, tmp_path / "onnx")
    assert 0 <= description.parity <= 1e-5
    assert description.max_length == processor.max_query_length and description.query_prompt == "w3 "
    exported, reference = OnnxQueryTower.load(tmp_path / "onnx", threads=1), Retriever(model, processor)
    assert_same_vectors(exported, reference)
    assert (exported.fingerprint, exported.dimension) == (reference.fingerprint, reference.dimension)
    assert exported.views == reference.views
    alone = reference.encode_queries(["w5"])
    assert not np.allclose(alone, reference.encode_queries(["w6"]), atol=1e-3), "the tower tells no two texts apart"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "model"
    return write_model_folder(folder, query_router=True, matryoshka_dims=[16])


@pytest.fixture(scope="module")
def loaded(model_folder: Path) -> tuple[MMFusionModel, MMFusionProcessor]:
    return MMFusionModel.from_pretrained(model_folder).eval(), MMFusionProcessor.from_pretrained(model_folder)


@pytest.fixture(scope="module")
def exported(model_folder: Path) -> Path:
    """What the recipe makes of a model with a query router."""
    output = model_folder.parent / "onnx"
    command("export")(str(model_folder), str(output))
    return output


def index_of(model: MMFusionModel, processor: MMFusionProcessor, truncate_dim: int | None = None) -> ProductIndex:
    with torch.inference_mode():
        embeds = model.get_product_features(**processor(products=products()), truncate_dim=truncate_dim)
    return ProductIndex.build(embeds, ["dress", "mug", "photo"], model_fingerprint=model_fingerprint(model, processor))


def test_siglip_reads_texts_as_its_tokenizer_in_python_does() -> None:
    images = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    processor = MMFusionProcessor(images, siglip_tokenizer(), max_query_length=16, pad_to_max_length=True)
    tokenizer = query_tokenizer(processor)
    for text in (
        *(
            "Red Dress, 100% cotton!",
            "  a   b ",
            "...red",
            "- -",
            "ＦＵＬＬ width ﬁ",
            "ÀÉ ß",
            "mug 🧥",
            "a-b_c",
            "▁red ▁ dress",
        ),
        *("</s> red", "red </s> blue", "red</s>dress", "<unk> red", "x" * 100, "U.S.A. t-shirt", "连衣裙", "\u200bred"),
    ):
        expected = processor.process_queries([text])
        found = tokenize(tokenizer, [clean(text)])
        assert all(np.array_equal(found[name], expected[name].numpy()) for name in found), text


@pytest.mark.parametrize("truncate_dim", [None, 16])
def test_search_finds_the_same_with_both_encoders(
    exported: Path, loaded: tuple[MMFusionModel, MMFusionProcessor], truncate_dim: int | None
) -> None:
    index = index_of(*loaded, truncate_dim)
    queries = ["red dress", "a blue mug that is large", "mug"] * 12
    torch_hits = Searcher(Retriever(*loaded), index).search(queries)
    onnx_hits = Searcher(OnnxQueryTower.load(exported, threads=1), index).search(queries)
    for one, other in zip(torch_hits, onnx_hits, strict=True):
        assert [hit.product_id for hit in one] == [hit.product_id for hit in other]
        np.testing.assert_allclose([hit.score for hit in one], [hit.score for hit in other], atol=1e-5)
    assert len({hits[0].score for hits in onnx_hits}) > 1


def test_the_service_answers_with_it(
    exported: Path,
    loaded: tuple[MMFusionModel, MMFusionProcessor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mmfusion.serving import server

    apps: list[Any] = []
    monkeypatch.setattr(server, "run_server", lambda app, bound, limits: (apps.append(app), bound.close()))
    monkeypatch.setattr(server, "log_as_json", lambda: None)
    index = index_of(*loaded)
    index.save(tmp_path / "index")
    (tmp_path / "run.json").write_text(json.dumps({"complete": True, "base": "nowhere"}))
    command("serve")(str(tmp_path), onnx=str(exported), port=0)
    with TestClient(apps[0]) as client:
        found = client.get("/search", params={"query": "red dress", "k": 3}).json()["hits"]
        tower = client.get("/health").json()["query_tower"]
    expected = Searcher(Retriever(*loaded), index).search("red dress")
    assert [hit["product_id"] for hit in found] == [hit.product_id for hit in expected]
    np.testing.assert_allclose([hit["score"] for hit in found], [hit.score for hit in expected], atol=1e-5)
    whole = loaded[0].num_parameters()
    assert 0 < tower["parameters"] < whole and tower["mib"] > 0 and tower["vision_encoder"] is False


def test_the_index_of_another_model_is_refused(exported: Path, tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "other", seed=1)
    other = MMFusionModel.from_pretrained(folder).eval(), MMFusionProcessor.from_pretrained(folder)
    with pytest.raises(ValueError, match="load the index's model"):
        Searcher(OnnxQueryTower.load(exported), index_of(*other))


def test_the_folder_needs_neither_pytorch_nor_mmfusion(
    exported: Path, loaded: tuple[MMFusionModel, MMFusionProcessor]
) -> None:
    tokenizer = Tokenizer.from_file(str(exported / "tokenizer.json"))
    session = onnxruntime.InferenceSession(exported / "model.onnx")
    assert {axis for one in session.get_inputs() for axis in one.shape} == {"batch", "length"}
    encoded = tokenizer.encode_batch(["red dress", "a mug with a picture of a very red dress"])
    inputs = {"input_ids": [one.ids for one in encoded], "attention_mask": [one.attention_mask for one in encoded]}
    (vectors,) = session.run(["query_embeds"], {name: np.array(value) for name, value in inputs.items()})
    expected = Retriever(*loaded).encode_queries(["red dress", "a mug with a picture of a very red dress"])
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert sorted(path.name for path in exported.iterdir()) == ["model.onnx", "query_tower.json", "tokenizer.json"]


def test_loading_builds_no_model(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("a PyTorch module was made")

    monkeypatch.setattr(torch.nn.Module, "__init__", refuse)
    assert OnnxQueryTower.load(exported).encode_queries(["red dress"]).shape[0] == 1


def test_threads_get_their_own_vectors(exported: Path) -> None:
    encoder = OnnxQueryTower.load(exported, threads=1)
    batches = [[f"red dress {number}"] * (1 + number % 3) + ["mug " * (1 + number)] for number in range(32)]
    expected = [encoder.encode_queries(texts) for texts in batches]
    with ThreadPoolExecutor(8) as pool:
        for one, other in zip(pool.map(encoder.encode_queries, batches), expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("texts", [[], ["mug", ""], ["\n"]])
def test_texts_are_refused_as_by_the_processor(
    exported: Path, loaded: tuple[MMFusionModel, MMFusionProcessor], texts: list[str]
) -> None:
    with pytest.raises(ValueError) as expected:
        loaded[1].process_queries(texts)
    with pytest.raises(ValueError) as found:
        OnnxQueryTower.load(exported).encode_queries(texts)
    assert str(found.value) == str(expected.value)


def test_a_query_tower_alone_in_half_precision_is_exported_for_the_index_of_the_whole_model(
    loaded: tuple[MMFusionModel, MMFusionProcessor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = MMFusionModel(loaded[0].config), loaded[1]
    model.load_state_dict(loaded[0].state_dict())
    model.half()
    write_query_tower(model, processor, tmp_path / "query")
    tower = MMFusionModel.from_pretrained(tmp_path / "query")
    assert tower.dtype == torch.float16
    # As where the weights exceed 2 GiB.
    monkeypatch.setattr(export, "write_graph", partial(export.write_graph, one_file=0))
    description = export_query_tower(tower, processor, tmp_path / "onnx", opset=18)
    assert description.opset == 18
    assert description.model_fingerprint == model_fingerprint(model, processor)
    assert set(description.sha256) == {"model.onnx", "model.onnx.data", "tokenizer.json"}
    assert_same_vectors(OnnxQueryTower.load(tmp_path / "onnx"), Retriever(tower.float(), processor))


# --- Refusals ------------------------------------------------------------------------------------------------------


def damage_graph(folder: Path) -> None:
    content = bytearray((folder / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.onnx").write_bytes(content)


def set_field(name: str, value: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "query_tower.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_graph, r"model\.onnx has the checksum \w{12}….*export the query tower again"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), r"tokenizer\.json has the checksum"),
        (lambda folder: (folder / "model.onnx").unlink(), r"model\.onnx has the checksum of no file"),
        (lambda folder: (folder / "query_tower.json").unlink(), r"no exported query tower: query_tower\.json is"),
        (lambda folder: (folder / "query_tower.json").write_text("{"), r"query_tower\.json is damaged"),
        (set_field("surprise", 1), r"query_tower\.json is damaged .*surprise"),
        (set_field("schema_version", 2), "has schema version 2, this mmfusion reads 1; update mmfusion"),
    ],
)
def test_a_damaged_folder_is_refused(
    exported: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "onnx"))
    damage(folder)
    with pytest.raises(OnnxError, match=message):
        OnnxQueryTower.load(folder)


def test_a_graph_that_the_runtime_cannot_read_is_refused_in_a_line(exported: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "onnx"))
    (folder / "model.onnx").write_bytes(b"no protobuf")
    set_field("sha256", {"model.onnx": sha256_of(folder / "model.onnx")})(folder)
    with pytest.raises(OnnxError, match=r"cannot be loaded \([^\n]*\); update onnxruntime"):
        OnnxQueryTower.load(folder)


def test_a_provider_that_is_not_there_is_an_error(exported: Path) -> None:
    with pytest.raises(OnnxError, match=r"no provider 'GPU' here; it has .*CPUExecutionProvider"):
        OnnxQueryTower.load(exported, providers=["GPU"])


@pytest.mark.parametrize("change", [1e-3, float("nan")])
def test_an_export_that_differs_is_refused_and_leaves_what_was_there(
    exported: Path,
    loaded: tuple[MMFusionModel, MMFusionProcessor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: float,
) -> None:
    def copy(tower: MMFusionModel, folder: Path, opset: int | None) -> int:
        shutil.copy(exported / "model.onnx", folder)
        return 20

    model, processor = loaded
    other = MMFusionModel(model.config)
    other.load_state_dict({name: value + change for name, value in model.state_dict().items()})
    monkeypatch.setattr(export, "write_graph", copy)
    target = tmp_path / "onnx"
    with pytest.raises(OnnxError, match=r"differ from PyTorch's by \S+ and not by 1e-04 at most; nothing was written"):
        export_query_tower(other, processor, target)
    assert list(tmp_path.iterdir()) == []
    shutil.copytree(exported, target)
    with pytest.raises(OnnxError, match="differ from PyTorch's"):
        export_query_tower(other, processor, target)
    assert list(tmp_path.iterdir()) == [target]
    assert OnnxQueryTower.load(target).fingerprint == model_fingerprint(model, processor)


def test_a_folder_with_other_files_is_not_replaced(
    loaded: tuple[MMFusionModel, MMFusionProcessor], model_folder: Path
) -> None:
    with pytest.raises(FileExistsError, match="name another folder"):
        export_query_tower(*loaded, model_folder)
    assert (model_folder / "model.safetensors").is_file()


def test_an_encoder_that_pytorch_cannot_export_is_refused_in_a_line(
    loaded: tuple[MMFusionModel, MMFusionProcessor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = loaded
    monkeypatch.setattr(type(model.text_model), "forward", lambda *args, **inputs: int(inputs["input_ids"].sum()))
    with pytest.raises(OnnxError, match=r"^PyTorch cannot export a 'bert' text encoder to ONNX \([^\n]+\); serve it"):
        export.write_graph(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_onnxscript_older_than_pytorch_needs_is_named(
    loaded: tuple[MMFusionModel, MMFusionProcessor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def import_framework_apis(*_: Any, **__: Any) -> None:
        importlib.import_module("onnxscript._framework_apis.torch_99_9")

    monkeypatch.setattr(torch.onnx, "export", import_framework_apis)
    with pytest.raises(
        OnnxError, match=r"newer onnxscript than the [\d.]+ .*torch_99_9'\); pip install -U onnxscript$"
    ):
        export.write_graph(loaded[0], tmp_path)


@pytest.mark.parametrize("opset", [17, 10_000])
def test_an_opset_out_of_range_is_refused(
    loaded: tuple[MMFusionModel, MMFusionProcessor], tmp_path: Path, opset: int
) -> None:
    with pytest.raises(OnnxError, match=rf"opset is {opset}; give 18 to \d+, or leave it out"):
        export_query_tower(*loaded, tmp_path / "onnx", opset=opset)
    assert list(tmp_path.iterdir()) == []


def test_tokenizers_that_a_file_does_not_hold_are_refused(
    loaded: tuple[MMFusionModel, MMFusionProcessor], tmp_path: Path
) -> None:
    class Shouting(PreTrainedTokenizerFast):
        def __call__(self, texts: list[str], **options: Any) -> Any:
            return super().__call__(["mug " + text for text in texts], **options)

    model, processor = loaded
    changed = MMFusionProcessor.from_args_and_dict([processor.image_processor, processor.tokenizer], {})
    changed.tokenizer = Shouting(tokenizer_object=processor.tokenizer.backend_tokenizer, pad_token="[PAD]")
    with pytest.raises(OnnxError, match="Shouting gives other tokens in transformers than from its tokenizer"):
        export_query_tower(model, changed, tmp_path / "onnx")
    changed.tokenizer = object()
    with pytest.raises(OnnxError, match=r"object runs in Python alone and has no tokenizer\.json"):
        export_query_tower(model, changed, tmp_path / "onnx")


def test_a_missing_library_is_named_with_the_extra(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingLibraryError, match=r"library onnxruntime .*pip install 'mmfusion\[onnx\]'"):
        OnnxQueryTower.load(exported)


def test_onnx_runtime_leaves_nothing_in_the_home_and_sends_nothing(tmp_path: Path) -> None:
    code = "import mmfusion.onnx, onnxruntime, os; assert os.environ['ORT_DISABLE_TELEMETRY'] == '1'"
    home = {name: value for name, value in os.environ.items() if name not in ("ORT_DISABLE_TELEMETRY", "CI")}
    done = run_to_end([sys.executable, "-c", code], env={**home, "HOME": str(tmp_path)}, fresh=True)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("*onnxruntime*"))
