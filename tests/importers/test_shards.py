"""Samples of webdataset shards: names with dots, several photos, and shards that are damaged."""

import gzip
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmfusion.importers.items import ImportLog
from mmfusion.importers.shards import Member, ShardsTable, samples_of
from mmfusion.importers.source import SourceFile


def shard(path: Path, files: dict[str, Any]) -> SourceFile:
    """A tar file; dicts are written as JSON, texts as UTF-8."""
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as tar:
        for name, content in files.items():
            data = content if isinstance(content, bytes) else None
            if data is None:
                data = (content if isinstance(content, str) else json.dumps(content)).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return SourceFile(path, path.name)


def read(*shards: SourceFile) -> tuple[list[dict[str, Any]], ImportLog]:
    log = ImportLog()
    table = ShardsTable(shards)
    return [dict(zip(table.columns, row.cells, strict=True)) for row in table.rows(log)], log


def grouped(*names: str) -> dict[str, list[str]]:
    members = []
    for name in names:
        stem, _, suffix = name.rpartition(".")
        folder, _, base = name.rpartition("/")
        key = f"{folder}/{base.partition('.')[0]}".lstrip("/")
        members.append(Member(key, stem, f".{suffix}", name.encode()))
    return {one.key: [member.data.decode() for member in one.members] for one in samples_of(members)}


@pytest.mark.parametrize(
    ("names", "samples"),
    [
        ("1.jpg 1.json 2.json 2.jpg", {"1": "1.jpg 1.json", "2": "2.json 2.jpg"}),
        ("1.0.jpg 1.1.png 1.json 2.json", {"1": "1.0.jpg 1.1.png 1.json", "2": "2.json"}),
        ("a/1.jpg a/1.json b/1.jpg", {"a/1": "a/1.jpg a/1.json", "b/1": "b/1.jpg"}),
        ("1.jpg 1.meta.json 1.title.txt", {"1": "1.jpg 1.meta.json 1.title.txt"}),
        # A text of a photo beside the JSON of the sample is not a sample of its own.
        ("1.front.jpg 1.front.txt 1.json", {"1": "1.front.jpg 1.front.txt 1.json"}),
        # Keys with dots, of which webdataset makes one sample.
        ("x.v1.jpg x.v1.json x.v2.jpg x.v2.json", {"x.v1": "x.v1.jpg x.v1.json", "x.v2": "x.v2.jpg x.v2.json"}),
        ("x.v1.txt x.v1.webp x.v2.txt x.v2.webp", {"x.v1": "x.v1.txt x.v1.webp", "x.v2": "x.v2.txt x.v2.webp"}),
        ("x.1.0.jpg x.1.1.jpg x.1.json x.2.json", {"x.1": "x.1.0.jpg x.1.1.jpg x.1.json", "x.2": "x.2.json"}),
        ("x.jpg x.json x.v2.jpg x.v2.json", {"x": "x.jpg x.json", "x.v2": "x.v2.jpg x.v2.json"}),
        ("x.1.json x.1.jpg y.7.json", {"x.1": "x.1.json x.1.jpg", "y.7": "y.7.json"}),
        ("x.1.json x.2.jpg x.2.json", {"x.1": "x.1.json", "x.2": "x.2.jpg x.2.json"}),
    ],
)
def test_members_become_samples(names: str, samples: dict[str, str]) -> None:
    assert grouped(*names.split()) == {key: members.split() for key, members in samples.items()}


def test_samples_with_dots_are_passed_on_one_by_one() -> None:
    taken = 0

    def members() -> Iterator[Member]:
        nonlocal taken
        for at in range(100):
            for suffix in (".jpg", ".json"):
                taken += 1
                yield Member("x", f"x.{at}", suffix, b"{}")

    samples = samples_of(members())
    assert next(samples).key == "x.0"
    assert taken < 5


def test_fields_of_json_and_texts(tmp_path: Path) -> None:
    rows, log = read(
        shard(
            tmp_path / "a.tar",
            {
                "./0001.json": {"price": 19.90, "sku": 20000000000000000001, "gone": None, "new": True, "tags": ["a"]},
                "0001.id": "0042\n",
                "0001.cls": "7",
                "0001.JPG": b"photo",
                "0002.title.txt": "Bräter".encode("cp1252"),
                "0002.json": {"id": 42},
                "0002.id": "0043",
                "0003.npy": b"numbers",
                "0003.txt": "a jug",
                "._0003.jpg": b"of a Mac",
            },
        )
    )
    assert rows[0] == {
        "__key__": "0001",
        "price": "19.9",
        "sku": "20000000000000000001",
        "gone": "",
        "new": "true",
        "tags": ["a"],
        "id": "0042",
        "cls": "7",
        "title": "",
        "txt": "",
        "photos": [b"photo"],
    }
    assert (rows[1]["title"], rows[1]["id"], rows[1]["photos"]) == ("Bräter", "0043", [])
    assert (rows[2]["txt"], rows[2]["photos"]) == ("a jug", [])
    assert log.left_out == {"file .npy of a shard, which is no photo, text or JSON": 1}


