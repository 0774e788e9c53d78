"""Loading from the Hub: with and without this package, online and from the cache; what goes wrong takes one line."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from bare_environment import build_bare_environment, run_bare
from hub_errors import one_line
from huggingface_hub import constants
from loopback_hub.server import LoopbackHub
from published_model import embed, embed_queries, write_model_folder
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoProcessor

from mmfusion import MMFusionConfig, MMFusionModel, MMFusionProcessor, Retriever
from mmfusion.hub.publish import publish
from mmfusion.model.errors import HubError, explain
from mmfusion.model.weights import check_name
from mmfusion.training import RunError, load_base

FIELDS: dict[str, Any] = {"query_router": True, "matryoshka_dims": [16], "share_text_encoder": False}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Router, shorter vectors, an encoder of its own for queries."""
    return write_model_folder(tmp_path_factory.mktemp("loaded") / "model", **FIELDS)


@pytest.fixture(scope="module")
def published(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the model as they are published, gathered once."""
    from mmfusion.hub.publish import gather

    folder = tmp_path_factory.mktemp("gathered")
    return {name: (folder / name).read_bytes() for name in gather(model_folder, folder, repo="org/model")}


@pytest.fixture
def repo(hub: LoopbackHub, hub_client_environment: Path, published: dict[str, bytes]) -> str:
    """The name of a repository that holds the model."""
    name = hub.unique()
    hub.create_repo(name, published)
    return name


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a Hub that is gone, and no pauses before the client asks it again."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with LoopbackHub() as gone:
        return gone.endpoint


def go_to(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the client ask the Hub at another address."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")


def load(source: str | Path, **where: Any) -> tuple[Any, Any]:
    return MMFusionModel.from_pretrained(source, **where), MMFusionProcessor.from_pretrained(source, **where)


def equal(one: list[Tensor], two: list[Tensor]) -> bool:
    return all(map(torch.equal, one, two))


# --- Where mmfusion is installed -----------------------------------------------------------------------------------


def test_every_way_of_loading_gives_the_same_vectors(repo: str, model_folder: Path, tmp_path: Path) -> None:
    expected = embed(*load(model_folder))
    assert equal(embed(*load(repo)), expected)
    assert equal(embed(AutoModel.from_pretrained(repo), AutoProcessor.from_pretrained(repo)), expected)
    assert isinstance(AutoConfig.from_pretrained(repo), MMFusionConfig)
    cache = tmp_path / "cache"
    assert equal(embed(*load(repo, revision="main", cache_dir=cache)), expected)
    assert list(cache.glob("models--org--*/snapshots/*/model.safetensors"))
    assert equal(embed(MMFusionModel.from_pretrained(repo, device_map="cpu"), load(repo)[1]), expected)
    assert equal(embed(*load_base(repo)), expected)


def test_dtype_encoders_router_and_shorter_widths_survive(
    hub: LoopbackHub, hub_client_environment: Path, model_folder: Path, tmp_path: Path
) -> None:
    model, processor = load(model_folder)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    processor.save_pretrained(tmp_path / "half")
    repo = hub.unique()
    publish(tmp_path / "half", repo)
    again = MMFusionModel.from_pretrained(repo)
    assert again.dtype == torch.bfloat16
    assert {name: getattr(again.config, name) for name in FIELDS} == FIELDS
    assert again.query_model is not None and again.query_router is not None
    states = model.state_dict()
    assert states.keys() == again.state_dict().keys()
    assert all(torch.equal(value, states[name]) for name, value in again.state_dict().items())
    assert MMFusionModel.from_pretrained(repo, dtype=torch.float32).dtype == torch.float32


def test_the_query_tower_moves_only_its_share_of_the_bytes(
    hub: LoopbackHub, repo: str, published: dict[str, bytes], model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.reset_counters()
    tower, processor = load(repo, subfolder="query")
    moved = {name.removeprefix(f"{repo}/"): count for name, count in hub.bytes_sent.items() if name.startswith(repo)}
    assert moved and all(name.startswith("query/") for name in moved), moved
    assert moved["query/model.safetensors"] == len(published["query/model.safetensors"])
    assert tower.config.query_only
    assert torch.equal(embed_queries(tower, processor), embed_queries(*load(model_folder)))
    hub.reset_counters()
    load(repo)
    whole = sum(count for name, count in hub.bytes_sent.items() if name.startswith(repo))
    share = sum(moved.values()) / whole
    with capsys.disabled():
        print(f"\nquery tower: {sum(moved.values()):,} of {whole:,} bytes moved ({share:.0%})")
    assert share < 0.6


def test_new_weights_of_a_base_are_one_line_and_others_an_error(
    hub: LoopbackHub, repo: str, published: dict[str, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="mmfusion")
    model, _ = load_base(repo, fusion="cross_attention")
    (line,) = [record.getMessage() for record in caplog.records if record.name == "mmfusion.training.sources"]
    new = {name for name, _ in model.named_parameters() if name.startswith("fusion.")}
    assert new and set(line.removeprefix("new weights, initialised: ").split(", ")) == new
    assert all(value.isfinite().all() and value.abs().max() < 100 for value in model.parameters())
    tensors = safetensors.torch.load(published["model.safetensors"])
    lacking = {name: value for name, value in tensors.items() if name != "query_projection.weight"}
    for weights, complaint in (
        (lacking, "missing keys: query_projection.weight"),
        ({**tensors, "surplus": torch.ones(1)}, "unexpected keys: surplus"),
    ):
        content = safetensors.torch.save(weights, {"format": "pt"})
        other = plant(hub, tmp_path, {**published, "model.safetensors": content}, "hub")
        with pytest.raises(RunError, match=rf"^--base '{other}' has {complaint}; the checkpoint is incomplete\.$"):
            load_base(other, fusion="cross_attention")


def test_nothing_else_of_a_repository_is_read(hub: LoopbackHub, repo: str) -> None:
    strange = ("training_args.bin", "optimizer.pt", "tokenizer.pickle", "hubconf.py", "notes.txt", "data.csv", "x.onnx")
    hub.repo(repo).plant(dict.fromkeys(strange, b"nothing that anybody has to read"))
    hub.reset_counters()
    load(repo)
    load(repo, subfolder="query")
    asked = {seen.path.partition("/resolve/")[2].partition("/")[2] for seen in hub.requests if "/resolve/" in seen.path}
    # Where mmfusion is installed, its code is not fetched either.
    assert asked and {Path(name).suffix for name in asked} <= {".json", ".safetensors", ".txt", ".jinja", ".model"}
    assert not asked & set(strange)


def test_a_model_in_the_cache_loads_offline(
    hub: LoopbackHub, repo: str, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(repo)
    hub.reset_counters()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert equal(embed(*load(repo)), embed(*load(model_folder)))
    assert not hub.requests
    assert "HF_HUB_OFFLINE=1" in one_line(lambda: MMFusionModel.from_pretrained("org/never-loaded"))


def test_a_model_in_the_cache_loads_while_the_hub_is_away(
    repo: str, model_folder: Path, monkeypatch: pytest.MonkeyPatch, unreachable: str
) -> None:
    load(repo)
    go_to(unreachable, monkeypatch)
    assert equal(embed(*load(repo)), embed(*load(model_folder)))


# --- Where it is not -----------------------------------------------------------------------------------------------

REMOTE = """
import glob, os, sys, torch
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoProcessor
torch.set_num_threads(1)
try:
    import mmfusion
    sys.exit("mmfusion can be imported here")
except ModuleNotFoundError:
    pass
repo, out, cache, token = sys.argv[1:]
where = {"revision": "v1", "cache_dir": cache, **({"token": token} if token else {})}
trusted = {"trust_remote_code": True, **where}

def queries_of(model, processor):
    return model.eval().get_query_features(**processor(queries=["red dress", "blue mug"]))

def whole():
    try:
        sys.exit(f"loaded without being asked: {AutoModel.from_pretrained(repo, trust_remote_code=False, **where)}")
    except ValueError as error:
        assert "trust_remote_code=True" in str(error), error
    assert not glob.glob(os.environ["HF_HOME"] + "/**/*_mmfusion.py", recursive=True), "no code is fetched"
    config = AutoConfig.from_pretrained(repo, **trusted)
    assert config.query_router and config.matryoshka_dims == [16] and not config.share_text_encoder
    model = AutoModel.from_pretrained(repo, **trusted).eval()
    processor = AutoProcessor.from_pretrained(repo, **trusted)
    assert type(model.config).__module__.startswith("transformers_modules."), type(model.config)
    photo = Image.linear_gradient("L").convert("RGB")
    products = [{"title": "Red dress", "image": photo}, {"title": "Mug", "image": None}, {"title": "", "image": photo}]
    output = model(**processor(queries=["red dress", "blue mug"], products=products))
    torch.save([output.query_embeds, output.product_embeds, output.modality_weights], out + "/whole.pt")
    half = AutoModel.from_pretrained(repo, dtype=torch.bfloat16, device_map="cpu", **trusted)
    assert half.dtype == torch.bfloat16, half.dtype
    model.save_pretrained(out + "/saved")
    processor.save_pretrained(out + "/saved")

with torch.inference_mode():
    if token:
        whole()
    tower = AutoModel.from_pretrained(repo, subfolder="query", **trusted)
    processor = AutoProcessor.from_pretrained(repo, subfolder="query", **trusted)
    torch.save(queries_of(tower, processor), out + "/query.pt")
"""


def test_remote_code_gives_the_same_vectors_where_mmfusion_is_not_installed(
    hub: LoopbackHub, published: dict[str, bytes], model_folder: Path, tmp_path: Path
) -> None:
    repo = hub.unique("mm-ecom")
    hub.create_repo(repo, published, private=True)
    hub.repo(repo).create_branch("v1", "main")
    python = build_bare_environment(tmp_path / "bare")
    online = hub.environment(tmp_path / "home", token=False)
    offline = {**online, "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    for environment, token in ((online, hub.token), (offline, "")):
        arguments = [repo, str(tmp_path), str(tmp_path / "cache"), token]
        run_bare(python, REMOTE, *arguments, environment=environment, cwd=tmp_path)
        query = torch.load(tmp_path / "query.pt", weights_only=True)
        (tmp_path / "query.pt").unlink()
        assert torch.equal(query, embed_queries(*load(model_folder)))
    expected = embed(*load(model_folder))
    assert equal(torch.load(tmp_path / "whole.pt", weights_only=True), expected)
    # What is saved there is a model of ours again, code included.
    assert equal(embed(*load(tmp_path / "saved")), expected)
    assert (tmp_path / "saved" / "modeling_mmfusion.py").is_file()


def test_code_that_travels_imports_nothing_else_of_ours() -> None:
    for path in Path(MMFusionModel.__module__.replace(".", "/")).parent.glob("*.py"):
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
        ours = [line for line in lines if line.startswith(("import mmfusion", "from mmfusion", "from .."))]
        assert not ours, f"{path.name}: {ours}"


# --- What is not read ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["folder", "hub"])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json", "model.pkl", "last.ckpt"])
def test_weights_in_a_pickle_are_refused_with_the_reason(
    hub: LoopbackHub, hub_client_environment: Path, published: dict[str, bytes], tmp_path: Path, where: str, name: str
) -> None:
    files = {key: value for key, value in published.items() if not key.endswith(".safetensors")}
    files[name] = b"a pickle that nobody must open"
    source = plant(hub, tmp_path, files, where)
    hub.reset_counters()
    line = one_line(lambda: MMFusionModel.from_pretrained(source))
    if name.endswith(".json"):
        assert "holds no weights" in line
    else:
        assert name in line and "can run code" in line
    assert not any(name in path for path in hub.bytes_sent), "the pickle is not even fetched"
    assert "can run code" in one_line(lambda: MMFusionModel.from_pretrained(source, use_safetensors=False))


@pytest.mark.parametrize("where", ["folder", "hub"])
@pytest.mark.parametrize("whole", [True, False], ids=["next to a model", "alone"])
@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.safetensors"])
def test_an_adapter_is_refused_with_the_reason(
    hub: LoopbackHub,
    hub_client_environment: Path,
    published: dict[str, bytes],
    tmp_path: Path,
    where: str,
    whole: bool,
    name: str,
) -> None:
    adapter = {"adapter_config.json": b'{"peft_type": "LORA", "base_model_name_or_path": "org/base"}', name: b"weights"}
    source = plant(hub, tmp_path, {**(published if whole else {}), **adapter}, where)
    hub.reset_counters()
    line = one_line(lambda: MMFusionModel.from_pretrained(source))
    assert line.startswith(f"{source} holds a PEFT adapter") and "merge_and_unload" in line
    assert ("in a pickle (adapter_model.bin)" in line and "can run code" in line) == name.endswith(".bin")
    assert not any(name in path for path in hub.bytes_sent), "the adapter is not even fetched"


def test_an_adapter_that_auto_model_turned_away_from_is_refused_too(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    # Where peft is installed, AutoModel passes on the base of an adapter, and the adapter in this argument.
    given = {"adapter_kwargs": {"_adapter_model_path": str(tmp_path)}}
    line = one_line(lambda: MMFusionModel.from_pretrained(model_folder, **given))
    assert line.startswith(f"{tmp_path} holds a PEFT adapter;")


@pytest.mark.parametrize("where", ["folder", "hub"])
@pytest.mark.parametrize(
    "shard", ["../../outside.safetensors", "/etc/outside.safetensors", "a\\..\\b.safetensors", "x.bin"]
)
def test_a_shard_outside_its_folder_is_refused(
    hub: LoopbackHub, hub_client_environment: Path, published: dict[str, bytes], tmp_path: Path, where: str, shard: str
) -> None:
    files = {key: value for key, value in published.items() if key != "model.safetensors"}
    files["model.safetensors.index.json"] = json.dumps({"metadata": {}, "weight_map": {"x": shard}}).encode()
    source = plant(hub, tmp_path, files, where)
    (tmp_path / "outside.safetensors").write_bytes(published["model.safetensors"])
    line = one_line(lambda: MMFusionModel.from_pretrained(source))
    assert repr(shard) in line


@pytest.mark.parametrize("name", ["", "/x", "..", "a/../b", "a//b", "./a", "C:\\x", "a\\b", "a\0b", None, 3])
def test_names_that_may_lead_out_of_a_folder_are_refused(name: Any) -> None:
    with pytest.raises(HubError, match=r"the\.index names the file"):
        check_name(name, "the.index")


def test_plain_names_pass() -> None:
    assert check_name("query/model-00001-of-00002.safetensors", "x") == "query/model-00001-of-00002.safetensors"


def plant(hub: LoopbackHub, folder: Path, files: dict[str, bytes], where: str) -> str:
    """The files as a folder, or as a repository."""
    if where == "hub":
        name = hub.unique()
        hub.create_repo(name, files)
        return name
    for name, content in files.items():
        path = folder / "model" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return str(folder / "model")


# --- What goes wrong -----------------------------------------------------------------------------------------------


def test_a_repository_that_cannot_be_read_is_one_line(
    hub: LoopbackHub, repo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cls in (MMFusionModel, MMFusionProcessor, MMFusionConfig):
        line = one_line(lambda cls=cls: cls.from_pretrained("org/mm-ecmo"))
        assert "org/mm-ecmo does not exist" in line and "your token may not read it" in line
        line = one_line(lambda cls=cls: cls.from_pretrained(repo, revision="v9"))
        assert f"{repo} has no revision 'v9'" in line
    hub.repo(repo).private = True
    line = one_line(lambda: MMFusionModel.from_pretrained(repo, token=False))
    assert "is private, and no token was sent" in line and "hf auth login" in line
    for part in ("", "query"):
        line = one_line(lambda part=part: Retriever.from_pretrained(repo, subfolder=part, token=False))
        assert "is private, and no token was sent" in line
    hub.repo(repo).private, hub.repo(repo).gated = False, "manual"
    line = one_line(lambda: MMFusionModel.from_pretrained(repo, token=hub.reader_token))
    assert f"{repo} is gated" in line and f"{hub.endpoint}/{repo}" in line
    assert "nor the name of a repository" in one_line(lambda: MMFusionModel.from_pretrained("not a name/at/all"))
    with pytest.raises((RunError, HubError), match=r"^[^\n]*org/mm-ecmo[^\n]*$"):
        load_base("org/mm-ecmo")


@pytest.mark.usefixtures("hub_client_environment")
def test_no_network_is_one_line(unreachable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    go_to(unreachable, monkeypatch)
    line = one_line(lambda: MMFusionModel.from_pretrained("org/mm-ecom"))
    assert f"{unreachable} cannot be reached" in line and "check the network" in line


def test_a_damaged_download_is_refused_and_fetched_again(
    hub: LoopbackHub, repo: str, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.corrupt("model.safetensors")
    line = one_line(lambda: MMFusionModel.from_pretrained(repo))
    assert "was damaged on its way" in line and "load it again" in line
    hub.clear_faults()
    hub.truncate("model.safetensors", 5000)
    assert "broke off before its end" in one_line(lambda: MMFusionModel.from_pretrained(repo))
    hub.clear_faults()
    assert equal(embed(*load(repo)), embed(*load(model_folder)))


def test_damaged_files_of_a_folder_are_one_line(published: dict[str, bytes], hub: LoopbackHub, tmp_path: Path) -> None:
    source = plant(hub, tmp_path, published, "folder")
    for name, message in (("model.safetensors", "weights"), ("config.json", "truncated or damaged")):
        (Path(source) / name).write_bytes(published[name][: len(published[name]) // 2])
        line = one_line(lambda: MMFusionModel.from_pretrained(source))
        assert source in line and message in line


def test_a_model_of_another_kind_or_of_a_newer_schema_is_one_line(
    hub: LoopbackHub, hub_client_environment: Path, published: dict[str, bytes]
) -> None:
    def with_config(**fields: Any) -> str:
        config = {**json.loads(published["config.json"]), **fields}
        return plant(hub, Path(), {**published, "config.json": json.dumps(config).encode()}, "hub")

    bert = plant(hub, Path(), {"config.json": b'{"model_type": "bert"}', "pytorch_model.bin": b"x"}, "hub")
    line = one_line(lambda: MMFusionModel.from_pretrained(bert))
    assert bert in line and "is a 'bert' model, not an mmfusion model" in line
    newer = with_config(schema_version=99, fusion_teleport=True)
    for cls in (MMFusionModel, MMFusionConfig, AutoConfig):
        line = one_line(lambda cls=cls: cls.from_pretrained(newer))
        assert "schema_version 99" in line and "upgrade mmfusion" in line
    empty = plant(hub, Path(), {"data.csv": b"1"}, "hub")
    assert "is not an mmfusion model: it has no config.json" in one_line(lambda: MMFusionModel.from_pretrained(empty))


@pytest.mark.usefixtures("hub_client_environment")
def test_an_error_that_was_handled_before_is_not_blamed(model_folder: Path) -> None:
    try:
        MMFusionModel.from_pretrained("org/unknown")
    except HubError:
        with pytest.raises(ValueError, match="fusion is 'conact'") as caught:
            MMFusionModel.from_pretrained(model_folder, fusion="conact")
        assert not isinstance(caught.value, HubError)


def test_an_unknown_error_keeps_its_first_line() -> None:
    error = explain(RuntimeError("\nthe disk is on fire\nand so on"), "org/model")
    assert str(error) == "org/model: the disk is on fire" and isinstance(error.__cause__, RuntimeError)
    assert explain(error, "other") is error
