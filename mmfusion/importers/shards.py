"""Samples of webdataset shards: members of tar files that share a key, read one after the other."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, cast

from mmfusion.data.catalogue_schema import CatalogueError
from mmfusion.importers.collect import KEY, PHOTOS
from mmfusion.importers.items import ImportLog
from mmfusion.importers.json_table import decoded
from mmfusion.importers.rows import Row, TextTable
from mmfusion.importers.source import SourceFile

_SAMPLED = 1000
_TEXTS = (".txt", ".text", ".cls", ".id", ".title", ".caption", ".description", ".label")


@cache
def _is_photo(suffix: str) -> bool:
    return SourceFile(Path(f"x{suffix}"), "").is_photo


class Member(NamedTuple):
    """A file of a shard.

    Attributes:
        key: Path up to the first dot of its name, which is the key by webdataset's convention.
        stem: Path without the last suffix.
        suffix: Last suffix, lower case.
        data: Its bytes.
    """

    key: str
    stem: str
    suffix: str
    data: bytes

    @property
    def is_photo(self) -> bool:
        return _is_photo(self.suffix)

    def belongs_to(self, key: str) -> bool:
        """Whether its name is the key, perhaps with more after a dot: `0001` and `0001.front` of `0001`."""
        return self.stem == key or self.stem.startswith(f"{key}.")


@dataclass
class Sample:
    """Files of one key.

    Attributes:
        key: Path within the shard without suffixes.
        members: Its files.
    """

    key: str
    members: list[Member] = field(default_factory=list)

    @property
    def photos(self) -> list[bytes]:
        """Photos in the order of their names, numbers by value."""
        photos = [member for member in self.members if member.is_photo]
        return [member.data for member in sorted(photos, key=lambda one: _natural(one.stem[len(self.key) :]))]


class ShardsTable(TextTable):
    """Samples as rows: their key, the fields of their JSON and texts, and the bytes of their photos.

    Fields are those of the first 1,000 samples; later ones are named and not read. Where a key comes again in a later
    shard, the shard's name is put before it.

    Attributes:
        shards: The tar files in order.
    """

    def __init__(self, shards: Sequence[SourceFile]) -> None:
        self.shards = shards
        self._place = shards[0].name
        fields: dict[str, None] = {}
        for _, _, sample in islice(self._samples(ImportLog()), _SAMPLED):
            with suppress(ValueError):
                fields.update(dict.fromkeys(_fields(sample)))
        self.fields = [name for name in fields if name not in (KEY, PHOTOS)]
        super().__init__(shards[0], [KEY, *self.fields, PHOTOS])

    def place(self, line: int) -> str:
        return self._place

    def _rows(self, log: ImportLog) -> Iterator[Row]:
        known = {KEY, PHOTOS, *self.fields}
        stems = [shard.path.name.partition(".")[0] for shard in self.shards]
        names = {
            shard: stem if stems.count(stem) == 1 else f"{shard.path.parent.name}/{stem}"
            for shard, stem in zip(self.shards, stems, strict=True)
        }
        earlier: set[str] = set()
        own: set[str] = set()
        current = self.shards[0]
        for shard, number, sample in self._samples(log):
            if shard is not current:
                earlier.update(own)
                own, current = set(), shard
            self._place = f"{shard.name}, sample {sample.key}"
            try:
                fields = _fields(sample)
            except ValueError as error:
                log.reject(shard.name, number, str(error))
                continue
            if late := sorted(fields.keys() - known):
                known.update(late)
                log.warn(f"{self._place}: {', '.join(map(repr, late))} comes late and is not read")
            key = sample.key
            if key in earlier:
                log.warn(f"{shard.name}: keys of an earlier shard come again; the shard's name is put before them")
                key = f"{names[shard]}/{key}"
            if key in own:
                log.warn(f"{shard.name}: files of one key do not stand together; sort it, or see --duplicates merge")
            own.add(key)
            yield Row(number, [key, *(fields.get(name, "") for name in self.fields), sample.photos])

    def _samples(self, log: ImportLog) -> Iterator[tuple[SourceFile, int, Sample]]:
        for shard in self.shards:
            number = 0
            try:
                for sample in samples_of(_members(shard, log)):
                    number += 1
                    yield shard, number, sample
            except CatalogueError as error:
                log.reject(shard.name, number + 1, f"the rest of the shard cannot be read: {error}")


def samples_of(members: Iterable[Member]) -> Iterator[Sample]:
    """Groups members that stand together into samples.

    A name is cut at its first dot, as webdataset does: `0001.front.jpg` and `0001.json` are of sample 0001. But keys
    may have dots themselves: where a photo `lamp.v2.jpg` has a `lamp.v2.json` of its own, `lamp.v2` is the key.
    """
    segment: list[Member] = []
    dotted = False
    for member in members:
        if segment:
            keys = _dotted_keys(segment)
            dotted = dotted or bool(keys)
            new = member.stem != member.key and bool(keys) and not any(map(member.belongs_to, keys))
            if new or member.key != segment[0].key:
                yield from _grouped(segment, dotted)
                segment = []
        segment.append(member)
    if segment:
        yield from _grouped(segment, dotted)


def _dotted_keys(segment: Sequence[Member]) -> set[str]:
    """Keys with dots: names of JSON, or of texts without a file for the convention's key, that photos have, too."""
    photos = [member for member in segment if member.is_photo]
    others = [member for member in segment if not member.is_photo]
    plain = any(member.stem == member.key for member in others)
    return {
        member.stem
        for member in others
        if member.stem != member.key
        and (member.suffix == ".json" or not plain)
        and any(photo.belongs_to(member.stem) for photo in photos)
    }


