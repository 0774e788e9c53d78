"""Text encoders as their checkpoints were trained: pooling, projections, layers and prompts, and what is refused."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from processes import run_to_end
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling
from tiny_encoders import vit
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn import functional as F

from mmfusion import MMFusionModel, MMFusionProcessor
from mmfusion.model.errors import HubError
from mmfusion.model.families import max_tokens
from mmfusion.model.heads import pool_text

WIDTH, TOKENS, BOS, EOS, PAD = 16, 60, 1, 59, 0
SMALL: dict[str, Any] = {"fusion_hidden_size": 8, "fusion_heads": 2, "fusion_layers": 1, "fusion_latents": 2}
_T = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
_TEXT = {**_T, "vocab_size": TOKENS, "max_position_embeddings": 20}
_ENDED = {**_TEXT, "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
_PHOTO = {**_T, "image_size": 16, "patch_size": 8}
_SEQ = {"vocab_size": TOKENS, "d_model": WIDTH, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
_KV = {"num_key_value_heads": 1, "head_dim": 8}


def _dual(model: str, text: dict[str, Any], **fields: Any) -> Callable[[], tf.PreTrainedModel]:
    def build() -> tf.PreTrainedModel:
        config = getattr(tf, model.replace("Model", "Config"))
        return getattr(tf, model)(config(text_config=text, vision_config=_PHOTO, projection_dim=12, **fields))

    return build


def _vision_text_dual() -> tf.PreTrainedModel:
    halves = tf.ViTConfig(**_PHOTO), tf.BertConfig(**_TEXT)
    config = tf.VisionTextDualEncoderConfig.from_vision_text_configs(*halves, projection_dim=12)
    return tf.VisionTextDualEncoderModel(config)


def _align() -> tf.PreTrainedModel:
    sizes = {"width_coefficient": 0.1, "depth_coefficient": 0.1, "depth_divisor": 4, "hidden_dim": 40, "image_size": 16}
    stages = {"in_channels": [8, 8], "out_channels": [8, 16], "kernel_sizes": [3, 3], "strides": [1, 2]}
    more = {"num_block_repeats": [1, 1], "expand_ratios": [1, 2], "depthwise_padding": []}
    return tf.AlignModel(
        tf.AlignConfig(text_config=_TEXT, vision_config={**sizes, **stages, **more}, projection_dim=12)
    )


def _groupvit() -> tf.PreTrainedModel:
    stages = {"depths": [1, 1, 1], "num_group_tokens": [4, 2, 0], "num_output_groups": [4, 2, 2]}
    config = tf.GroupViTConfig(
        text_config=_ENDED, vision_config={**_PHOTO, **stages}, projection_dim=12, projection_intermediate_dim=20
    )
    return tf.GroupViTModel(config)


def _flava() -> tf.PreTrainedModel:
    half = {"image_config": _PHOTO, "text_config": _TEXT, "multimodal_config": _T, "image_codebook_config": {}}
    return tf.FlavaModel(tf.FlavaConfig(**half, projection_dim=12))


# Dual encoders, whose own `get_text_features` are the truth.
DUAL: dict[str, Callable[[], tf.PreTrainedModel]] = {
    "clip": _dual("CLIPModel", _ENDED),
    "metaclip_2": _dual("MetaClip2Model", _ENDED),
    "clipseg": _dual("CLIPSegModel", _ENDED),
    "owlvit": _dual("OwlViTModel", _ENDED),
    "owlv2": _dual("Owlv2Model", _ENDED),
    "xclip": _dual("XCLIPModel", _ENDED),
    "flava": _flava,
    "groupvit": _groupvit,
    "aimv2": _dual("Aimv2Model", {**_TEXT, "eos_token_id": EOS}),
    "chinese_clip": _dual("ChineseCLIPModel", _TEXT),
    "altclip": _dual("AltCLIPModel", {**_TEXT, "project_dim": 10, "pad_token_id": PAD}),
    "align": _align,
    "vision-text-dual-encoder": _vision_text_dual,
    "tipsv2": lambda: tf.Tipsv2Model(tf.Tipsv2Config(text_config=_TEXT, vision_config=_PHOTO)),
    "siglip": lambda: tf.SiglipModel(
        tf.SiglipConfig(text_config={**_ENDED, "projection_size": 24}, vision_config={**_PHOTO, "hidden_size": 24})
    ),
}
# Encoders by themselves, and the pooling that their families were trained with.
ALONE: dict[str, tuple[Callable[[], tf.PreTrainedModel], str]] = {
    "qwen3": (lambda: tf.Qwen3Model(tf.Qwen3Config(**_TEXT, **_KV)), "last"),
    "mistral": (lambda: tf.MistralModel(tf.MistralConfig(**_TEXT, **_KV, sliding_window=None)), "last"),
    "llama": (lambda: tf.LlamaModel(tf.LlamaConfig(**_TEXT, num_key_value_heads=1)), "last"),
    "gpt2": (lambda: tf.GPT2Model(tf.GPT2Config(vocab_size=TOKENS, n_embd=WIDTH, n_layer=2, n_head=2)), "last"),
    "gemma3": (
        lambda: tf.Gemma3TextModel(tf.Gemma3TextConfig(**_TEXT, **_KV, use_bidirectional_attention=True)),
        "mean",
    ),
    "t5": (lambda: tf.T5EncoderModel(tf.T5Config(**_SEQ)), "mean"),
    "umt5": (lambda: tf.UMT5EncoderModel(tf.UMT5Config(**_SEQ)), "mean"),
    "bert": (lambda: tf.BertModel(tf.BertConfig(**_TEXT)), "mean"),
    "nomic_bert": (lambda: tf.NomicBertModel(tf.NomicBertConfig(**_TEXT)), "mean"),
    "embedding_gemma2": (
        lambda: tf.EmbeddingGemma2TextModel(
            tf.EmbeddingGemma2TextConfig(
                **_TEXT, **_KV, global_head_dim=8, num_global_key_value_heads=1, hidden_size_per_layer_input=4,
                embedding_dim=12, sliding_window=8, layer_types=["sliding_attention", "full_attention"],
            )
        ),
        "mean",
    ),
}  # fmt: skip
if not hasattr(tf, "EmbeddingGemma2TextModel"):  # as in the oldest transformers that we admit
    del ALONE["embedding_gemma2"]
BUILDERS = {**DUAL, **{name: builder for name, (builder, _) in ALONE.items()}}


def _encoder(name: str) -> tf.PreTrainedModel:
    return _grown(BUILDERS[name])


def _grown(builder: Callable[[], tf.PreTrainedModel]) -> tf.PreTrainedModel:
    """A tiny model with larger weights than new ones have, so that differences are seen, in evaluation mode."""
    torch.manual_seed(0)
    model = builder()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value), alpha=0.15)
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm1d):
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.5, 2.0)
    return model.eval()


def _model(text: Any, **fields: Any) -> MMFusionModel:
    torch.manual_seed(1)
    return MMFusionModel.from_backbones(text, vit(), **SMALL, **fields).eval()


def _texts(*lengths: int, padded: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    rows = [[BOS, *torch.randint(5, EOS, (length - 2,), generator=generator).tolist(), EOS] for length in lengths]
    width = max(*lengths, padded)
    ids = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def _vectors(model: MMFusionModel, **texts: Tensor) -> Tensor:
    with torch.no_grad():
        return model.get_query_features(**texts)


# --- What was trained is what is used --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DUAL)
def test_a_dual_encoder_keeps_its_own_text_features(name: str) -> None:
    dual = _encoder(name)
    # SigLIP was trained on texts of full length; AIMv2 reads unpadded ones as it does only where none is padded.
    texts = _texts(4, 9, 6, padded=20)
    with torch.no_grad():
        inputs = {"input_ids": texts["input_ids"]} if name == "siglip" else texts
        own = dual.get_text_features(**inputs)
        own = getattr(own, "pooler_output", own)
        # FLAVA projects all states and compares the first.
        own = F.normalize(own[:, 0] if own.ndim == 3 else own, dim=-1)
        model = _model(dual)
        product = model.forward_products(**texts, views_only=True).text_embeds
    assert model.config.embedding_dim == own.shape[1]
    assert torch.allclose(_vectors(model, **texts), own, atol=1e-5)
    assert product is not None and torch.allclose(product, own, atol=1e-5)


def test_a_projection_keeps_its_bias() -> None:
    dual = _encoder("align")
    assert dual.text_projection.bias.abs().max() > 0.01
    model = _model(dual)
    assert torch.equal(model.query_projection.bias, dual.text_projection.bias)
    assert torch.equal(model.text_projection.bias, dual.text_projection.bias)


@pytest.mark.parametrize("name", ALONE)
def test_an_encoder_pools_as_its_family_was_trained(name: str) -> None:
    encoder = _encoder(name)
    model = _model(encoder)
    assert model.config.text_pooling == ALONE[name][1]
    texts = _texts(5, 8)
    with torch.no_grad():
        states = encoder(**texts).last_hidden_state
    means = (states * texts["attention_mask"].unsqueeze(-1)).sum(1) / torch.tensor([[5], [8]])
    expected = torch.stack([states[0, 4], states[1, 7]]) if ALONE[name][1] == "last" else means
    assert torch.allclose(_vectors(model, **texts), F.normalize(expected, dim=-1), atol=1e-5)


def test_a_checkpoint_that_does_not_say_is_averaged_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    encoder = _encoder("bert")
    with caplog.at_level(logging.WARNING, "mmfusion"):
        assert _model(encoder).config.text_pooling == "mean"
    assert "'bert'" in caplog.text and "mean, cls, pooler, last" in caplog.text
    caplog.clear()
    assert _model(encoder, text_pooling="cls", image_pooling="cls").config.text_pooling == "cls"
    assert not caplog.records


@pytest.mark.parametrize("name", BUILDERS)
def test_a_text_alone_has_the_vector_that_it_has_in_a_batch(name: str) -> None:
    model = _model(_encoder(name))
    padded = 20 if name == "siglip" else 0
    together = _vectors(model, **_texts(4, 12, padded=padded))[:1]
    alone = _vectors(model, **_texts(4, padded=padded))
    assert 1 - F.cosine_similarity(together.double(), alone.double()).item() <= 1e-6


@pytest.mark.parametrize("name", BUILDERS)
def test_it_trains_and_comes_back_from_a_folder_bit_by_bit(name: str, tmp_path: Path) -> None:
    model = _model(_encoder(name))
    texts = _texts(4, 9, padded=20 if name == "siglip" else 0)
    before = _vectors(model, **texts)
    model.save_pretrained(tmp_path)
    assert torch.equal(_vectors(MMFusionModel.from_pretrained(tmp_path).eval(), **texts), before)
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=0.5)
    vectors = model.train().get_query_features(**texts)
    (vectors[0] @ vectors[1]).backward()
    optimizer.step()
    after = _vectors(model.eval(), **texts)
    assert after.isfinite().all() and not torch.allclose(after, before, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last", "max", "weighted_mean"])
def test_pooling_by_hand_on_either_side_of_the_padding(pooling: str) -> None:
    states = torch.tensor([[1.0, 8.0], [5.0, 2.0], [3.0, 3.0]])
    expected = {
        "mean": [3.0, 13 / 3], "cls": [1.0, 8.0], "last": [3.0, 3.0], "max": [5.0, 8.0],
        "weighted_mean": [(1 + 10 + 9) / 6, (8 + 4 + 9) / 6],
    }[pooling]  # fmt: skip
    padding = torch.full((2, 2), 99.0)
    rows = torch.stack([torch.cat([states, padding]), torch.cat([padding, states])])
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1]])
    assert torch.allclose(pool_text(None, rows, mask, pooling), torch.tensor([expected, expected]))


def test_old_clip_configs_with_a_wrong_end_token_pool_the_tokenizers_own(tmp_path: Path) -> None:
    dual = _grown(_dual("CLIPModel", {**_ENDED, "eos_token_id": 2, "vocab_size": TOKENS + 1}))
    dual.save_pretrained(tmp_path)
    tokenizer = _tokenizer("<e>")
    tokenizer.add_tokens(["sku"])
    tokenizer.save_pretrained(tmp_path)
    model, processor = _model(str(tmp_path)), _processor(tmp_path)
    inputs = processor(queries=["w5 sku w7"])
    assert inputs["input_ids"].tolist() == [[BOS, 5, TOKENS, 7, EOS]]
    with torch.no_grad():
        states = dual.text_model(**inputs).last_hidden_state[:, 4]
    own = F.normalize(dual.text_projection(states), dim=-1)
    assert torch.allclose(_vectors(model, **inputs), own, atol=1e-5)


# --- Classes that AutoModel would not choose -------------------------------------------------------------------------

CLASSES: dict[str, Callable[[], tf.PreTrainedModel]] = {
    "BertForMaskedLM": lambda: tf.BertForMaskedLM(tf.BertConfig(**_TEXT)),
    "BertForSequenceClassification": lambda: tf.BertForSequenceClassification(tf.BertConfig(**_TEXT)),
    "BertForPreTraining": lambda: tf.BertForPreTraining(tf.BertConfig(**_TEXT)),
    "BertModel without pooler": lambda: tf.BertModel(tf.BertConfig(**_TEXT), add_pooling_layer=False),
    "Qwen3ForCausalLM": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**_TEXT, **_KV)),
    "CLIPTextModel": lambda: tf.CLIPTextModel(tf.CLIPTextConfig(**_ENDED)),
    "CLIPTextModelWithProjection": lambda: tf.CLIPTextModelWithProjection(_clip_text()),
    "SiglipTextModel": lambda: tf.SiglipTextModel(tf.SiglipTextConfig(**_ENDED, projection_size=WIDTH)),
    "T5Model": lambda: tf.T5Model(tf.T5Config(**_SEQ)),
    "T5ForConditionalGeneration": lambda: tf.T5ForConditionalGeneration(tf.T5Config(**_SEQ)),
    "MT5Model": lambda: tf.MT5Model(tf.MT5Config(**_SEQ)),
    "T5GemmaModel": lambda: tf.T5GemmaModel(tf.T5GemmaConfig(encoder=_gemma(), decoder=_gemma(), vocab_size=TOKENS)),
}  # fmt: skip


def _clip_text() -> tf.CLIPTextConfig:
    return tf.CLIPTextConfig(**_ENDED, projection_dim=12)


def _gemma() -> dict[str, Any]:
    return {**_TEXT, **_KV, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}


@pytest.mark.parametrize("name", CLASSES)
def test_a_model_in_memory_and_its_folder_give_the_same_vectors(name: str, tmp_path: Path) -> None:
    source = _grown(CLASSES[name])
    source.save_pretrained(tmp_path)
    texts = _texts(4, 9, padded=20 if name == "SiglipTextModel" else 0)
    fields = {"text_pooling": "mean"} if name.startswith("Bert") else {}
    vectors = _vectors(_model(source, **fields), **texts)
    assert torch.equal(_vectors(_model(str(tmp_path), **fields), **texts), vectors)
    inputs = {"input_ids": texts["input_ids"]} if name == "SiglipTextModel" else texts
    with torch.no_grad():
        if name.startswith(("T5", "MT5")):
            states = source.get_encoder()(**texts).last_hidden_state
            expected = pool_text(None, states, texts["attention_mask"], "mean")
        elif name.startswith("Bert"):
            base = source if name.startswith("BertModel") else source.bert
            expected = pool_text(None, base(**texts).last_hidden_state, texts["attention_mask"], "mean")
        elif name.startswith("Qwen3"):
            expected = source.model(**texts).last_hidden_state[torch.arange(2), torch.tensor([3, 8])]
        else:
            output = source(**inputs)
            expected = output.text_embeds if name.endswith("Projection") else output.pooler_output
    assert torch.allclose(vectors, F.normalize(expected, dim=-1), atol=1e-5)
    decoders = [key for key in _model(source, **fields).text_model.state_dict() if "decoder" in key]
    assert not decoders


# --- Folders of sentence-transformers --------------------------------------------------------------------------------


def _tokenizer(end: str | None = "[SEP]", **fields: Any) -> tf.PreTrainedTokenizerFast:
    words = {"[PAD]": 0, "[CLS]": 1, "[UNK]": 2, "query": 3, ":": 4, **{f"w{place}": place for place in range(5, 59)}}
    words[end or "w59"] = EOS
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if end:
        template = f"[CLS] $A {end}"
        special = [("[CLS]", BOS), (end, EOS)]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
        fields["eos_token"] = end
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", **{"model_max_length": 20, **fields}
    )


def _photo_folder(folder: Path) -> str:
    if not folder.exists():
        vit().save_pretrained(folder)
        tf.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


def _processor(text: Path, **fields: Any) -> MMFusionProcessor:
    return MMFusionProcessor.from_backbones(str(text), _photo_folder(text.parent / "photos"), **fields)


def _sentence_folder(
    folder: Path, encoder: str, pooling: str, *after: nn.Module, prompts: dict[str, str] | None = None, **options: Any
) -> SentenceTransformer:
    plain = folder.parent / f"{folder.name}_plain"
    _encoder(encoder).save_pretrained(plain)
    _tokenizer(padding_side=options.pop("padding_side", "right")).save_pretrained(plain)
    torch.manual_seed(5)
    modules = [Transformer(str(plain), **options), Pooling(WIDTH, pooling_mode=pooling), *after]
    SentenceTransformer(modules=modules, prompts=prompts, device="cpu").save(str(folder))
    return SentenceTransformer(str(folder), device="cpu")


def _dense(size: int, out: int, activation: nn.Module | None = None, bias: bool = False) -> Dense:
    return Dense(size, out, bias=bias, activation_function=activation or nn.Identity())


PROMPTS = {"query": "query : ", "document": "w9 : "}
KINDS: dict[str, tuple[Any, ...]] = {
    "bge": ("bert", "cls", lambda: [Normalize()], None),
    "e5": ("bert", "mean", lambda: [Normalize()], PROMPTS),
    "minilm": ("bert", "mean", lambda: [], None),
    "qwen3-embedding": ("qwen3", "lasttoken", lambda: [Normalize()], {"query": "query : ", "document": ""}),
    "embeddinggemma": ("gemma3", "mean", lambda: [_dense(16, 24), _dense(24, 16), Normalize()], PROMPTS),
    "labse": ("bert", "cls", lambda: [_dense(16, 16, nn.Tanh(), bias=True), Normalize()], None),
    "gtr-t5": ("t5", "mean", lambda: [_dense(16, 12), Normalize()], None),
    "sgpt": ("gpt2", "weightedmean", lambda: [], None),
    "square root": ("bert", "mean_sqrt_len_tokens", lambda: [_dense(16, 12), Normalize()], None),
    "max": ("bert", "max", lambda: [], None),
    "norms": ("bert", "mean", lambda: [LayerNorm(16), _dense(16, 12, nn.GELU(), bias=True), Normalize()], None),
    "normalised between": ("bert", "mean", lambda: [Normalize(), _dense(16, 12, nn.ReLU(), bias=True)], None),
}


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_those_of_sentence_transformers(kind: str, tmp_path: Path) -> None:
    encoder, pooling, after, prompts = KINDS[kind]
    side = "left" if kind == "qwen3-embedding" else "right"
    theirs = _sentence_folder(tmp_path / "st", encoder, pooling, *after(), prompts=prompts, padding_side=side)
    model, processor = _model(str(tmp_path / "st")), _processor(tmp_path / "st")
    texts = ["w7 w8", "w9 w10 w11 w12 w13 w14", "w20"]
    queries = _vectors(model, **processor(queries=texts))
    with torch.no_grad():
        inputs = processor(products=[{"title": text, "image": None} for text in texts])
        products = model.forward_products(**inputs, views_only=True).text_embeds
    assert products is not None
    for ours, own in ((queries, theirs.encode_query(texts)), (products, theirs.encode_document(texts))):
        assert F.cosine_similarity(ours, torch.tensor(own)).min() >= 0.99999
    wanted = prompts or {"query": "", "document": ""}
    assert (model.config.query_prompt, model.config.product_prompt) == (wanted["query"], wanted["document"])
    assert (processor.query_prompt, processor.product_prompt) == (wanted["query"], wanted["document"])
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    again = MMFusionProcessor.from_pretrained(tmp_path / "saved")
    loaded = MMFusionModel.from_pretrained(tmp_path / "saved").eval()
    assert torch.equal(_vectors(loaded, **again(queries=texts)), queries)


def test_layers_of_separate_encoders_and_of_the_query_tower_alone(tmp_path: Path) -> None:
    from mmfusion.retrieval.query_tower import query_tower

    _sentence_folder(tmp_path / "st", *KINDS["labse"][:2], *KINDS["labse"][2]())
    texts = _texts(4, 7)
    shared = _model(str(tmp_path / "st"))
    apart = _model(str(tmp_path / "st"), share_text_encoder=False)
    assert torch.equal(_vectors(apart, **texts), _vectors(shared, **texts))
    for model in (shared, apart):
        assert torch.equal(_vectors(query_tower(model), **texts), _vectors(model, **texts))


def test_given_values_go_before_those_of_the_folder(tmp_path: Path) -> None:
    _sentence_folder(tmp_path / "st", "bert", "cls", prompts=PROMPTS)
    fields = {"query_prompt": "w5 ", "product_prompt": ""}
    model = _model(str(tmp_path / "st"), text_pooling="mean", **fields)
    assert (model.config.text_pooling, model.config.query_prompt, model.config.product_prompt) == ("mean", "w5 ", "")
    processor = _processor(tmp_path / "st", max_query_length=6, **fields)
    assert (processor.query_prompt, processor.product_prompt) == ("w5 ", "")
    assert (processor.max_query_length, processor.max_product_length) == (6, 20)


def test_a_passage_prompt_is_that_of_products(tmp_path: Path) -> None:
    _sentence_folder(tmp_path / "st", "bert", "mean", prompts={"query": "query : ", "passage": "w9 : "})
    assert _model(str(tmp_path / "st")).config.product_prompt == "w9 : "


def test_prompts_of_other_tasks_are_named_and_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _sentence_folder(tmp_path / "st", "bert", "mean", prompts={"clustering": "w9 : "})
    with caplog.at_level(logging.WARNING, "mmfusion"):
        assert _model(str(tmp_path / "st")).config.query_prompt == ""
    assert "clustering" in caplog.text


def test_lengths_and_lower_case_follow_the_folder(tmp_path: Path) -> None:
    theirs = _sentence_folder(tmp_path / "st", "bert", "mean", max_seq_length=7, do_lower_case=True)
    settings = tmp_path / "st" / "sentence_bert_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "max_seq_length": 7, "do_lower_case": True}))
    processor = _processor(tmp_path / "st")
    assert (processor.max_query_length, processor.max_product_length) == (7, 7)
    text = " ".join(f"W{place}" for place in range(5, 25))
    ours = processor(queries=[text])["input_ids"]
    assert ours.tolist() == [[BOS, 5, 6, 7, 8, 9, EOS]]
    assert torch.equal(theirs.preprocess([text])["input_ids"], ours)


def _edit(folder: Path, name: str, **fields: Any) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def _break(folder: Path, how: str) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    if how == "static":
        modules = [{**modules[0], "type": "sentence_transformers.models.StaticEmbedding"}]
    if how == "router":
        modules[0]["type"] = "sentence_transformers.models.Router"
    if how == "own code":
        modules[1]["type"] = "custom_pooling.MyPooling"
    if how == "outside":
        modules[1]["path"] = "../1_Pooling"
    if how == "bag of words":
        modules.append({**modules[2], "type": "sentence_transformers.models.LSTM"})
    (folder / "modules.json").write_text(json.dumps(modules))
    if how == "two poolings":
        _edit(folder, "1_Pooling/config.json", pooling_mode=["cls", "mean"])
    if how == "prompt left out":
        _edit(folder, "1_Pooling/config.json", include_prompt=False)
    if how == "activation":
        _edit(folder, "2_Dense/config.json", activation_function="os.system")
    if how == "residual":
        _edit(folder, "2_Dense/config.json", use_residual=True)
    if how == "pickle":
        (folder / "2_Dense" / "model.safetensors").rename(folder / "2_Dense" / "pytorch_model.bin")
    if how == "sparse":
        _edit(folder, "sentence_bert_config.json", transformer_task="fill-mask")
    if how == "length":
        _edit(folder, "1_Pooling/config.json", pooling_mode="mean_sqrt_len_tokens")


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("static", "StaticEmbedding"), ("router", "Router"), ("own code", "custom_pooling"), ("outside", "out of"),
        ("bag of words", "LSTM"), ("two poolings", "cls and mean"), ("prompt left out", "include_prompt"),
        ("activation", "os.system"), ("residual", "2_Dense"), ("pickle", "2_Dense/model.safetensors"),
        ("sparse", "fill-mask"), ("length", "mean_sqrt_len_tokens"),
    ],
)  # fmt: skip
def test_what_has_no_counterpart_is_one_line(how: str, says: str, tmp_path: Path) -> None:
    folder = tmp_path / "st"
    _sentence_folder(folder, "bert", "mean", _dense(16, 12, nn.Tanh(), bias=True), prompts=PROMPTS)
    _break(folder, how)
    with pytest.raises(HubError, match=says) as caught:
        _model(str(folder))
    assert str(folder) in str(caught.value) or how == "outside"
    assert "\n" not in str(caught.value)


# --- What cannot be a tower ------------------------------------------------------------------------------------------


class _Drifting(tf.BertModel):
    """Answers otherwise in each call, as an encoder that masks at random in evaluation mode."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.last_hidden_state = output.last_hidden_state + torch.randn_like(output.last_hidden_state)
        return output


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (
            lambda: tf.FNetModel(tf.FNetConfig(vocab_size=TOKENS, hidden_size=WIDTH, num_hidden_layers=2)),
            "with padding",
        ),
        (lambda: _Drifting(tf.BertConfig(**_TEXT)), "from call to call"),
        (lambda: tf.BartModel(_bart()), "'bart' model is an encoder-decoder"),
        (lambda: tf.BartForConditionalGeneration(_bart()), "'bart' model is an encoder-decoder"),
        (lambda: tf.MarianModel(tf.MarianConfig(**_SEQ2, pad_token_id=0)), "'marian' model is an encoder-decoder"),
        (vit, "does not turn token ids"),
    ],
)
def test_what_cannot_be_a_tower_is_one_line(build: Callable[[], tf.PreTrainedModel], says: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=says) as caught:
        _model(build().eval(), text_pooling="mean")
    assert "\n" not in str(caught.value)


