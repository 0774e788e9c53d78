"""A Space: what is in it, that it serves as its Dockerfile says, and where it goes on the Hub."""

import json
import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import yaml
from commands import command
from loopback_hub.server import LoopbackHub
from served_index import drawn_index, write_shop
from test_serving_process import ENV, Service

from mmfusion.model.errors import MMFusionError
from mmfusion.retriever import Retriever
from mmfusion.serving.wheel import _packed, torch_range
from mmfusion.training import starting_base

SPACE = "org/shop-search"


@pytest.fixture(scope="module")
def index(place: Path, encoder: Retriever) -> Path:
    """An index of products with photos, whose record names the machine's folders."""
    folder = place / "shop"
    folder.mkdir()
    write_shop(folder, encoder).save(folder / "index")
    record = json.loads((place / "run" / "run.json").read_text()) | {
        "catalogue": str(folder / "catalogue"),
        "arguments": {"embeddings": str(place / "embeddings")},
    }
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def publish(index_folder: Path, output_folder: Path, built: Path, **settings: Any) -> None:
    usual = {"space": SPACE, "index": str(index_folder), "output": str(output_folder), "wheel": str(built)}
    command("publish")(**{**usual, **settings})


def said_by(dockerfile: str) -> list[str]:
    (line,) = re.findall(r"^CMD (.*)$", dockerfile, re.MULTILINE)
    words: list[str] = json.loads(line)
    return words