def _grouped(segment: Sequence[Member], dotted: bool) -> Iterator[Sample]:
    photos = any(member.is_photo for member in segment)
    if not (_dotted_keys(segment) or (dotted and not photos)):
        yield Sample(segment[0].key, list(segment))
        return
    keys = {member.stem for member in segment if not member.is_photo}
    samples: dict[str, Sample] = {}
    for member in segment:
        key = max((key for key in keys if member.belongs_to(key)), key=len, default=member.stem)
        samples.setdefault(key, Sample(key)).members.append(member)
    yield from samples.values()


def _members(shard: SourceFile, log: ImportLog) -> Iterator[Member]:
    """Files of a shard, each in memory while it is looked at.

    Raises:
        CatalogueError: The shard is cut off or damaged.
    """
    # Read as a stream, so that a compressed shard is never unpacked; `|*` knows .tgz, too.
    with shard.open() as stream, tarfile.open(fileobj=stream, mode="r|*") as tar:
        while (info := tar.next()) is not None:
            # It keeps what it has read, which would be gigabytes after a million samples.
            tar.members.clear()  # type: ignore[attr-defined]
            path = PurePosixPath(info.name)
            if not info.isfile() or path.name.startswith(".") or "__MACOSX" in path.parts:
                continue
            suffix = path.suffix.lower()
            key = str(path.parent / path.name.partition(".")[0])
            member = Member(key, str(path.with_suffix("")), suffix, b"")
            file = tar.extractfile(info) if member.is_photo or suffix in (".json", *_TEXTS) else None
            if file is None:
                log.leave_out(f"file {suffix or 'without a suffix'} of a shard, which is no photo, text or JSON")
            else:
                yield member._replace(data=file.read())
        # tarfile ends without a word at a header that it cannot read, and where the file is cut between members.
        blocks = cast(IO[bytes], tar.fileobj)
        if blocks.tell() - tar.offset < tarfile.BLOCKSIZE:
            log.warn(f"{shard.name} has no end mark: it may be cut off.")
        elif any(blocks.read(1 << 16)):
            raise CatalogueError("is damaged, or two archives in one file", shard.name, "Copy it again.")


def _fields(sample: Sample) -> dict[str, Any]:
    """Values of a sample's JSON and texts by name.

    Raises:
        ValueError: A JSON file cannot be read; says so in a few words.
    """
    fields: dict[str, Any] = {}
    # Texts go before JSON, where an id may be a number without its zeros.
    for member in sorted(sample.members, key=lambda one: one.suffix != ".json"):
        if member.is_photo:
            continue
        text = _decoded(member.data)
        if member.suffix != ".json":
            # `0001.title.txt` and `0001.title` are titles; ids are texts.
            name = member.stem[len(sample.key) + 1 :] or member.suffix[1:]
            fields[name] = text.strip()
            continue
        try:
            found = decoded(text)
        except ValueError as error:
            raise ValueError(f"the JSON of a sample cannot be read: {sample.key}: {error}") from None
        if not isinstance(found, dict):
            raise ValueError(f"the JSON of a sample holds no object: {sample.key}")
        fields.update({name: _cell(value) for name, value in found.items()})
    return fields


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else value


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
