"""Files and folders that are whole or not there, and what counts as a Hub id."""

from pathlib import Path

import pytest

from mmfusion.files import is_hub_id, is_partial, sha256_of, whole_file, whole_folder


def test_a_hub_id_has_an_owner_and_is_no_path_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("org/name") and is_hub_id("0rg/na-me_1.5")
    for other in (
        "name",
        "./org/name",
        "/org/name",
        "org/name/more",
        "~/name",
        "https://org/name",
        "",
        None,
        Path("org/n"),
    ):
        assert not is_hub_id(other)
    (tmp_path / "outputs").mkdir()
    assert not is_hub_id("outputs/stage1"), "a folder that a run may still write"


def test_writers_of_one_file_at_the_same_time_stay_out_of_each_others_way(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with whole_file(path, concurrent=True) as one, whole_file(path, concurrent=True) as other:
        one.write(b"one")
        other.write(b"other")
        assert len([left for left in tmp_path.iterdir() if is_partial(left)]) == 2 and not path.exists()
    # The block of the first one ends last.
    assert path.read_bytes() == b"one" and list(tmp_path.iterdir()) == [path]
    assert sha256_of(path) == "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"


def test_a_folder_takes_the_place_of_another_only_when_it_is_complete(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "old").write_text("old")
    with pytest.raises(KeyError), whole_folder(folder, files=None, overwrite=True) as new:
        (new / "half").write_text("half")
        raise KeyError
    assert [path.name for path in folder.iterdir()] == ["old"]
    with (
        pytest.raises(FileExistsError, match="also holds 'old'"),
        whole_folder(folder, files=frozenset(), overwrite=True),
    ):
        pass
    with pytest.raises(FileExistsError, match="overwrite=True"), whole_folder(folder, files=None, overwrite=False):
        pass
    with whole_folder(folder, files=None, overwrite=True) as new:
        (new / "new").write_text("new")
    assert [path.name for path in folder.iterdir()] == ["new"] and list(tmp_path.iterdir()) == [folder]
