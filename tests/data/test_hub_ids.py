"""A mistyped folder that looks like a Hub id ends at once where the Hub cannot be reached."""

import socket
from pathlib import Path
from typing import Any

import pytest
from commands import command
from huggingface_hub import constants

from mmfusion.data.catalogue import Catalogue
from mmfusion.data.hub_ids import check_readable
from mmfusion.data.streamed_catalogue import StreamedCatalogue
from mmfusion.model.errors import HubError
from mmfusion.retrieval.query_tower import load_query_tower


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """A machine without a network that does not know it; the list grows with each request."""
    asked: list[Any] = []

    def refuse(*where: Any, **how: Any) -> Any:
        asked.append(where)
        raise OSError("Name or service not known")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("mmfusion.data.hub_ids.getproxies", lambda: {})
    monkeypatch.setattr(socket, "create_connection", refuse)
    return asked


def test_every_way_in_looks_before_a_library_tries(unreachable: list[Any], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    ways: list[Any] = [
        lambda: command("evaluate")(base="outputs/stage9", output=str(tmp_path / "out")),
        lambda: command("base")(text="nobody/text", vision="nobody/vision", output=str(tmp_path / "base")),
        lambda: load_query_tower("outputs/stage9"),
        lambda: Catalogue.load("shop/catalogue", cache_dir=cache),
        lambda: StreamedCatalogue.load("shop/catalogue", cache_dir=cache),
    ]
    for way in ways:
        before = len(unreachable)
        with pytest.raises(HubError, match=r"There is no folder '.*/.*' in .* cannot be reached to look for a"):
            way()
        assert len(unreachable) == before + 1


def test_folders_and_what_is_in_the_cache_are_not_asked_for(unreachable: list[Any], tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir()
    (tmp_path / "hub" / "models--org--model").mkdir(parents=True)
    for source in ("outputs/stage9", "./a/b", "s3://a/b", "org/model", None, tmp_path):
        check_readable(source, "model")
    assert not unreachable
    with pytest.raises(HubError):
        check_readable("org/model", "dataset")


def test_offline_and_behind_a_proxy_the_libraries_decide(
    unreachable: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmfusion.data.hub_ids.getproxies", lambda: {"https": "http://proxy:3128"})
    check_readable("org/model", "model")
    monkeypatch.setattr("mmfusion.data.hub_ids.getproxies", lambda: {})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    check_readable("org/model", "model")
    assert not unreachable
