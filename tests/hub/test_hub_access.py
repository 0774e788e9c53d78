"""The loopback Hub gives what the unpatched client asks for, refuses what a Hub refuses, and fails when told to."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from huggingface_hub import (
    HfApi,
    ModelCard,
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session
from loopback_hub.client import talk_to
from loopback_hub.server import LoopbackHub
from processes import run_to_end

pytestmark = pytest.mark.usefixtures("hub_client_environment")

WEIGHTS = bytes(range(256)) * 400
CARD = b"""---
license: apache-2.0
library_name: mmfusion
pipeline_tag: sentence-similarity
tags: [e-commerce, retrieval]
base_model: [org/text, org/vision]
base_model_relation: merge
language: [en, de]
model-index:
- name: tiny
  results:
  - task: {type: retrieval}
    dataset: {type: org/data, name: Data, split: test}
    metrics: [{type: ndcg_at_10, value: 0.5}]
---
# A card
"""


@pytest.fixture
def name(hub: LoopbackHub) -> str:
    """A repository with a regular file, an LFS file and a card."""
    name = hub.unique()
    hub.create_repo(name, {"config.json": b'{"a": 1}', "model.safetensors": WEIGHTS, "README.md": CARD})
    return name


def get(hub: LoopbackHub, name: str, path: str, span: str) -> tuple[int, bytes, str]:
    url = hf_hub_url(name, path)
    headers = {"Authorization": f"Bearer {hub.token}", "Range": f"bytes={span}"}
    answer = get_session().get(url, headers=headers)
    return answer.status_code, answer.content, answer.headers.get("Content-Range", "")


def test_metadata_of_a_file_names_commit_checksum_and_size(hub: LoopbackHub, name: str) -> None:
    commit = hub.repo(name).commit()
    small = get_hf_file_metadata(hf_hub_url(name, "config.json"))
    assert (small.commit_hash, small.size) == (commit.oid, 8)
    assert small.etag == commit.files["config.json"].git_oid and small.location == hf_hub_url(name, "config.json")
    large = get_hf_file_metadata(hf_hub_url(name, "model.safetensors"))
    assert (large.commit_hash, large.size) == (commit.oid, len(WEIGHTS))
    assert large.etag == commit.files["model.safetensors"].sha256
    assert "/cdn/" in large.location and not large.location.startswith(hub.endpoint)


@pytest.mark.parametrize("path", ["README.md", "model.safetensors"])
def test_a_range_is_cut_out_of_a_file(hub: LoopbackHub, name: str, path: str) -> None:
    content = hub.repo(name).files()[path]
    size = len(content)
    assert get(hub, name, path, "10-19") == (206, content[10:20], f"bytes 10-19/{size}")
    assert get(hub, name, path, "100-") == (206, content[100:], f"bytes 100-{size - 1}/{size}")
    assert get(hub, name, path, "-7") == (206, content[-7:], f"bytes {size - 7}-{size - 1}/{size}")
    assert get(hub, name, path, f"0-{size + 5}") == (206, content, f"bytes 0-{size - 1}/{size}")
    status, _, span = get(hub, name, path, f"{size}-")
    assert (status, span) == (416, f"bytes */{size}")


def test_a_download_that_is_cut_is_resumed_where_it_ended(
    hub: LoopbackHub, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The client keeps what came in whole chunks, of 10 MB usually.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    hub.cut_after(70_000, "/cdn/")
    hub.reset_counters()
    path = hf_hub_download(name, "model.safetensors")
    assert Path(path).read_bytes() == WEIGHTS
    statuses = [seen.status for seen in hub.requests if seen.path.startswith("/cdn/")]
    assert statuses == [0, 206] and hub.bytes_sent[f"{name}/model.safetensors"] == len(WEIGHTS)


def test_the_storage_sees_no_token_and_takes_none(hub: LoopbackHub, name: str) -> None:
    snapshot_download(name)
    stored = [seen for seen in hub.requests if seen.path.startswith("/cdn/")]
    assert [(seen.status, seen.user) for seen in stored] == [(200, None)]
    location = get_hf_file_metadata(hf_hub_url(name, "model.safetensors")).location
    assert get_session().get(location).status_code == 200
    assert get_session().get(location, headers={"Authorization": f"Bearer {hub.token}"}).status_code == 400
    assert get_session().get(location.split("?")[0]).status_code == 403


def test_bytes_are_counted_by_file(hub: LoopbackHub, name: str) -> None:
    snapshot_download(name, allow_patterns=["config.json", "*.safetensors"])
    sent = {key: count for key, count in hub.bytes_sent.items() if key.startswith(name)}
    assert sent == {f"{name}/config.json": 8, f"{name}/model.safetensors": len(WEIGHTS)}


def test_model_info_tells_files_and_card(hub: LoopbackHub, name: str) -> None:
    info = HfApi().model_info(name, files_metadata=True)
    assert info.sha == hub.repo(name).commit().oid and info.private is False and info.gated is False
    assert info.siblings is not None and info.card_data is not None
    files = {sibling.rfilename: sibling for sibling in info.siblings}
    assert set(files) == {".gitattributes", "README.md", "config.json", "model.safetensors"}
    lfs = files["model.safetensors"].lfs
    assert lfs is not None and (lfs.size, lfs.sha256) == (
        len(WEIGHTS),
        hub.repo(name).commit().files["model.safetensors"].sha256,
    )
    assert info.card_data.eval_results is not None and info.card_data.eval_results[0].metric_value == 0.5
    assert (info.library_name, info.pipeline_tag) == ("mmfusion", "sentence-similarity")
    assert set(HfApi().model_info(name, expand=["sha"]).__dict__["sha"]) <= set("0123456789abcdef")


def test_a_private_repository_is_not_found_by_others(hub: LoopbackHub, name: str) -> None:
    hub.repo(name).private = True
    for token, status in ((False, 401), (hub.reader_token, 404)):
        with pytest.raises(RepositoryNotFoundError) as failure:
            HfApi().model_info(name, token=token)
        assert failure.value.response.status_code == status
        with pytest.raises(RepositoryNotFoundError):
            hf_hub_download(name, "config.json", token=token)
    assert HfApi().model_info(name).private is True
    assert hf_hub_download(name, "config.json")


def test_an_unknown_repository_looks_like_a_private_one(hub: LoopbackHub) -> None:
    for token, status in ((False, 401), (hub.token, 404)):
        with pytest.raises(RepositoryNotFoundError) as failure:
            hf_hub_download("org/absent", "config.json", token=token)
        assert failure.value.response.status_code == status


def test_a_gated_repository_shows_itself_and_keeps_its_files(hub: LoopbackHub, name: str) -> None:
    hub.repo(name).gated = "manual"
    for token, status in ((False, 401), (hub.reader_token, 403)):
        assert HfApi().model_info(name, token=token).gated == "manual"
        with pytest.raises(GatedRepoError) as failure:
            hf_hub_download(name, "config.json", token=token)
        assert failure.value.response.status_code == status
    hub.repo(name).accepted_by.add(hub.reader)
    assert hf_hub_download(name, "config.json", token=hub.reader_token)


def test_tokens_are_checked(hub: LoopbackHub, name: str) -> None:
    with pytest.raises(HfHubHTTPError, match="Invalid"):
        HfApi().whoami(token="hf_nobody")
    with pytest.raises(HfHubHTTPError) as failure:
        hf_hub_download(name, "config.json", token="hf_nobody")
    assert failure.value.response.status_code == 401
    reader = HfApi(token=hub.reader_token)
    assert reader.whoami()["auth"]["accessToken"]["role"] == "read"
    with pytest.raises(HfHubHTTPError, match="write token"):
        reader.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=name)
    with pytest.raises(HfHubHTTPError, match="rights"):
        HfApi().create_repo(f"{hub.reader}/model")
    assert "x.txt" not in hub.repo(name).files() and not hub.has_repo(f"{hub.reader}/model")


def test_missing_revisions_and_files_have_errors_of_their_own(hub: LoopbackHub, name: str) -> None:
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download(name, "config.json", revision="absent")
    with pytest.raises(RevisionNotFoundError):
        HfApi().model_info(name, revision="absent")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(name, "absent.json")
    with pytest.raises(EntryNotFoundError):
        list(HfApi().list_repo_tree(name, "absent"))


def test_a_commit_is_found_by_its_name(hub: LoopbackHub, name: str) -> None:
    old = hub.repo(name).commit().oid
    hub.repo(name).plant({"config.json": b"new"})
    assert Path(hf_hub_download(name, "config.json")).read_bytes() == b"new"
    for revision in (old, old[:8]):
        assert Path(hf_hub_download(name, "config.json", revision=revision)).read_bytes() == b'{"a": 1}'


@pytest.mark.parametrize(
    ("metadata", "complaint"),
    [
        ("license: mine", "license"),
        ("pipeline_tag: shopping", "pipeline_tag"),
        ("language: English", "language"),
        ("base_model_relation: child", "base_model_relation"),
        ("tags: one", "tags"),
        ("datasets: [a/b/c]", "datasets"),
        ("model-index: [{name: x, results: [{task: {type: t}, dataset: {type: d}, metrics: []}]}]", "dataset.name"),
        ("license: [unclosed", "YAML parse error"),
    ],
)
def test_a_wrong_card_is_refused_with_the_field(metadata: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        HfApi()._validate_yaml(f"---\n{metadata}\n---\n# A card\n")


@pytest.mark.skipif(int(version("huggingface_hub").split(".")[0]) < 2, reason="1.x asks huggingface.co whatever is set")
def test_the_card_class_is_told_the_same() -> None:
    ModelCard(CARD.decode()).validate()
    wrong = ModelCard(CARD.decode().replace("apache-2.0", "mine"))
    with pytest.raises(ValueError, match="license"):
        wrong.validate()


def test_a_card_without_metadata_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        HfApi()._validate_yaml("# A card\n")


def test_hostile_names_can_be_planted(hub: LoopbackHub) -> None:
    name = hub.unique("hostile")
    hub.create_repo(name, {"../../escape.json": b"{}", "model.bin": b"pickle"})
    listed = {entry.path for entry in HfApi().list_repo_tree(name, recursive=True)}
    assert {"../../escape.json", "model.bin"} <= listed


def test_the_hub_fails_as_often_as_it_is_told(hub: LoopbackHub, name: str) -> None:
    hub.fail_next(2, status=500, method="GET", path_contains="/revision/")
    for _ in range(2):
        with pytest.raises(HfHubHTTPError, match="told to fail"):
            HfApi().model_info(name, revision="main")
        assert HfApi().model_info(name).sha
    assert HfApi().model_info(name, revision="main").sha


def test_a_hub_that_is_away_is_no_connection(
    name: str, hub_client_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LoopbackHub() as gone:
        talk_to(gone, hub_client_environment, monkeypatch)
    with pytest.raises(LocalEntryNotFoundError):
        hf_hub_download(name, "config.json")


def test_a_hub_that_gives_no_answer_hangs_up(hub: LoopbackHub, name: str) -> None:
    hub.cut_after(0, "/revision/")
    with pytest.raises(Exception, match="disconnected without sending a response"):
        HfApi().model_info(name, revision="main")
    assert [seen.status for seen in hub.requests if "/revision/" in seen.path] == [0]
    assert HfApi().model_info(name, revision="main").sha


def test_a_hub_that_stalls_is_given_up_and_found_again(hub: LoopbackHub, name: str) -> None:
    hub.stall(3.0, f"/models/{name}")
    with pytest.raises(Exception, match="timed out"):
        HfApi().model_info(name, timeout=0.2)
    assert HfApi().model_info(name).sha


def test_a_corrupted_download_differs_in_one_byte_and_passes_the_client(hub: LoopbackHub, name: str) -> None:
    hub.corrupt("model.safetensors")
    content = Path(hf_hub_download(name, "model.safetensors")).read_bytes()
    assert len(content) == len(WEIGHTS) and sum(a != b for a, b in zip(content, WEIGHTS, strict=True)) == 1
    hub.clear_faults()
    again = hf_hub_download(name, "model.safetensors", force_download=True)
    assert Path(again).read_bytes() == WEIGHTS


def test_a_truncated_download_is_noticed_by_the_client(
    hub: LoopbackHub, name: str, hub_client_environment: Path
) -> None:
    hub.truncate("model.safetensors", 50_000)
    with pytest.raises(OSError, match="Consistency check failed"):
        hf_hub_download(name, "model.safetensors")
    assert not list((hub_client_environment / "hub").rglob("model.safetensors"))


def test_a_sub_process_gets_a_clean_environment(hub: LoopbackHub, name: str, tmp_path: Path) -> None:
    os.environ["HF_HUB_ETAG_TIMEOUT"] = "1"
    try:
        with_token, without = hub.environment(tmp_path), hub.environment(tmp_path, token=False)
    finally:
        del os.environ["HF_HUB_ETAG_TIMEOUT"]
    assert with_token["HF_TOKEN"] == hub.token and "HF_TOKEN" not in without
    assert not {"HF_HUB_ETAG_TIMEOUT", "HF_HUB_OFFLINE", "http_proxy", "HTTPS_PROXY"} & set(with_token)
    code = f"from huggingface_hub import snapshot_download as pull; print(pull({name!r}))"
    done = run_to_end([sys.executable, "-c", code], env=without)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    assert tmp_path in folder.parents and (folder / "model.safetensors").read_bytes() == WEIGHTS
