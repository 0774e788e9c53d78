"""Checkpoints on the Hub: pushed in the background whatever the Hub does, and continued exactly elsewhere."""

import hashlib
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from commands import command, config_of, main_of
from loopback_hub.server import LoopbackHub
from safetensors.torch import load_file

from mmfusion import MMFusionModel
from mmfusion.data.toy_catalogue import write_toy_catalogue
from mmfusion.model.errors import HubError
from mmfusion.stages import Lora, Optimization
from mmfusion.training import Hardware, HubCheckpoints, PushCheckpoints, Run, RunError, continue_from_hub
from mmfusion.training.background_push import BackgroundPush, Snapshot
from mmfusion.training.hub_checkpoints import portable_catalogue, portable_record, without_tokens
from mmfusion.training.hub_resume import HubAddress

BRANCH = "checkpoints"
# Checkpoints of steps 3 and 6 of 8: what is on the Hub at the end is a checkpoint that something is left to do from.
TRAINING: dict[str, Any] = {"steps": 8, "batch_size": 6, "checkpoint_every": 3, "validate_every": 4}
pytestmark = pytest.mark.usefixtures("hub_client_environment")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert not [name for name in first if not torch.equal(first[name], second[name])]


def move_away(folder: Path) -> Path:
    """Hides a folder under another name, so that whatever continues elsewhere cannot read it."""
    return folder.rename(folder.with_name(f"another machine's {folder.name}"))