def test_photos_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = ["1.10.jpg", "1.2.webp", "1.jpg", "1.0.PNG"]
    rows, _ = read(shard(tmp_path / "a.tar", {"1.json": {}} | {name: name.encode() for name in names}))
    assert rows[0]["photos"] == [b"1.jpg", b"1.0.PNG", b"1.2.webp", b"1.10.jpg"]


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz"])
def test_compressed_shards(tmp_path: Path, name: str) -> None:
    rows, log = read(shard(tmp_path / name, {"1.jpg": b"p", "1.json": {"title": "Jar"}}))
    assert [row["title"] for row in rows] == ["Jar"]
    assert not log.warnings


def test_bad_json_is_rejected_and_the_rest_is_read(tmp_path: Path) -> None:
    rows, log = read(shard(tmp_path / "a.tar", {"1.json": '{"title": "J', "2.json": "[1]", "3.json": {"title": "Jar"}}))
    assert [row["title"] for row in rows] == ["Jar"]
    assert [(line, reason.partition(":")[0]) for _, line, reason in log.rejected] == [
        (1, "the JSON of a sample cannot be read"),
        (2, "the JSON of a sample holds no object"),
    ]


def test_keys_that_start_again_in_the_next_shard(tmp_path: Path) -> None:
    shards = [shard(tmp_path / f"s-{at}.tar", {"0.json": {"n": at}, "1.json": {"n": at}}) for at in range(2)]
    rows, log = read(*shards)
    assert [row["__key__"] for row in rows] == ["0", "1", "s-1/0", "s-1/1"]
    assert [warning.partition(":")[0] for warning in log.warnings] == ["s-1.tar"]


def test_shards_of_one_name_in_two_folders(tmp_path: Path) -> None:
    shards = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shards.append(shard(tmp_path / folder / "0.tar", {"7.json": {"n": folder}}))
    assert [row["__key__"] for row in read(*shards)[0]] == ["7", "b/0/7"]


def test_files_of_one_key_that_are_apart(tmp_path: Path) -> None:
    rows, log = read(shard(tmp_path / "a.tar", {"1.jpg": b"1", "2.jpg": b"2", "1.json": {}, "2.json": {}}))
    assert [row["__key__"] for row in rows] == ["1", "2", "1", "2"]
    assert log.warnings == ["a.tar: files of one key do not stand together; sort it, or see --duplicates merge"]


def test_fields_that_come_late_are_named(tmp_path: Path) -> None:
    files = {f"{at}.json": {"title": "x"} for at in range(1001)}
    rows, log = read(shard(tmp_path / "a.tar", files | {"1001.json": {"title": "y", "brand": "z"}}))
    assert len(rows) == 1002
    assert log.warnings == ["a.tar, sample 1001: 'brand' comes late and is not read"]


def damaged(data: bytes) -> dict[str, bytes]:
    header_of_third = bytearray(data)
    header_of_third[2048 : 2048 + 60] = b"#" * 60
    return {"in a photo": data[:3000], "in a header": bytes(header_of_third), "two archives": data + data}


@pytest.mark.parametrize("what", ["in a photo", "in a header", "two archives"])
def test_damaged_shards_are_named_and_the_next_one_is_read(tmp_path: Path, what: str) -> None:
    whole = shard(tmp_path / "a.tar", {f"{at}.{kind}": b"{}" * 200 for at in range(3) for kind in ("jpg",)})
    cut = damaged(whole.path.read_bytes())[what]
    whole.path.write_bytes(cut)
    rows, log = read(whole, shard(tmp_path / "b.tar", {"9.json": {"title": "Jar"}}))
    assert rows[-1]["title"] == "Jar"
    assert [(file, reason.partition(":")[0]) for file, _, reason in log.rejected] == [
        ("a.tar", "the rest of the shard cannot be read")
    ]


def test_a_shard_without_its_end(tmp_path: Path) -> None:
    whole = shard(tmp_path / "a.tar", {"1.json": {"title": "Jar"}})
    whole.path.write_bytes(whole.path.read_bytes()[:1024])
    rows, log = read(whole)
    assert [row["title"] for row in rows] == ["Jar"]
    assert log.warnings == ["a.tar has no end mark: it may be cut off."]


def test_a_cut_compressed_shard(tmp_path: Path) -> None:
    whole = shard(tmp_path / "a.tar.gz", {"1.json": {"title": "Jar"}, "2.jpg": bytes(range(256)) * 99})
    whole.path.write_bytes(gzip.compress(gzip.decompress(whole.path.read_bytes()))[:400])
    _, log = read(whole)
    assert len(log.rejected) == 1
