"""Embedding by Ray: the vectors of Lightning, bit for bit, whatever is killed."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import processes
import pytest
from commands import as_if_trained
from processes import run_to_end

from mmfusion.commands.embed import Config, load_job, main
from mmfusion.data.toy_catalogue import write_toy_catalogue
from mmfusion.embedding import EmbeddingJob
from mmfusion.embedding.engine_ray import (
    MOST_TRIES,
    RayJobError,
    ShardWorker,
    _warn_of_waiting,
    as_item,
    forget_tries,
    import_ray,
    ray_cluster,
)
from mmfusion.extras import MissingLibraryError
from mmfusion.training import Hardware, sources

CHECKOUT = Path(__file__).resolve().parents[2]
PRODUCTS, SHARD = 96, 3
ENV = {**os.environ, "PYTHONPATH": str(CHECKOUT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a catalogue and a model."""
    folder = tmp_path_factory.mktemp("embedding_ray")
    write_toy_catalogue(folder / "catalogue", num_products=PRODUCTS)
    as_if_trained(sources.starting_base(None, folder))
    return folder


@pytest.fixture(scope="module")
def finished(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Embeddings by Lightning."""
    output = tmp_path_factory.mktemp("lightning") / "embeddings"
    embed(place, output)
    return output


@pytest.fixture(scope="module")
def started() -> Iterator[None]:
    """Ray on this machine, once for all runs in this process."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENV.items():
            patch.setenv(name, value)
        patch.delenv("RAY_ADDRESS", raising=False)
        with ExitStack() as running:
            # Ray gives its processes 30 seconds to start, which a busy machine may need for their first imports.
            for tries_left in (2, 1, 0):
                try:
                    running.enter_context(ray_cluster(2))
                    break
                except Exception as error:
                    if not tries_left or "timed out during startup" not in str(error):
                        raise
            yield
    assert until(lambda: not ray_processes(os.getpid()))


def embed(place: Path, output: Path, **options: Any) -> None:
    """The recipe, in this process."""
    settings = {"shard_size": SHARD, "batch_size": 2, "hardware": Hardware(accelerator="cpu"), **options}
    config = Config(catalogue=str(place / "catalogue"), base=str(place / "toy_base"), output=str(output), **settings)
    main(config)


def embed_by_ray(place: Path, output: Path) -> None:
    embed(place, output, engine="ray", hardware=Hardware(accelerator="cpu", devices=2))


def manifest(output: Path) -> str:
    """With the names of all shards and their checksums."""
    assert not list(output.glob(".*"))
    text = (output / "manifest.json").read_text()
    assert sorted(path.name in text for path in output.glob("shard-*")) == [True] * (PRODUCTS // SHARD)
    return text


def shards(output: Path) -> int:
    return len(list(output.glob("shard-*")))


def ray_processes(ancestor: int) -> dict[int, str]:
    """Command lines of Ray's processes below a process."""
    parents, commands = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            commands[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if state != "Z":
            parents[int(folder.name)] = int(parent)

    def is_below(pid: int) -> bool:
        return pid in parents and (parents[pid] == ancestor or is_below(parents[pid]))

    # By Ray's own names: a fork of this process has its command line, which may name this file.
    names = re.compile(r"ray::|\S*/ray/|\S*(raylet|gcs_server)\b|\S*python\S* .*/ray/")
    return {pid: commands[pid] for pid in parents if names.match(commands[pid]) and is_below(pid)}


def workers(ancestor: int) -> list[int]:
    return sorted(pid for pid, name in ray_processes(ancestor).items() if name.startswith("ray::MapWorker"))


def is_alive(pid: int) -> bool:
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False


def until(done: Callable[[], bool], seconds: float = 600) -> bool:
    """Whether something comes true in time."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_two_workers_give_the_bits_of_lightning_though_one_is_killed(
    started: None, place: Path, finished: Path, tmp_path: Path
) -> None:
    output = tmp_path / "embeddings"
    found: dict[str, int] = {}

    def kill() -> None:
        assert until(lambda: shards(output) > 0)
        killed = workers(os.getpid())
        # Stopped first, so that the count is of the moment at which it dies.
        for pid in killed:
            os.kill(pid, signal.SIGSTOP)
        found["shards"], found["workers"] = shards(output), len(killed)
        os.kill(killed[0], signal.SIGKILL)
        for pid in killed[1:]:
            os.kill(pid, signal.SIGCONT)

    killer = threading.Thread(target=kill)
    killer.start()
    embed_by_ray(place, output)
    killer.join()
    assert found, "no shard came, see the traceback of the thread"
    assert found["workers"] == 2 and 0 < found["shards"] < PRODUCTS // SHARD
    assert manifest(output) == manifest(finished)


@pytest.mark.slow
def test_a_killed_driver_leaves_no_process_and_is_followed(place: Path, finished: Path, tmp_path: Path) -> None:
    output = tmp_path / "embeddings"
    command = [
        *(sys.executable, str(CHECKOUT / "recipes" / "embed.py"), "--engine", "ray", "--hardware.devices", "2"),
        *("--catalogue", str(place / "catalogue"), "--base", str(place / "toy_base"), "--output", str(output)),
        *("--shard_size", str(SHARD), "--batch_size", "2", "--hardware.accelerator", "cpu"),
    ]
    home, temporary = tmp_path / "home", Path(f"/tmp/mmf_{os.getpid()}")
    temporary.mkdir()
    env = {**ENV, "HOME": str(home), "TMPDIR": str(temporary)}
    try:
        with processes.started(command, env=env, stdout=subprocess.DEVNULL) as driver:
            assert until(lambda: shards(output) > 0 or driver.poll() is not None) and driver.poll() is None
            left = ray_processes(driver.pid)
            driver.kill()
            driver.wait(timeout=60)
        assert 0 < shards(output) < PRODUCTS // SHARD and len(left) > 3
        computing = [pid for pid, name in left.items() if name.startswith("ray::MapWorker")]
        assert computing and until(lambda: not any(map(is_alive, computing)), 30)
        shutil.rmtree(temporary / next(temporary.glob("mmfusion_ray_*")).name)
        done = run_to_end(command, env=env, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"{PRODUCTS} products in" in done.stdout
        assert manifest(output) == manifest(finished)
        assert not list(temporary.iterdir()) and not (home / ".ray").exists()
        # Two of Ray's own first try for a minute to tell the cluster, which is gone.
        assert until(lambda: not any(map(is_alive, left)))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@pytest.fixture
def worker(place: Path, tmp_path: Path) -> tuple[ShardWorker, dict[str, Any]]:
    """A worker as Ray has it, in this process, and an item for it."""
    output = tmp_path / "embeddings"
    output.mkdir()
    sources = {"catalogue": str(place / "catalogue"), "base": str(place / "toy_base")}
    job = load_job(Config(**sources, shard_size=SHARD, batch_size=2), output)
    (item,) = [as_item(job, shard) for shard in job.find()[:1]]
    forget_tries(output)
    return ShardWorker(lambda: job, output, job.provenance, "cpu", 1), item


def test_a_shard_that_kills_workers_is_given_up(worker: tuple[ShardWorker, dict[str, Any]]) -> None:
    embeds, item = worker
    for _ in range(MOST_TRIES):
        assert not embeds(item)["error"]
    error = embeds(item)["error"]
    assert f"{MOST_TRIES} workers died over the shard {item['name']}" in error and "run the same command" in error


def test_a_machine_without_the_output_folder_is_told(worker: tuple[ShardWorker, dict[str, Any]]) -> None:
    embeds, item = worker
    shutil.rmtree(embeds.folder)
    assert "--output that all machines share" in embeds(item)["error"]


def test_a_machine_with_another_model_is_told(worker: tuple[ShardWorker, dict[str, Any]]) -> None:
    embeds, item = worker
    embeds.provenance = replace(embeds.provenance, model_fingerprint="other")
    assert "the model, or what prepares photos, differs here" in embeds(item)["error"]


def test_a_catalogue_that_changes_meanwhile_is_told(worker: tuple[ShardWorker, dict[str, Any]]) -> None:
    embeds, item = worker
    for rows in (np.arange(SHARD) + 1, np.arange(SHARD) + PRODUCTS):
        error = embeds({**item, "rows": rows.astype(np.int64).tobytes()})["error"]
        assert "differ from those on the driver; run the same command again" in error


@pytest.mark.parametrize(
    ("hardware", "refusal"),
    [
        (Hardware(strategy="ddp"), r"hardware\.strategy is ddp: --engine ray has no ranks"),
        (Hardware(num_nodes=2), r"hardware\.num_nodes is 2: .*workers of the whole cluster"),
        (Hardware(devices=0), r"hardware\.devices is 0: .*at least 1"),
        (Hardware(accelerator="mps"), r"hardware\.accelerator is mps: .*auto, cpu, gpu"),
    ],
)
def test_what_ray_has_no_place_for(place: Path, tmp_path: Path, hardware: Hardware, refusal: str) -> None:
    with pytest.raises(ValueError, match=refusal):
        embed(place, tmp_path / "out", engine="ray", hardware=hardware)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("hardware", "refusal"),
    [
        (Hardware(accelerator="gpu"), r"hardware\.devices is 1, one GPU each, and this machine has 0"),
        (Hardware(precision="16-mixed"), r"16-mixed, which CPUs do not support; give bf16-mixed"),
    ],
)
def test_what_this_machine_has_not(
    started: None, place: Path, tmp_path: Path, hardware: Hardware, refusal: str
) -> None:
    if import_ray().cluster_resources().get("GPU"):
        pytest.skip("there is a GPU")
    with pytest.raises(RayJobError, match=refusal):
        embed(place, tmp_path / "out", engine="ray", hardware=hardware)


def test_a_cluster_that_is_away_is_told_before_the_catalogue_is_read(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_ray(), "is_initialized", lambda: False)
    monkeypatch.setattr(EmbeddingJob, "find", lambda job: pytest.fail("it was read"))
    for address in ("127.0.0.1:1", "ray://[::1]:1"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(RayJobError, match=rf"no Ray cluster answers at RAY_ADDRESS='{re.escape(address)}' \("):
            embed_by_ray(place, tmp_path / "out")


def test_a_cluster_that_is_too_small_is_told(caplog: pytest.LogCaptureFixture) -> None:
    small: Any = SimpleNamespace(cluster_resources=lambda: {"CPU": 3.0})
    _warn_of_waiting(small, "CPU", 3)
    assert not caplog.messages
    _warn_of_waiting(small, "CPU", 4)
    _warn_of_waiting(small, "GPU", 2)
    assert [message[:36] for message in caplog.messages] == [
        "the cluster has 3 of the 4 CPUs that",
        "the cluster has 0 of the 2 GPUs that",
    ]


def test_lightning_takes_no_other_precision_in_silence(place: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"precision is 16-mixed, .*give bf16-mixed"):
        embed(place, tmp_path / "out", hardware=Hardware(accelerator="cpu", precision="16-mixed"))


def test_ray_that_is_missing_is_told(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingLibraryError, match=r"pip install 'mmfusion\[ray\]'"):
        embed_by_ray(place, tmp_path / "out")