@pytest.fixture(scope="module")
def trained(running_hub: LoopbackHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A run of stage 1 that pushed to the Hub: its folder, and the files of its branch."""
    from loopback_hub.client import talk_to

    running_hub.reset()
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        talk_to(running_hub, folder / "home", patch)
        checkpoints = HubCheckpoints("org/run")
        command("stage1")(output=str(folder / "run"), num_products=120, **TRAINING, hub=checkpoints)
    repository = running_hub.repo("org/run")
    yield SimpleNamespace(folder=move_away(folder / "run"), files=repository.files(BRANCH), private=repository.private)


@pytest.fixture
def on_hub(trained: SimpleNamespace, hub: LoopbackHub) -> Callable[..., Any]:
    """Puts the files of that run, or some of them changed, onto the Hub again."""

    def put(name: str = "org/run", **changed: bytes | None) -> Any:
        repository = hub.create_repo(name)
        repository.create_branch(BRANCH, "main")
        files = trained.files | {path.replace("__", "."): content for path, content in changed.items()}
        repository.plant({path: content for path, content in files.items() if content is not None}, revision=BRANCH)
        return repository

    return put


def record_of(files: dict[str, bytes], **changed: Any) -> bytes:
    return json.dumps({**json.loads(files["run.json"]), **changed}).encode()


# Pushed


def test_training_pushes_last_and_best_with_what_resuming_needs(trained: SimpleNamespace) -> None:
    files = trained.files
    assert trained.private
    assert {"run.json", "last.ckpt", "model/config.json", "model/tokenizer.json", "best/model.safetensors"} <= set(
        files
    )
    assert files["last.ckpt"] == (trained.folder / "checkpoints" / "step=6.ckpt").read_bytes()
    best = json.loads(files["best/best.json"])
    record = json.loads(files["run.json"])
    assert record["checkpoint"]["step"] == 6 and best["step"] in (4, 8) and 0 < best["val/ndcg@10"] <= 1
    assert not (trained.folder / "hub_pending").exists()


def test_what_is_pushed_names_neither_folders_of_this_machine_nor_a_token(
    trained: SimpleNamespace, hub: LoopbackHub
) -> None:
    for name, content in trained.files.items():
        for secret in (trained.folder.parent, hub.token):
            assert str(secret).encode() not in content, name
    for file in trained.folder.rglob("*"):
        assert not file.is_file() or hub.token.encode() not in file.read_bytes(), file


def test_the_best_model_loads_by_name(on_hub: Callable[..., Any], trained: SimpleNamespace) -> None:
    on_hub()
    model = MMFusionModel.from_pretrained("org/run", revision=BRANCH, subfolder="best")
    assert model.config.model_type == "mmfusion"
    if json.loads(trained.files["best/best.json"])["step"] == TRAINING["steps"]:
        assert torch.equal(model.state_dict()["logit_scale"], weights(trained.folder)["logit_scale"])


# Continued elsewhere


def test_stage_1_continued_in_a_fresh_folder_ends_with_the_same_weights(
    trained: SimpleNamespace, on_hub: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    on_hub()
    there = str(tmp_path / "run")
    command("stage1")(output=there, resume="hub:org/run", hardware=Hardware(num_workers=1), steps=TRAINING["steps"])
    assert "resuming from step=6" in capsys.readouterr().out
    assert_same_weights(trained.folder, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["complete"] and record["arguments"]["hardware"]["num_workers"] == 1
    command("stage1")(output=there, resume="hub:org/run", hardware=Hardware(num_workers=1))
    assert "is complete" in capsys.readouterr().out


def test_adapters_continue_in_a_fresh_folder_and_the_best_model_has_them_merged(
    trained: SimpleNamespace, hub: LoopbackHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora, steps = Lora(rank=2, targets="all-linear", dropout=0.1), {"steps": 5, "validate_every": 2}
    there = short(trained, tmp_path / "there") | steps | {"lora": lora}
    command("stage2")(**there, hub=HubCheckpoints("org/lora"))
    best = MMFusionModel.from_pretrained("org/lora", revision=BRANCH, subfolder="best")
    assert best.state_dict().keys() == MMFusionModel.from_pretrained(tmp_path / "there").state_dict().keys()
    move_away(tmp_path / "there")
    again = {"output": str(tmp_path / "here"), "resume": "hub:org/lora", "catalogue": there["catalogue"]}
    command("stage2")(**again)
    assert "resuming from step=4" in capsys.readouterr().out
    assert_same_weights(tmp_path / "another machine's there", tmp_path / "here")


def test_stage_2_with_frozen_encoders_continues_exactly_without_its_base(
    trained: SimpleNamespace, hub: LoopbackHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, catalogue = tmp_path / "base", tmp_path / "catalogue"
    shutil.copytree(trained.folder, base, ignore=shutil.ignore_patterns("run.json", "cache", "checkpoints"))
    write_toy_catalogue(catalogue, num_products=120)
    frozen = Optimization(text_learning_rate=0.0, vision_learning_rate=0.0)
    chosen = {"fusion": "gated", "query_router": True, "optimization": frozen, "extra_products": 4}
    whole = {"base": str(base), "catalogue": str(catalogue), **chosen, **TRAINING}
    command("stage2")(output=str(tmp_path / "whole"), **whole, hub=HubCheckpoints("org/second", every=4, squash=True))
    assert len(hub.repo("org/second").commits(BRANCH)) == 1
    move_away(base), move_away(catalogue), move_away(tmp_path / "whole")
    command("stage2")(output=str(tmp_path / "run"), resume="hub:org/second@checkpoints")
    assert "resuming from step=6" in capsys.readouterr().out
    assert_same_weights(tmp_path / "another machine's whole", tmp_path / "run")


def test_a_continuation_goes_on_from_its_own_folder_without_the_hub(
    on_hub: Callable[..., Any], hub: LoopbackHub, tmp_path: Path
) -> None:
    on_hub()
    first = fetch(tmp_path / "run", "hub:org/run")
    hub.reset()
    assert fetch(tmp_path / "run", "hub:org/run") == first and not hub.requests
    with pytest.raises(RunError, match="--steps is 9"):
        fetch(tmp_path / "run", "hub:org/run", steps=9)
    with pytest.raises(RunError, match="holds something other than the run hub:org/other@checkpoints"):
        fetch(tmp_path / "run", "hub:org/other")


class InterruptedHereError(Exception):
    """What ends a training in the middle here."""


def interrupted(*_: Any) -> None:
    raise InterruptedHereError


def test_a_checkpoint_of_someone_else_needs_a_flag(
    on_hub: Callable[..., Any], hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_hub("grace/run")
    on_hub("bob/run")
    for token, repo in ((hub.reader_token, "grace/run"), (hub.token, "bob/run"), ("", "grace/run")):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(HubError, match=r"belongs to .* cannot run code.*--trust_checkpoint true"):
            fetch(tmp_path / "run", f"hub:{repo}")
    assert not list(tmp_path.glob("*run*"))
    assert fetch(tmp_path / "run", "hub:grace/run", trust_checkpoint=True)["steps"] == TRAINING["steps"]


def fetch(output: Path, resume: str, **given: Any) -> dict[str, Any]:
    """What stage 1 does first: puts the run into place, and gives the arguments that it continues with."""
    return vars(continue_from_hub("stage1", config_of("stage1", output=str(output), resume=resume, **given)))


class Evil:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.folder,)


def test_a_checkpoint_that_holds_code_is_refused_and_runs_none(
    trained: SimpleNamespace, on_hub: Callable[..., Any], tmp_path: Path
) -> None:
    torch.save({"state_dict": {}, "callbacks": Evil(tmp_path / "ran")}, tmp_path / "evil.ckpt")
    content = (tmp_path / "evil.ckpt").read_bytes()
    about = {"step": 6, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    on_hub(last__ckpt=content, run__json=record_of(trained.files, checkpoint=about))
    with pytest.raises(RunError, match=r"last.ckpt holds more than tensors and plain values, which could run code"):
        fetch(tmp_path / "run", "hub:org/run")
    on_hub("org/good")
    arguments = fetch(tmp_path / "local", "hub:org/good")
    shutil.copyfile(tmp_path / "evil.ckpt", tmp_path / "local" / "checkpoints" / "step=6.ckpt")
    with pytest.raises(RunError, match=r"step=6.ckpt holds more than tensors"):
        command("stage1")(**arguments)
    assert not (tmp_path / "ran").exists() and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "text", ["org/run", "hub:run", "hub:org/run@", "hub:org/run/sub", "hub:../run", "hub:org/r@../x"]
)
def test_a_bad_address_is_refused(text: str) -> None:
    with pytest.raises(HubError, match=r"is not an address on the Hub; give hub:org/run, or hub:org/run@revision"):
        HubAddress.parse(text)


def test_an_address_names_a_branch_by_default() -> None:
    assert HubAddress.parse("hub:org/run") == HubAddress("org/run", BRANCH)
    assert HubAddress.parse("hub:org/run@refs/pr/1").revision == "refs/pr/1"


def test_an_older_commit_continues_from_its_own_step(
    trained: SimpleNamespace, on_hub: Callable[..., Any], tmp_path: Path
) -> None:
    repository = on_hub()
    older = repository.commit(BRANCH).oid
    repository.plant({"last.ckpt": b"newer", "run.json": b"{}"}, revision=BRANCH)
    fetch(tmp_path / "run", f"hub:org/run@{older}")
    assert (tmp_path / "run" / "checkpoints" / "step=6.ckpt").read_bytes() == trained.files["last.ckpt"]


def test_what_is_not_there_is_said_in_one_line(on_hub: Callable[..., Any], hub: LoopbackHub, tmp_path: Path) -> None:
    on_hub()
    for address, text in (
        ("hub:org/nothing", "org/nothing does not exist"),
        ("hub:org/run@nowhere", "org/run has no revision 'nowhere'"),
        ("hub:org/run@main", r"hub:org/run@main has no checkpoint \(run.json and last.ckpt missing\); name a"),
    ):
        with pytest.raises(HubError, match=text) as refused:
            fetch(tmp_path / "run", address)
        assert "\n" not in str(refused.value) and not list(tmp_path.glob("*run*"))


def test_a_refusal_is_one_line_on_the_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from mmfusion.commands import run_command

    command = ["stage2.py", "--resume", "hub:org/nothing", "--output", str(tmp_path / "run"), "--hub.squash", "true"]
    monkeypatch.setattr("sys.argv", [*command, "--hub.repo", "org/run", "--trust_checkpoint", "true"])
    with pytest.raises(SystemExit, match=r"^HubError: org/nothing does not exist[^\n]*$"):
        run_command(main_of("stage2"))


def test_damage_on_the_way_is_noticed(on_hub: Callable[..., Any], hub: LoopbackHub, tmp_path: Path) -> None:
    on_hub()
    hub.corrupt("last.ckpt", n=2)
    with pytest.raises(HubError, match=r"arrived damaged, twice"):
        fetch(tmp_path / "run", "hub:org/run")
    hub.clear_faults()
    # What the cache holds now is damaged, and is fetched anew.
    assert fetch(tmp_path / "run", "hub:org/run")["steps"] == TRAINING["steps"]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"steps": 9}, "--steps is 9, but hub:org/run@checkpoints was started with 8; leave it out"),
        ({"optimization": Optimization()}, r"--optimization\.\w*learning_rate is "),
        ({"base": "outputs/other"}, "--base 'outputs/other' is not for a run that continues"),
    ],
)
def test_an_argument_that_contradicts_the_run_is_refused(
    on_hub: Callable[..., Any], tmp_path: Path, given: dict[str, Any], text: str
) -> None:
    on_hub()
    with pytest.raises(RunError, match=text):
        fetch(tmp_path / "run", "hub:org/run", **given)
    assert not (tmp_path / "run").exists()


def test_records_of_other_recipes_and_versions_are_refused(
    trained: SimpleNamespace, on_hub: Callable[..., Any], tmp_path: Path
) -> None:
    arguments = json.loads(trained.files["run.json"])["arguments"]
    for number, (changed, text) in enumerate(
        [
            ({"recipe": "stage2"}, "is a run of stage2, not stage1; continue it with that command"),
            ({"arguments": {**arguments, "magic": 1}}, "arguments that this command does not take.*magic"),
            (
                {"arguments": {**arguments, "steps": "many"}},
                r"arguments that this command does not take .*steps.*many.*name another revision",
            ),
            ({"checkpoint": {}}, "is not the record of a checkpoint"),
            ({"catalogue": {}}, "give --catalogue with the same products, queries and judgements"),
        ]
    ):
        on_hub(f"org/run{number}", run__json=record_of(trained.files, **changed))
        with pytest.raises((RunError, HubError), match=text):
            fetch(tmp_path / "run", f"hub:org/run{number}")
        assert not (tmp_path / "run").exists()


def test_another_catalogue_and_a_full_output_folder_are_refused(on_hub: Callable[..., Any], tmp_path: Path) -> None:
    on_hub()
    other = write_toy_catalogue(tmp_path / "catalogue", num_products=120, seed=1)
    with pytest.raises(RunError, match="is not the one that this run started with"):
        command("stage1")(output=str(tmp_path / "run"), resume="hub:org/run", catalogue=str(other))
    with pytest.raises(RunError, match="holds something other than the run hub:org/run@checkpoints"):
        fetch(other, "hub:org/run")


def test_files_beside_the_known_ones_are_not_fetched(
    on_hub: Callable[..., Any], hub: LoopbackHub, tmp_path: Path
) -> None:
    on_hub(**{"model/evil__py": b"1 / 0", "model/../escape__json": b"{}", "model/weights__bin": b"pickle"})
    fetch(tmp_path / "run", "hub:org/run")
    assert not {"evil.py", "escape.json", "weights.bin"} & {path.name for path in tmp_path.rglob("*")}


# Whatever the Hub does


def short(trained: SimpleNamespace, output: Path) -> dict[str, Any]:
    """A training of few steps from the trained model."""
    catalogue = str(trained.folder / "toy_catalogue")
    sizes = {"steps": 4, "batch_size": 6, "checkpoint_every": 2, "validate_every": 4}
    return {"base": str(trained.folder), "catalogue": catalogue, "output": str(output), "fusion": "gated", **sizes}


def test_training_ends_well_while_the_hub_is_away(
    trained: SimpleNamespace, hub: LoopbackHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.fail_next(10**6, status=503)
    with caplog.at_level(logging.WARNING, logger="mmfusion"):
        command("stage2")(**short(trained, tmp_path / "run"), hub=HubCheckpoints("org/away", last_attempt=60))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["complete"]
    said = [record.getMessage() for record in caplog.records if record.name.startswith("mmfusion")]
    assert any("that was the last attempt: The Hub at" in line and "(503)" in line for line in said)
    assert any("not all checkpoints reached org/away@checkpoints; the last one there is none" in line for line in said)
    assert not [line for line in said if "\n" in line or hub.token in line]


def test_pushes_succeed_once_the_hub_is_back(
    trained: SimpleNamespace, hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.fail_next(10**6, status=503)
    failed, explained = threading.Event(), PushCheckpoints._reason

    def back_after_a_failure(callback: PushCheckpoints, error: Exception) -> str:
        hub.clear_faults()
        failed.set()
        return explained(callback, error)

    monkeypatch.setattr(PushCheckpoints, "_reason", back_after_a_failure)
    command("stage2")(**short(trained, tmp_path / "run"), hub=HubCheckpoints("org/back"))
    assert failed.is_set()
    files = hub.repo("org/back").files(BRANCH)
    assert files["last.ckpt"] == (tmp_path / "run" / "checkpoints" / "step=4.ckpt").read_bytes()
    assert json.loads(files["best/best.json"])["step"] == 4


def test_training_does_not_wait_for_a_slow_hub(
    trained: SimpleNamespace, hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained_to_the_end, waited = threading.Event(), []
    send, end = PushCheckpoints._send, PushCheckpoints.on_fit_end

    def slow(callback: PushCheckpoints, snapshot: Snapshot) -> None:
        # A training that waited for its first push would never set the event.
        waited.append(trained_to_the_end.wait(600))
        send(callback, snapshot)

    def at_the_end(callback: PushCheckpoints, *arguments: Any) -> None:
        trained_to_the_end.set()
        end(callback, *arguments)

    monkeypatch.setattr(PushCheckpoints, "_send", slow)
    monkeypatch.setattr(PushCheckpoints, "on_fit_end", at_the_end)
    command("stage2")(**short(trained, tmp_path / "run"), hub=HubCheckpoints("org/slow"))
    assert waited and all(waited)
    # Lightning has deleted none of them meanwhile: what arrived is whole.
    assert json.loads(hub.repo("org/slow").files(BRANCH)["run.json"])["checkpoint"]["step"] == 4


def test_an_interrupted_training_pushes_what_it_has(
    trained: SimpleNamespace, hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmfusion.stages.Stage2.on_validation_epoch_start", interrupted)
    with pytest.raises(InterruptedHereError):
        command("stage2")(**short(trained, tmp_path / "run"), hub=HubCheckpoints("org/cut"))
    assert json.loads(hub.repo("org/cut").files(BRANCH)["run.json"])["checkpoint"]["step"] == 4


# The thread


def snapshot(folder: Path, kind: str, step: int) -> Snapshot:
    place = folder / f"{kind}-{step}"
    place.mkdir(parents=True)
    return Snapshot(kind, step, place, {})


def test_at_most_one_snapshot_of_a_kind_waits(tmp_path: Path) -> None:
    began, go, arrived = threading.Event(), threading.Event(), []

    def push(given: Snapshot) -> None:
        began.set()
        assert go.wait(600)
        arrived.append((given.kind, given.step))

    thread = BackgroundPush(push, str)
    thread.offer(snapshot(tmp_path, "last", 1))
    assert began.wait(600)
    for step in (2, 3, 4):
        thread.offer(snapshot(tmp_path, "last", step))
    thread.offer(snapshot(tmp_path, "best", 3))
    go.set()
    assert thread.close(600)
    assert arrived == [("last", 1), ("last", 4), ("best", 3)] and thread.pushed == {"last": 4, "best": 3}
    assert not list(tmp_path.iterdir())


def test_a_failure_is_tried_again_with_the_newest(tmp_path: Path) -> None:
    began, offered, failed, tried = threading.Event(), threading.Event(), threading.Event(), []

    def push(given: Snapshot) -> None:
        tried.append((given.kind, given.step))
        began.set()
        if len(tried) == 1:
            assert offered.wait(600)
        if len(tried) < 3:
            raise OSError("away")

    def reason(error: Exception) -> str:
        if len(tried) == 2:
            failed.set()
        return str(error)

    thread = BackgroundPush(push, reason)
    thread.offer(snapshot(tmp_path, "last", 1))
    assert began.wait(600)
    thread.offer(snapshot(tmp_path, "last", 2))
    offered.set()
    assert failed.wait(600)
    thread.offer(snapshot(tmp_path, "best", 3))
    assert thread.close(600)
    assert tried[-2:] == [("last", 2), ("best", 3)] or tried[-2:] == [("best", 3), ("last", 2)]
    assert thread.pushed == {"last": 2, "best": 3} and not list(tmp_path.iterdir())


def test_what_fails_at_the_end_has_not_arrived(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def push(_: Snapshot) -> None:
        raise OSError("away")

    thread = BackgroundPush(push, str)
    thread.offer(snapshot(tmp_path, "last", 1))
    assert not thread.close(600) and not thread.pushed
    assert "last checkpoint of step 1 not pushed, that was the last attempt: away" in caplog.text
    assert not list(tmp_path.iterdir())


def test_a_push_that_hangs_does_not_keep_training_from_ending(tmp_path: Path) -> None:
    never, began = threading.Event(), threading.Event()

    def hang(_: Snapshot) -> None:
        began.set()
        never.wait(600)

    thread = BackgroundPush(hang, str)
    thread.offer(snapshot(tmp_path, "last", 1))
    assert began.wait(600)
    assert not thread.close(0.0) and thread._thread.daemon
    never.set()


# Settings


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"repo": "run"}, "--hub.repo is 'run'; give a repository with its owner, like org/run"),
        ({"repo": "org/run/x"}, "--hub.repo is 'org/run/x'; give a repository with its owner"),
        ({"repo": "org/run", "branch": "-x"}, "--hub.branch is '-x'; give the name of a branch, like checkpoints"),
        ({"repo": "org/run", "every": 0}, "--hub.every is 0; give at least 1 optimizer step"),
        ({"repo": "org/run", "last_attempt": -1}, "--hub.last_attempt is -1; give at least 0 seconds"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_training(
    tmp_path: Path, settings: dict[str, Any], text: str
) -> None:
    with pytest.raises(HubError, match=text):
        PushCheckpoints(Run(tmp_path, {}), HubCheckpoints(**settings))


def test_pushing_without_a_token_is_refused_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(HubError, match="no token to push to org/run; log in with"):
        PushCheckpoints(Run(tmp_path, {}), HubCheckpoints("org/run"))


def test_other_ranks_push_nothing(tmp_path: Path, hub: LoopbackHub) -> None:
    callback = PushCheckpoints(Run(tmp_path, {}), HubCheckpoints("org/run"))
    module: Any = SimpleNamespace(model=torch.nn.Linear(2, 2))
    rank: Any = SimpleNamespace(
        is_global_zero=False,
        global_step=5,
        callback_metrics={"val/fused/ndcg@10": 0.5},
        lightning_module=module,
        datamodule=SimpleNamespace(processor=None),
    )
    callback.on_fit_start(rank, module)
    callback.on_train_batch_start(rank)
    callback.on_validation_end(rank, module)
    callback.on_fit_end(rank, module)
    assert not hub.requests and not list(tmp_path.iterdir())


def test_a_record_travels_without_places_of_its_machine(tmp_path: Path) -> None:
    arguments = {
        "base": str(tmp_path),
        "catalogue": str(tmp_path),
        "feature_cache": "/x",
        "hard_negatives": "/y",
        "log_to": "wandb",
        "steps": 3,
    }
    record = {"recipe": "stage1", "arguments": arguments, "catalogue": str(tmp_path), "started_at": 0.0}
    portable = portable_record(record)
    assert portable["arguments"] == {"steps": 3} and str(tmp_path) not in json.dumps(portable)
    assert portable_record({**record, "arguments": {"base": "org/base"}})["base_reference"] == "org/base"
    for source in (str(tmp_path), "s3://key:secret@bucket/x", "https://host/x?token=1", "file:///x", "outputs", None):
        assert portable_catalogue(source) == {}
    for source in ("org/catalogue", "s3://bucket/catalogue"):
        assert portable_catalogue(source) == {"source": source}


def test_tokens_and_signatures_are_blotted_out(hub: LoopbackHub) -> None:
    text = without_tokens(f"no {hub.token} at https://cdn/x?signature=abc for hf_AbCdEfGhIjKl\nmore")
    assert text == "no *** at https://cdn/x?*** for ***"
