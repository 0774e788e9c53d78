"""Which pretrained encoders are read, and what is said of the others."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
import transformers as tf
from hub_errors import one_line
from processes import run_to_end
from safetensors.torch import load_file, save_file
from tiny_encoders import TEXT_ENCODERS, VISION_ENCODERS
from transformers import PreTrainedModel

from mmfusion import MMFusionModel
from mmfusion.model.remote_code import TRUST_VARIABLE

_SMALL = {"fusion_hidden_size": 16, "fusion_heads": 2}
_OWN_CODE = """
from transformers import BertConfig, BertModel
open({marker!r}, "a").write("ran")
class OwnConfig(BertConfig):
    model_type = "own_code"
class OwnModel(BertModel):
    config_class = OwnConfig
    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.last_hidden_state = output.last_hidden_state * 2.0 + 1.0
        return output
"""


def assemble(text: str | Path | PreTrainedModel, vision: str | Path | None = None, **options: object) -> MMFusionModel:
    torch.manual_seed(0)
    source = text if isinstance(text, PreTrainedModel) else str(text)
    seen = VISION_ENCODERS["vit"]() if vision is None else str(vision)
    return MMFusionModel.from_backbones(source, seen, **_SMALL, **options).eval()


def saved(folder: Path, encoder: PreTrainedModel) -> Path:
    encoder.save_pretrained(folder)
    return folder


def without(folder: Path, *lost: str) -> Path:
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: value for name, value in weights.items() if not name.startswith(lost)}, folder / "model.safetensors"
    )
    return folder


@pytest.fixture
def own_code(tmp_path: Path) -> Path:
    """A text encoder whose code lies next to its weights, and leaves a file behind when it runs."""
    folder = saved(tmp_path / "own", TEXT_ENCODERS["bert"]())
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "own_model.OwnConfig", "AutoModel": "own_model.OwnModel"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "own_code", "auto_map": names}))
    (folder / "own_model.py").write_text(_OWN_CODE.format(marker=str(tmp_path / "ran")))
    return folder


def test_a_checkpoint_in_pickles_is_not_read(tmp_path: Path) -> None:
    folder = saved(tmp_path / "bert", TEXT_ENCODERS["bert"]())
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    text = one_line(lambda: assemble(folder))
    assert "pytorch_model.bin" in text and "safetensors" in text


@pytest.mark.parametrize("half", ["text", "vision"])
def test_an_adapter_beside_an_encoder_is_an_error(tmp_path: Path, half: str) -> None:
    encoder = TEXT_ENCODERS["bert"]() if half == "text" else VISION_ENCODERS["vit"]()
    folder = saved(tmp_path / "encoder", encoder)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    sources = (folder, None) if half == "text" else (TEXT_ENCODERS["bert"](), folder)
    assert "PEFT adapter" in one_line(lambda: assemble(*sources))


@pytest.mark.parametrize(
    ("name", "lost", "named"),
    [
        ("bert", "encoder.layer.1.", "encoder.layer.1.attention"),
        ("bert", "embeddings.word_embeddings", "embeddings.word_embeddings.weight"),
        ("vit", "layernorm.bias", "layernorm.bias"),
        ("vit", "embeddings.cls_token", "embeddings.cls_token"),
        ("clip", "vision_model.encoder.layers.2", "encoder.layers.2"),
        ("mobilenet_v2", "conv_stem.first_conv.normalization.running_mean", "running_mean"),
    ],
)
def test_weights_that_are_read_and_missing_are_an_error(tmp_path: Path, name: str, lost: str, named: str) -> None:
    vision = name in VISION_ENCODERS
    folder = without(saved(tmp_path / name, (VISION_ENCODERS if vision else TEXT_ENCODERS)[name]()), lost)
    text = one_line(lambda: assemble(TEXT_ENCODERS["bert"](), folder) if vision else assemble(folder))
    assert named in text and str(folder) in text


def test_a_missing_pooler_is_no_error_where_it_is_not_read(tmp_path: Path) -> None:
    folder = without(saved(tmp_path / "bert", TEXT_ENCODERS["bert"]()), "pooler.")
    assert assemble(folder, text_pooling="mean").config.text_pooling == "mean"
    assert "pooler.dense" in one_line(lambda: assemble(folder, text_pooling="pooler"))


def test_the_half_that_is_not_taken_may_be_incomplete(tmp_path: Path) -> None:
    folder = without(saved(tmp_path / "clip", TEXT_ENCODERS["clip"]()), "text_model.", "text_projection")
    own = load_file(folder / "model.safetensors")
    model = assemble(TEXT_ENCODERS["bert"](), folder)
    name = "encoder.layers.0.mlp.fc1.weight"
    assert torch.equal(model.vision_model.state_dict()[name], own[f"vision_model.{name}"])


def test_half_a_checkpoint_is_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "bert"
    TEXT_ENCODERS["bert"]().save_pretrained(folder, max_shard_size="20KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    shards[-1].unlink()
    assert shards[-1].name in one_line(lambda: assemble(folder))


def test_an_unknown_model_type_is_an_error(tmp_path: Path) -> None:
    folder = saved(tmp_path / "bert", TEXT_ENCODERS["bert"]())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "bret"}))
    text = one_line(lambda: assemble(folder))
    assert "'bret'" in text and str(folder) in text
    (folder / "config.json").write_text("{}")
    assert "model_type" in one_line(lambda: assemble(folder))
    (folder / "config.json").unlink()
    assert "no config.json" in one_line(lambda: assemble(folder))


def test_code_that_comes_with_weights_does_not_run_unasked(
    own_code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *prompt: pytest.fail("asked on the terminal"))
    text = one_line(lambda: assemble(own_code))
    assert "trust_remote_code=True" in text and "own_model.OwnConfig" in text
    assert not (tmp_path / "ran").exists()


def test_code_of_transformers_goes_before_code_that_comes_with_weights(tmp_path: Path) -> None:
    folder = saved(tmp_path / "bert", TEXT_ENCODERS["bert"]())
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "own_model.OwnConfig", "AutoModel": "own_model.OwnModel"}
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": names}))
    (folder / "own_model.py").write_text("raise RuntimeError('ran')")
    assert type(assemble(folder, trust_remote_code=True).text_model) is tf.BertModel


def test_trusted_code_goes_with_the_model(own_code: Path, tmp_path: Path) -> None:
    """In a process of its own, as transformers keeps classes that it has loaded once."""
    code = f"""