_SEQ2 = {
    **{"vocab_size": TOKENS, "d_model": WIDTH, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16},
    **{"decoder_ffn_dim": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2},
}


def _bart() -> tf.BartConfig:
    return tf.BartConfig(**_SEQ2, max_position_embeddings=20)


def test_base_writes_nothing_for_an_encoder_decoder(tmp_path: Path) -> None:
    tf.BartModel(_bart()).save_pretrained(tmp_path / "bart")
    _tokenizer().save_pretrained(tmp_path / "bart")
    arguments = ["--text", str(tmp_path / "bart"), "--vision", _photo_folder(tmp_path / "photos")]
    done = run_to_end([sys.executable, "recipes/base.py", *arguments, "--output", tmp_path / "base"])
    assert done.returncode == 1 and "encoder-decoder" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "base").exists()


# --- Tokenizers and lengths ------------------------------------------------------------------------------------------


def _plain(folder: Path, encoder: str, tokenizer: tf.PreTrainedTokenizerFast) -> Path:
    _encoder(encoder).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_lengths_stay_within_the_positions(tmp_path: Path) -> None:
    folder = _plain(tmp_path / "clip", "clip", _tokenizer(model_max_length=1000))
    processor = _processor(folder)
    assert (processor.max_query_length, processor.max_product_length) == (20, 20)
    with pytest.raises(ValueError, match=r"max_product_length is 21.*20 tokens; give at most 20"):
        _processor(folder, max_product_length=21)
    with torch.no_grad():
        _model(str(folder)).get_query_features(**processor(queries=["w5 " * 100]))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (tf.BertConfig(max_position_embeddings=512), 512),
        (tf.RobertaConfig(max_position_embeddings=514, pad_token_id=1), 512),
        (tf.XLMRobertaConfig(max_position_embeddings=514, pad_token_id=1), 512),
        (tf.MPNetConfig(max_position_embeddings=514, pad_token_id=1), 512),
        (tf.CLIPTextConfig(), 77),
        (tf.T5Config(), None),
    ],
)
def test_the_most_tokens_that_a_family_takes(config: tf.PreTrainedConfig, expected: int | None) -> None:
    assert max_tokens(config) == expected


