"""Publishing: one commit with all that belongs to a model, nothing that belongs to the machine, all or nothing."""

from __future__ import annotations

import getpass
import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import command
from loopback_hub.server import LoopbackHub
from published_model import HOST, PLACE, QUERIES, TOKEN, USER, embed, embed_queries, record, write_model_folder
from transformers import AutoModel, AutoProcessor

from mmfusion import MMFusionModel, MMFusionProcessor
from mmfusion.hub.private import recipe_config
from mmfusion.hub.publish import publish
from mmfusion.model.errors import HubError
from mmfusion.retrieval.fingerprint import model_fingerprint
from mmfusion.retrieval.query_tower import query_tower, write_query_tower

PLANTED = (TOKEN, USER, HOST, PLACE, "secret-project", "0123456789abcdef")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Router, shorter vectors, shared encoder with roles; a recipe's record that knows too much."""
    return write_model_folder(
        tmp_path_factory.mktemp("published") / "stage2", query_router=True, matryoshka_dims=[16], role_embedding=True
    )


@pytest.fixture(autouse=True)
def local_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user and the machine that the planted strings are of."""
    monkeypatch.setattr(getpass, "getuser", lambda: USER)
    monkeypatch.setattr(socket, "gethostname", lambda: HOST)


@pytest.fixture
def repo(hub: LoopbackHub, hub_client_environment: Path) -> str:
    """The name of a repository that is not there yet."""
    return hub.unique()


def names(published: Any) -> set[str]:
    return set(published.files)


# --- What is published ---------------------------------------------------------------------------------------------


def test_a_dry_run_lists_files_and_sizes_and_sends_nothing(
    hub: LoopbackHub, repo: str, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command("publish")(base=str(model_folder), repo=repo, dry_run=True)
    printed = capsys.readouterr().out
    assert not hub.requests and not hub.has_repo(repo)
    for name in ("model.safetensors", "query/model.safetensors", "modeling_mmfusion.py", "LICENSE", "README.md"):
        assert f"  {name}\n" in printed
    (line,) = [line for line in printed.splitlines() if line.endswith("  model.safetensors")]
    size = int(line.split()[0].replace(",", ""))
    assert size == pytest.approx((model_folder / "model.safetensors").stat().st_size, rel=0.01)
    rows = [line.split() for line in printed.splitlines()]
    sizes = {row[1]: int(row[0].replace(",", "")) for row in rows if len(row) == 2}
    query = sum(size for name, size in sizes.items() if name.startswith("query/"))
    assert f"{query / (sum(sizes.values()) - query):.1%} of the whole model" in printed
    assert "dry run" in printed


def test_one_commit_holds_all_that_belongs_to_a_model(hub: LoopbackHub, repo: str, model_folder: Path) -> None:
    published = publish(model_folder, repo, private=True)
    there = hub.repo(repo)
    assert there.private
    assert published.commit == there.commits()[0].oid
    assert len(there.commits()) <= 2  # the Hub's own first commit, and ours
    files = there.files()
    assert names(published) <= files.keys() <= names(published) | {".gitattributes"}
    for name in (
        *("config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "tokenizer_config.json"),
        *("README.md", "LICENSE", "recipe.json", "modules.json", "config_sentence_transformers.json"),
        *("query/config.json", "query/model.safetensors", "query/processor_config.json", "query/tokenizer.json"),
    ):
        assert files[name], name
    code = {path.name for path in Path("mmfusion/model").glob("*.py")} - {"__init__.py"}
    assert code <= files.keys(), "the code that travels"
    assert "Apache License" in files["LICENSE"].decode()
    assert repo in files["README.md"].decode()
    assert not [name for name in files if name.endswith((".bin", ".ckpt", ".pt", ".log")) or "run.json" in name]
    config = json.loads(files["config.json"])
    assert config["auto_map"]["AutoModel"] == "modeling_mmfusion.MMFusionModel"
    assert config["auto_map"]["AutoConfig"] == "configuration_mmfusion.MMFusionConfig"
    assert json.loads(files["query/config.json"])["query_only"] is True


def test_no_published_file_holds_a_token_a_user_a_host_or_a_folder(
    hub: LoopbackHub, repo: str, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    publish(model_folder, repo)
    commit = hub.repo(repo).commits()[0]
    planted = (*PLANTED, hub.token, str(model_folder), str(model_folder.parent), str(Path.home() / "x")[:-1])
    for name, content in {**hub.repo(repo).files(), "the commit": repr(vars(commit)).encode()}.items():
        for word in planted:
            assert word.encode() not in content, f"{name} holds {word}"


def test_the_recipe_keeps_what_repeats_it() -> None:
    config = recipe_config(record())
    assert config["recipe"] == "stage2"
    assert config["arguments"]["steps"] == 5
    assert config["arguments"]["base"].endswith("/stage1")
    assert config["versions"] == {"torch": "2.13.0"}
    assert config["arguments"]["wandb_token"] == config["arguments"]["catalogue"] == "(removed)"


@pytest.mark.parametrize(
    ("text", "message"),
    [(f"# Mine\ntoken {TOKEN}\n", r"README\.md, line 2"), ("# Mine\n\nsee {folder}/notes\n", r"README\.md, line 3")],
)
def test_a_card_by_hand_that_says_too_much_is_refused(
    hub: LoopbackHub, repo: str, tmp_path: Path, model_folder: Path, text: str, message: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in model_folder.glob("*.*"):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "README.md").write_text(text.format(folder=folder))
    with pytest.raises(ValueError, match=message) as refusal:
        publish(folder, repo)
    assert TOKEN not in str(refusal.value)
    assert not hub.requests


def test_a_folder_without_model_or_processor_is_refused(tmp_path: Path, model_folder: Path) -> None:
    with pytest.raises(HubError, match=r"no config\.json"):
        publish(tmp_path, "org/model", dry_run=True)
    MMFusionModel.from_pretrained(model_folder).save_pretrained(tmp_path)
    with pytest.raises(HubError, match=r"no processor_config\.json"):
        publish(tmp_path, "org/model", dry_run=True)
    with pytest.raises(HubError, match="nor the name of a repository"):
        publish(model_folder, "org/too/many", dry_run=True)


# --- Where it is published -----------------------------------------------------------------------------------------


def test_shards_load_and_those_of_the_version_before_go(hub: LoopbackHub, repo: str, model_folder: Path) -> None:
    published = publish(model_folder, repo, max_shard_size="200KB")
    assert {"model.safetensors.index.json", "model-00001-of-00005.safetensors"} <= names(published)
    expected = embed(*load(model_folder))
    assert all(map(torch.equal, embed(*load(repo)), expected))
    again = publish(model_folder, repo)
    assert "model-00001-of-00005.safetensors" in again.removed
    left = [name for name in hub.repo(repo).files() if "safetensors" in name]
    assert sorted(left) == ["model.safetensors", "query/model.safetensors"]
    assert all(map(torch.equal, embed(*load(repo)), expected))


def test_a_branch_and_a_pull_request_leave_main_alone(hub: LoopbackHub, repo: str, model_folder: Path) -> None:
    publish(model_folder, repo)
    before = hub.repo(repo).commit().oid
    publish(model_folder, repo, revision="v2", message="Second", max_shard_size="300KB")
    request = publish(model_folder, repo, create_pr=True, max_shard_size="300KB")
    assert request.url is not None and request.url.startswith(f"{hub.endpoint}/{repo}/discussions/")
    assert publish(model_folder, repo).commit == before, "the same files again are no new commit"
    assert hub.repo(repo).commit().oid == before
    assert hub.repo(repo).commits("v2")[0].title == "Second"
    assert all(map(torch.equal, embed(*load(repo, revision="v2")), embed(*load(model_folder))))


def test_private_is_not_promised_for_a_public_repository(hub: LoopbackHub, repo: str, model_folder: Path) -> None:
    hub.create_repo(repo)
    with pytest.raises(HubError, match="is public already"):
        publish(model_folder, repo, private=True)
    assert "model.safetensors" not in hub.repo(repo).files()


@pytest.mark.parametrize("fault", ["weights", "commit"])
def test_a_push_that_breaks_off_leaves_the_version_before(
    hub: LoopbackHub, repo: str, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    publish(model_folder, repo)
    before, files = hub.repo(repo).commit().oid, hub.repo(repo).files()
    newer = write_model_folder(tmp_path / "newer", seed=1, query_router=True)
    if fault == "weights":
        hub.cut_after(50_000, "/storage/", method="PUT", n=100)
    else:
        hub.cut_after(1000, "/commit/", method="POST", n=100)
    with pytest.raises(HubError, match=r"^[^\n]+$"):
        publish(newer, repo)
    hub.clear_faults()
    assert hub.repo(repo).commit().oid == before
    assert hub.repo(repo).files() == files
    assert all(map(torch.equal, embed(*load(repo)), embed(*load(model_folder))))
    publish(newer, repo)
    assert all(map(torch.equal, embed(*load(repo)), embed(*load(newer))))


def test_no_right_to_write_is_one_line(hub: LoopbackHub, repo: str, model_folder: Path) -> None:
    hub.create_repo(repo)
    with pytest.raises(HubError, match=r"^[^\n]*write access[^\n]*$") as refusal:
        publish(model_folder, repo, token=hub.reader_token)
    assert hub.reader_token not in str(refusal.value)


def test_model_and_processor_push_themselves(hub: LoopbackHub, repo: str, model_folder: Path) -> None:
    model, processor = load(model_folder)
    model.push_to_hub(repo, private=True, max_shard_size="300KB")
    processor.push_to_hub(repo)
    files = hub.repo(repo).files()
    assert hub.repo(repo).private and "model.safetensors.index.json" in files and "processing_mmfusion.py" in files
    assert all(map(torch.equal, embed(*load(repo)), embed(model, processor)))
    remote = AutoModel.from_pretrained(repo), AutoProcessor.from_pretrained(repo)
    assert isinstance(remote[0], MMFusionModel) and isinstance(remote[1], MMFusionProcessor)


# --- The query tower by itself -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        {"query_router": True, "matryoshka_dims": [16], "role_embedding": True},
        {"share_text_encoder": False, "projection_hidden_size": 8},
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_query_tower_gives_the_same_queries(config: dict[str, Any], dtype: torch.dtype, tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "whole", **config)
    model = MMFusionModel.from_pretrained(folder, dtype=dtype)
    processor = MMFusionProcessor.from_pretrained(folder)
    write_query_tower(model, processor, tmp_path / "query")
    tower, again = (
        MMFusionModel.from_pretrained(tmp_path / "query"),
        MMFusionProcessor.from_pretrained(tmp_path / "query"),
    )
    assert tower.dtype == dtype and tower.config.query_only
    assert torch.equal(embed_queries(tower, again), embed_queries(model, processor))
    assert tower.vision_model is None and tower.fusion is None
    # An index of the whole model's products takes queries from a model of the same fingerprint only.
    assert model_fingerprint(tower, again) == model_fingerprint(model, processor)
    assert tower.num_parameters() < 0.6 * model.num_parameters()
    assert set(tower.state_dict()) < set(model.state_dict())
    if dtype == torch.float32:
        narrow = {"truncate_dim": 16, **processor(queries=QUERIES)}
        assert torch.equal(tower.get_query_features(**narrow), model.eval().get_query_features(**narrow))


def test_the_query_tower_refuses_products_with_the_reason(model_folder: Path) -> None:
    model, processor = load(model_folder)
    tower = query_tower(model)
    texts = processor(products=[{"title": "a mug"}])
    pixels = torch.zeros(1, 3, 64, 64)
    for call in (
        lambda: tower.get_product_features(**texts),
        lambda: tower(product_input_ids=texts["input_ids"], product_attention_mask=texts["attention_mask"]),
        lambda: tower.get_vision_activations(pixels),
        lambda: tower.get_text_states(**texts, role="product"),
        lambda: tower.freeze_vision(1),
        lambda: tower.num_vision_blocks,
        lambda: list(tower.vision_prefix_state()),
    ):
        with pytest.raises(ValueError, match=r"query tower alone.*Load the whole model"):
            call()
    assert tower.get_input_embeddings() is tower.text_model.get_input_embeddings()
    with pytest.raises(ValueError, match="query_only"):
        MMFusionModel.from_backbones(model.text_model, model.vision_model, query_only=True)


def load(source: str | Path, **where: Any) -> tuple[Any, Any]:
    return MMFusionModel.from_pretrained(source, **where), MMFusionProcessor.from_pretrained(source, **where)