import sys, torch
from tiny_encoders import VISION_ENCODERS, texts
from mmfusion import MMFusionModel
source, folder, how = sys.argv[1:]
if how == "make":
    model = MMFusionModel.from_backbones(source, VISION_ENCODERS["vit"](), trust_remote_code=True, **{_SMALL!r})
    model.save_pretrained(folder)
    torch.save(model.eval().get_query_features(**texts([5, 3])).detach(), folder + ".pt")
else:
    try:
        MMFusionModel.from_pretrained(folder)
    except ValueError as error:
        assert "trust_remote_code=True" in str(error), error
    else:
        raise SystemExit("loaded unasked")
    model = MMFusionModel.from_pretrained(folder, trust_remote_code=True).eval()
    assert torch.equal(model.get_query_features(**texts([5, 3])), torch.load(folder + ".pt"))
    import os
    os.environ[{TRUST_VARIABLE!r}] = "1"
    MMFusionModel.from_pretrained(folder)
"""
    tests = Path(__file__).parents[1]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)]),
        "HF_HOME": str(tmp_path / "home"),
        "OMP_NUM_THREADS": "1",
    }
    for how in ("make", "load"):
        done = run_to_end([sys.executable, "-c", code, own_code, tmp_path / "model", how], env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "model" / "own_model.py").is_file()