def test_a_space_serves_from_a_copy_of_its_folder_alone(
    index: Path,
    tmp_path: Path,
    built_wheel: Path,
    hub: LoopbackHub,
    hub_client_environment: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    publish(index, tmp_path / "space", built_wheel, space_photos=True)
    assert capsys.readouterr().out.rstrip().endswith(f"next: open {hub.endpoint}/spaces/{SPACE} once it is built")
    there = hub.repo(SPACE, kind="space")
    assert there.private and there.sdk == "docker"
    files = there.files()
    # Pulled by hand, so that nothing but what was pushed is served.
    for name, content in files.items():
        path = tmp_path / "app" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        private = {str(index.parent), str(Path.home() / "x")[:-1], str(Path.cwd())}
        assert not [one for one in private if one.encode() in content], name
    front = yaml.safe_load(files["README.md"].decode().split("---")[1])
    assert (front["sdk"], front["app_port"], front["title"]) == ("docker", 7860, "shop-search") and front["license"]
    words = said_by(files["Dockerfile"].decode())
    assert words[:2] == ["mmfusion", "serve"] and words[words.index("--port") + 1] == "7860"
    words[words.index("--port") + 1] = "0"
    service = Service(tmp_path / "app", command=[sys.executable, "-m", *words])
    try:
        page = httpx.get(service.url)
        assert page.status_code == 200 and "frame-ancestors 'self' https://huggingface.co" in str(page.headers)
        found = httpx.get(service.url + "/search?query=red&k=3").json()
        assert len(found["hits"]) == 3
        photo = httpx.get(service.url + "/photos/p6")
        assert photo.status_code == 200 and photo.headers["content-type"] == "image/webp"
        assert httpx.get(service.url + "/photos/p7").status_code == 204
        assert httpx.get(service.url + "/health").json()["products"] == 60
    finally:
        service.end()
    # Published anew without photos: those that were there go.
    publish(index, tmp_path / "space", built_wheel, private=False)
    left = hub.repo(SPACE, kind="space").files()
    assert "catalogue/products.parquet" not in left and "index/index/index.faiss" in left
    assert json.loads(left["index/run.json"]).keys() == {"recipe", "arguments", "complete", "base", "products"}


def test_the_image_installs_the_wheel_that_is_there(
    index: Path, tmp_path: Path, built_wheel: Path, hub: LoopbackHub, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(index, tmp_path / "space", built_wheel, wheel=None, dry_run=True)
    assert not hub.requests and "dry run" in capsys.readouterr().out
    (wheel,) = (tmp_path / "space").glob("*.whl")
    with zipfile.ZipFile(wheel) as mine, zipfile.ZipFile(built_wheel) as expected:
        assert sorted(mine.namelist()) == sorted(expected.namelist())
    dockerfile = (tmp_path / "space" / "Dockerfile").read_text()
    assert f"COPY {wheel.name} ." in dockerfile and f'"./{wheel.name}[serve]"' in dockerfile
    assert f'"{torch_range(wheel)}" --index-url https://download.pytorch.org/whl/cpu' in dockerfile
    assert re.fullmatch(r"torch[<>=.,\d]+", torch_range(wheel))
    assert not (tmp_path / "space" / "catalogue").exists()


def test_the_files_of_an_installation_make_a_wheel_that_installs(tmp_path: Path, built_wheel: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target"]
    subprocess.run([*pip, tmp_path / "one", built_wheel], check=True, env=ENV)
    (installed,) = metadata.distributions(name="mmfusion", path=[str(tmp_path / "one")])
    wheel = _packed(installed, tmp_path)
    subprocess.run([*pip, tmp_path / "two", wheel], check=True, env=ENV)
    for path in (tmp_path / "one" / "mmfusion").rglob("*.*"):
        if path.suffix == ".pyc":
            continue
        assert (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes() == path.read_bytes()
    with zipfile.ZipFile(wheel) as mine, zipfile.ZipFile(built_wheel) as expected:
        assert sorted(mine.namelist()) == sorted(expected.namelist())
    editable: Any = SimpleNamespace(version="1", files=[PurePosixPath("mmfusion.pth")])
    with pytest.raises(MMFusionError, match="give --wheel FILE"):
        _packed(editable, tmp_path)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (None, "holds no finished index; run `mmfusion index"),
        ({"milvus_uri": "http://localhost:19530"}, "is an index in Milvus"),
        ({"base": "untrained"}, "was never trained"),
        ({"base": "/nowhere/stage2"}, "/nowhere/stage2"),
    ],
)
def test_what_no_space_can_be_made_of_is_one_line(
    index: Path, tmp_path: Path, built_wheel: Path, record: dict[str, str] | None, message: str
) -> None:
    (tmp_path / "index").mkdir()
    if record is not None:
        if record.get("base") == "untrained":
            record = {"base": starting_base(None, tmp_path)}
        whole = {**json.loads((index / "run.json").read_text()), **record}
        (tmp_path / "index" / "run.json").write_text(json.dumps(whole))
    with pytest.raises(MMFusionError, match=message) as refusal:
        publish(tmp_path / "index", tmp_path / "space", built_wheel, dry_run=True)
    assert "\n" not in str(refusal.value) and not (tmp_path / "space").exists()


def test_flags_wheels_folders_and_photos_that_do_not_fit(
    index: Path, place: Path, tmp_path: Path, built_wheel: Path
) -> None:
    def refuse(message: str, **settings: Any) -> None:
        with pytest.raises((MMFusionError, FileExistsError), match=message) as refusal:
            publish(index, tmp_path / "space", built_wheel, **{"dry_run": True, **settings})
        assert "\n" not in str(refusal.value) and not (tmp_path / "space").exists()

    (tmp_path / "other.whl").write_bytes(built_wheel.read_bytes())
    (tmp_path / built_wheel.name).write_text("no wheel")
    (tmp_path / "mine" / "index").mkdir(parents=True)
    refuse("is no wheel of mmfusion", wheel=str(tmp_path / "other.whl"))
    refuse("is no wheel of mmfusion", wheel=str(tmp_path / built_wheel.name))
    refuse(r"gone\.whl", wheel=str(tmp_path / "gone.whl"))
    refuse("are no Space of mmfusion", output=str(tmp_path / "mine"))
    refuse("repo 'org/model' is for a model", repo="org/model")
    refuse("give --base FOLDER and --repo", space=None)
    refuse("wheel .* is for a Space", space=None, base="model", repo="org/model")
    refuse("neither a folder .* nor the name", space="org/too/many")
    refuse("does not say which catalogue", index=str(place / "run"), space_photos=True)
    assert (tmp_path / "mine" / "index").is_dir()
    with pytest.raises(ValueError, match="is no origin"):
        command("serve")(index=str(index), embed_in=["https://huggingface.co; script-src *"])


def test_a_column_with_folders_of_this_machine_is_not_published(
    index: Path, encoder: Retriever, tmp_path: Path, built_wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("Product p1"))  # as all titles begin
    with pytest.raises(MMFusionError, match=r"the column 'title' of .* names the folder Product p1"):
        publish(index, tmp_path / "space", built_wheel, dry_run=True)


def test_an_index_of_another_model_is_not_published(
    index: Path, encoder: Retriever, tmp_path: Path, built_wheel: Path
) -> None:
    drawn_index(encoder, 20, fingerprint="another").save(tmp_path / "other" / "index")
    (tmp_path / "other" / "run.json").write_text((index / "run.json").read_text())
    with pytest.raises(ValueError, match="another"):
        publish(tmp_path / "other", tmp_path / "space", built_wheel, dry_run=True)


def test_a_space_of_another_kind_and_a_public_one_are_left_alone(
    index: Path, tmp_path: Path, built_wheel: Path, hub: LoopbackHub, hub_client_environment: Path
) -> None:
    hub.create_repo("org/gradio", kind="space", sdk="gradio")
    hub.create_repo("org/public", kind="space", sdk="docker")
    with pytest.raises(MMFusionError, match="org/gradio is a Space of the SDK gradio, not docker"):
        publish(index, tmp_path / "space", built_wheel, space="org/gradio")
    with pytest.raises(MMFusionError, match="is public already"):
        publish(index, tmp_path / "space", built_wheel, space="org/public", private=True)
    assert all(
        hub.repo(name, kind="space").files().keys() == {".gitattributes"} for name in ("org/gradio", "org/public")
    )
