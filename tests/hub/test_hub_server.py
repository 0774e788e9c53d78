"""The loopback Hub takes what the unpatched client sends: commits, LFS objects, branches, pull requests."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    constants,
    snapshot_download,
)
from huggingface_hub.errors import (
    BadRequestError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import close_session, get_session
from loopback_hub.client import talk_to
from loopback_hub.repository import Repository
from loopback_hub.server import LoopbackHub
from transformers.utils.hub import hf_api

pytestmark = pytest.mark.usefixtures("hub_client_environment")


@pytest.fixture
def api() -> HfApi:
    return HfApi()


@pytest.fixture
def stepwise_hub(hub_client_environment: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """A Hub with tiny parts and pages, in the place of the usual one."""
    with LoopbackHub(part_size=1000, large_from=5000, page_size=3) as hub:
        talk_to(hub, hub_client_environment, monkeypatch)
        yield hub
        close_session()


def push(api: HfApi, name: str, files: dict[str, bytes], **options: object) -> str:
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    commit = api.create_commit(name, operations, commit_message="Push", **options)  # type: ignore[call-overload]
    return str(commit.oid)


def post(hub: LoopbackHub, path: str, **options: object) -> object:
    headers = {"Authorization": f"Bearer {hub.token}"}
    return get_session().post(hub.endpoint + path, headers=headers, **options)  # type: ignore[arg-type]


def model(hub: LoopbackHub, api: HfApi, files: dict[str, bytes] | None = None) -> tuple[str, Repository]:
    name = str(api.create_repo(hub.unique()).repo_id)
    if files:
        push(api, name, files)
    return name, hub.repo(name)


def test_a_folder_comes_back_byte_by_byte(hub: LoopbackHub, api: HfApi, tmp_path: Path) -> None:
    files = {
        "config.json": b'{"a": 1}',
        "query/model.safetensors": os.urandom(70_000),
        "naïve name.txt": b"x" * 10,
        "empty.txt": b"",
    }
    folder = tmp_path / "folder"
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    name, repository = model(hub, api)
    api.upload_folder(repo_id=name, folder_path=folder, commit_message="All of it")
    assert repository.commits()[0].title == "All of it"
    assert {path: content for path, content in repository.files().items() if path != ".gitattributes"} == files
    stored = {path: blob.lfs for path, blob in repository.commit().files.items()}
    assert stored["query/model.safetensors"] and not stored["config.json"]
    pulled = Path(snapshot_download(name))
    assert {path: (pulled / path).read_bytes() for path in files} == files


def test_a_large_file_goes_up_in_parts(stepwise_hub: LoopbackHub, api: HfApi) -> None:
    content = {"model.safetensors": os.urandom(2500), "many.txt": os.urandom(5000), "few.txt": os.urandom(4999)}
    _, repository = model(stepwise_hub, api, content)
    puts = [seen for seen in stepwise_hub.requests if seen.method == "PUT"]
    assert len(puts) == 3 + 5, "parts of at most 1000 bytes; few.txt is small enough for the commit itself"
    assert {path: repository.files()[path] for path in content} == content
    assert stepwise_hub.bytes_received.total() > 12_000


def test_an_object_that_is_stored_is_not_sent_again(hub: LoopbackHub, api: HfApi) -> None:
    content = os.urandom(5000)
    name, repository = model(hub, api, {"model.safetensors": content})
    hub.reset_counters()
    push(api, name, {"copy.safetensors": content})
    assert not [seen for seen in hub.requests if seen.method == "PUT"]
    assert repository.files()["copy.safetensors"] == content


def test_a_changed_byte_is_refused_and_a_new_push_is_well(hub: LoopbackHub, api: HfApi) -> None:
    name, repository = model(hub, api, {"model.safetensors": b"old" * 100})
    before = repository.commit().oid
    new = {"model.safetensors": b"new" * 100, "config.json": b"{}"}
    hub.corrupt("/storage/", n=1)
    with pytest.raises(RuntimeError) as failure:
        push(api, name, new)
    assert "was uploaded as 300 bytes with SHA-256" in str(failure.value.__cause__)
    assert repository.commit().oid == before
    push(api, name, new)
    assert repository.files()["model.safetensors"] == b"new" * 100


def test_an_object_of_another_size_is_refused(hub: LoopbackHub, api: HfApi) -> None:
    name, repository = model(hub, api)
    content = b"five!"
    oid = hashlib.sha256(content).hexdigest()
    repository.large_files.receive(oid, content)
    answer = post(hub, f"/{name}.git/info/lfs/objects/verify", json={"oid": oid, "size": 6})
    assert answer.status_code == 400 and "of 6 bytes was uploaded as 5 bytes" in answer.text  # type: ignore[attr-defined]
    assert oid not in repository.large_files


def test_a_commit_cannot_name_an_object_that_was_never_sent(hub: LoopbackHub, api: HfApi) -> None:
    name, repository = model(hub, api)
    lines = '{"key": "header", "value": {"summary": "s"}}\n'
    lines += '{"key": "file", "value": {"path": "a.txt", "content": "YQ==", "encoding": "base64"}}\n'
    lines += '{"key": "lfsFile", "value": {"path": "b", "algo": "sha256", "oid": "%s", "size": 1}}\n' % ("0" * 64)
    answer = post(hub, f"/api/models/{name}/commit/main", content=lines.encode())
    assert answer.status_code == 400 and "never uploaded" in answer.text  # type: ignore[attr-defined]
    assert list(repository.files()) == [".gitattributes"], "nothing of a refused commit is kept"


def test_an_interrupted_push_leaves_the_previous_revision(hub: LoopbackHub, api: HfApi) -> None:
    old = {"config.json": b"{}" * 500, "model.safetensors": b"old" * 100}
    name, repository = model(hub, api, old)
    before = repository.commit().oid
    hub.cut_after(700, "/commit/")
    with pytest.raises(Exception, match="disconnect"):
        push(api, name, {"config.json": b"[]" * 900, "model.safetensors": b"new" * 100})
    assert repository.commit().oid == before == api.model_info(name).sha
    assert {path: repository.files()[path] for path in old} == old


def test_an_upload_that_is_cut_once_is_sent_again_by_the_client(hub: LoopbackHub, api: HfApi) -> None:
    content = os.urandom(200_000)
    hub.cut_after(100_000, "/storage/")
    _, repository = model(hub, api, {"model.safetensors": content})
    assert repository.files()["model.safetensors"] == content
    assert [seen.status for seen in hub.requests if seen.method == "PUT"] == [0, 200]


def test_a_commit_on_an_outdated_parent_is_refused(hub: LoopbackHub, api: HfApi) -> None:
    name, repository = model(hub, api)
    parent = repository.commit().oid
    push(api, name, {"a.txt": b"1"}, parent_commit=parent)
    with pytest.raises(HfHubHTTPError, match="A commit has happened since"):
        push(api, name, {"a.txt": b"2"}, parent_commit=parent)
    assert repository.files()["a.txt"] == b"1"


def test_files_and_folders_are_deleted_and_copied(hub: LoopbackHub, api: HfApi) -> None:
    content = {"a.txt": b"a", "b.bin": b"b", "old/c.txt": b"c", "old/d.txt": b"d"}
    name, repository = model(hub, api, content)
    operations: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete] = [
        CommitOperationCopy("a.txt", "new/a.txt"),
        CommitOperationCopy("b.bin", "new/b.bin"),
        CommitOperationDelete("a.txt"),
        CommitOperationDelete("old/"),
    ]
    api.create_commit(name, operations, commit_message="Move", commit_description="And tidy up")
    assert repository.commits()[0].message == "And tidy up"
    assert set(repository.files()) == {".gitattributes", "b.bin", "new/a.txt", "new/b.bin"}
    assert repository.files()["new/b.bin"] == b"b" and repository.commit().files["new/b.bin"].lfs


def test_a_pull_request_has_its_own_commits_until_it_is_merged(hub: LoopbackHub, api: HfApi) -> None:
    name, repository = model(hub, api, {"a.txt": b"main"})
    operations = [CommitOperationAdd("a.txt", b"proposed")]
    proposal = api.create_commit(name, operations, commit_message="Propose", create_pr=True)
    assert proposal.pr_num == 1 and proposal.pr_revision == "refs/pr/1"
    assert repository.files()["a.txt"] == b"main"
    second = push(api, name, {"b.txt": b"more"}, revision="refs/pr/1")
    assert repository.files("refs/pr/1")["b.txt"] == b"more"
    refs = api.list_repo_refs(name, include_pull_requests=True)
    assert refs.pull_requests is not None
    assert [(ref.ref, ref.target_commit) for ref in refs.pull_requests] == [("refs/pr/1", second)]
    assert api.hf_hub_download(name, "b.txt", revision="refs/pr/1")
    assert [found.title for found in api.get_repo_discussions(name)] == ["Propose"]
    push(api, name, {"c.txt": b"meanwhile"})
    api.merge_pull_request(name, 1)
    assert api.get_discussion_details(name, 1).status == "merged"
    content = {path: text for path, text in repository.files().items() if path.endswith(".txt")}
    assert content == {"a.txt": b"proposed", "b.txt": b"more", "c.txt": b"meanwhile"}


def test_branches_are_made_written_to_listed_and_deleted(hub: LoopbackHub, api: HfApi) -> None:
    name, repository = model(hub, api, {"a.txt": b"1"})
    first = repository.commit().oid
    push(api, name, {"a.txt": b"2"})
    api.create_branch(name, branch="runs/one", revision=first)
    api.create_branch(name, branch="runs/one", exist_ok=True)
    with pytest.raises(HfHubHTTPError, match="already exists"):
        api.create_branch(name, branch="runs/one")
    push(api, name, {"last.ckpt": b"state"}, revision="runs/one")
    assert repository.files("runs/one") == {**repository.files(first), "last.ckpt": b"state"}
    assert repository.files()["a.txt"] == b"2" and "last.ckpt" not in repository.files()
    assert {ref.name for ref in api.list_repo_refs(name).branches} == {"main", "runs/one"}
    api.delete_branch(name, branch="runs/one")
    assert [ref.ref for ref in api.list_repo_refs(name).branches] == ["refs/heads/main"]
    with pytest.raises(RevisionNotFoundError):
        push(api, name, {"a.txt": b"3"}, revision="runs/one")


def test_tags_stay_where_they_are_put(hub: LoopbackHub, api: HfApi) -> None:
    name, repository = model(hub, api, {"a.txt": b"1"})
    api.create_tag(name, tag="v1.0")
    push(api, name, {"a.txt": b"2"})
    assert repository.files("v1.0")["a.txt"] == b"1"
    assert [ref.name for ref in api.list_repo_refs(name).tags] == ["v1.0"]
    api.delete_tag(name, tag="v1.0")
    assert api.list_repo_refs(name).tags == []


def test_a_squashed_branch_keeps_its_files_and_one_commit(hub: LoopbackHub, api: HfApi) -> None:
    name, repository = model(hub, api)
    oldest = push(api, name, {"a.bin": b"1"})
    push(api, name, {"a.bin": b"2", "b.txt": b"b"})
    files = repository.files()
    api.super_squash_history(name, commit_message="All in one")
    assert [commit.title for commit in api.list_repo_commits(name)] == ["All in one"]
    assert repository.files() == files
    with pytest.raises(RevisionNotFoundError):
        api.model_info(name, revision=oldest)


def test_listings_come_in_pages(stepwise_hub: LoopbackHub, api: HfApi) -> None:
    content = {f"folder/{number}.txt": b"%d" % number for number in range(7)}
    name, _ = model(stepwise_hub, api, content)
    for number in range(5):
        push(api, name, {"more.bin": b"more %d" % number})
    entries = list(api.list_repo_tree(name, recursive=True))
    assert [entry.path for entry in entries] == [".gitattributes", "folder", *content, "more.bin"]
    assert [entry.path for entry in api.list_repo_tree(name)] == [".gitattributes", "folder", "more.bin"]
    assert [entry.path for entry in api.list_repo_tree(name, "folder")] == list(content)
    assert len(api.list_repo_commits(name)) == 7
    large = entries[-1]
    assert large.lfs is not None and large.lfs.sha256 == hashlib.sha256(b"more 4").hexdigest()  # type: ignore[union-attr]
    known = api.get_paths_info(name, ["folder", "more.bin", "absent"], expand=True)
    assert [entry.path for entry in known] == ["folder", "more.bin"]
    assert known[1].last_commit is not None and known[1].last_commit.title == "Push"


def test_a_repository_is_made_once_made_private_and_removed(hub: LoopbackHub, api: HfApi) -> None:
    name = hub.unique()
    assert str(api.create_repo(name, private=True)) == f"{hub.endpoint}/{name}"
    assert str(api.create_repo(name, exist_ok=True)) == f"{hub.endpoint}/{name}"
    assert hub.repo(name).private, "exist_ok changes nothing"
    with pytest.raises(HfHubHTTPError, match="already created"):
        api.create_repo(name)
    api.update_repo_settings(name, private=False, gated="manual")
    assert not hub.repo(name).private and hub.repo(name).gated == "manual"
    own = api.create_repo("without-a-namespace").repo_id
    assert own == f"{hub.user}/without-a-namespace" and hub.has_repo(own)
    api.delete_repo(name)
    assert not hub.has_repo(name)
    api.delete_repo(name, missing_ok=True)
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo(name)


def test_a_data_set_has_a_place_of_its_own(hub: LoopbackHub, api: HfApi) -> None:
    name = hub.unique("data")
    api.create_repo(name, repo_type="dataset")
    operations = [CommitOperationAdd("data.parquet", b"rows"), CommitOperationAdd("notes.txt", b"notes")]
    api.create_commit(name, operations, commit_message="Rows", repo_type="dataset")
    pulled = Path(snapshot_download(name, repo_type="dataset"))
    assert (pulled / "data.parquet").read_bytes() == b"rows"
    assert not hub.has_repo(name)
    with pytest.raises(RepositoryNotFoundError):
        api.model_info(name)


@pytest.mark.parametrize("path", ["../escape.txt", "a/../../b", "/root.txt", ".git/config", "a//b", "a\\b"])
def test_a_path_that_leads_elsewhere_is_refused(hub: LoopbackHub, api: HfApi, path: str) -> None:
    name, repository = model(hub, api)
    value = {"path": path, "content": "YQ==", "encoding": "base64"}
    lines = [{"key": "header", "value": {"summary": "s"}}, {"key": "file", "value": value}]
    body = "\n".join(json.dumps(line) for line in lines).encode()
    answer = post(hub, f"/api/models/{name}/commit/main", content=body)
    assert answer.status_code == 400 and "Invalid path" in answer.text  # type: ignore[attr-defined]
    assert list(repository.files()) == [".gitattributes"]


def test_a_card_with_wrong_metadata_is_refused_in_a_commit(
    hub: LoopbackHub, api: HfApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, repository = model(hub, api)
    # The client asks /api/validate-yaml first; the Hub must not rely on that.
    monkeypatch.setattr(api, "_validate_yaml", lambda *arguments, **options: None)
    with pytest.raises(BadRequestError, match='"license" must be one of'):
        push(api, name, {"README.md": b"---\nlicense: mine\n---\n", "a.txt": b"a"})
    assert list(repository.files()) == [".gitattributes"]


def test_the_client_is_the_unpatched_one(hub: LoopbackHub, api: HfApi) -> None:
    assert constants.ENDPOINT == hub.endpoint == api.endpoint
    assert api.whoami()["name"] == hub.user


def test_a_client_that_transformers_made_before_does_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = hf_api()
    with LoopbackHub() as another, monkeypatch.context() as patch:
        talk_to(another, tmp_path, patch)
        assert hf_api().endpoint == another.endpoint
    assert hf_api() is before


def test_a_hub_runs_by_itself_until_it_is_interrupted() -> None:
    command = [sys.executable, "-m", "loopback_hub"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        export, *settings = process.stdout.readline().split()
        values = dict(setting.split("=", 1) for setting in settings)
        assert export == "export" and Path(values["HF_HOME"]).is_dir()
        account = HfApi(endpoint=values["HF_ENDPOINT"], token=values["HF_TOKEN"]).whoami()
        process.send_signal(signal.SIGINT)
    assert account["name"] == "ada" and process.returncode == 0 and not Path(values["HF_HOME"]).exists()