def test_a_tokenizer_that_ends_texts_otherwise_is_an_error(tmp_path: Path) -> None:
    other = _plain(tmp_path / "other", "clip", _tokenizer(None))
    with pytest.raises(ValueError, match=rf"expected is {EOS}"):
        _processor(other)
    wrong = _tokenizer()
    wrong.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A w7", special_tokens=[("[CLS]", BOS), ("w7", 7)]
    )
    with pytest.raises(ValueError, match=r"ends a text with 7"):
        _processor(_plain(tmp_path / "wrong", "owlvit", wrong))


def test_a_tokenizer_larger_than_the_embedding_table_is_an_error(tmp_path: Path) -> None:
    tokenizer = _tokenizer()
    tokenizer.add_tokens(["sku"])
    with pytest.raises(ValueError, match=rf"ids up to {TOKENS}.*has {TOKENS} embeddings"):
        _processor(_plain(tmp_path / "bert", "bert", tokenizer))


def test_products_without_text_and_a_tokenizer_that_adds_no_token(tmp_path: Path) -> None:
    from PIL import Image

    folder = _plain(tmp_path / "qwen", "qwen3", _tokenizer(None, padding_side="left"))
    model, processor = _model(str(folder)), _processor(folder)
    photo = Image.new("RGB", (32, 32), "red")
    alone = processor(products=[{"title": "", "image": photo}])
    both = processor(products=[{"title": "", "image": photo}, {"title": "w5 w6", "image": None}])
    assert alone["attention_mask"].sum() == 0
    with torch.no_grad():
        vector = model.get_product_features(**alone)
        assert torch.allclose(vector, model.get_product_features(**both)[:1], atol=1e-5)
