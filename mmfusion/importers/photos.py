"""Files of photos below folders, found by what exports of shops call them."""

from __future__ import annotations

import filecmp
import itertools
import os
import re
import unicodedata
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from mmfusion.importers.items import ImportLog, Item

# In the order in which one is chosen where a folder holds a photo in several formats.
_SUFFIXES = ("", ".jpg", ".jpeg", ".png", ".webp", ".avif", ".tif", ".tiff", ".bmp", ".gif", ".jfif", ".jpe")
# Of WordPress, and of the addresses of Shopify: what stands behind the name of the original.
_RESIZED = re.compile(
    r"(-\d{2,5}x\d{2,5}|-scaled|-rotated|-e\d{10,13}"
    r"|_(pico|icon|thumb|small|compact|medium|large|grande|master|\d{2,4}x\d{0,4}|x\d{2,4})(_crop_\w+)?(@\dx)?)$"
)
_VIEWS = ("main", "front", "side", "back", "detail")
_NUMBERED = re.compile(rf"(?P<own>.+?)[ _.-]+\(?(?P<number>\d{{1,3}}|{'|'.join(_VIEWS)})\)?")
_IN_QUERY = re.compile(r"[^/=&?]+\.(?:jpe?g|png|webp|gif|avif|tiff?|bmp)(?=&|$)", re.IGNORECASE)
# Folders of one name that are looked at; where there are more, the folder above has to tell them apart.
_MOST_ALIKE = 16
# Files that are looked at where nobody said that photos are in this folder: it may be somebody's home.
_MOST_FILES = 300_000


# How a file was found: by a name of the export, by its own name, or by what stands before its number.
_NAMED, _CALLED, _GUESSED = 1, 2, 5


class FoundPhoto(NamedTuple):
    """A file.

    Attributes:
        root: One of the folders that were given.
        path: Where it is below that folder, with slashes.
    """

    root: str
    path: str

    @property
    def file(self) -> str:
        """The whole path."""
        return f"{self.root}/{self.path}"


class PhotoFolders:
    """Photos below folders, which are walked once, when the first photo is asked for.

    Only what the walk has met is found, so that no name leads out of the folders. Case of names, suffixes (.jpg for
    .png) and the way accents are encoded do not matter, unless two files differ by them alone. Hidden files are left
    out. A million files take about 0.25 GB.

    Attributes:
        roots: The folders, without those that are below another one.
        ambiguous: How often files of several folders fit alike, by the names of two of them.
        padded: A photo by id, for ids that have other leading zeros than their photos.
        shared: Photo by id, for photos that are called by this id and were taken for a numbered one of another id.
    """

    def __init__(self, roots: Sequence[Path], log: ImportLog, *, given: bool = True, skip: Path | None = None) -> None:
        """Photos below `roots`.

        Args:
            roots: Folders; the first one goes first.
            log: Gets warnings.
            given: Whether somebody said that photos are there. Otherwise the walk ends after 300,000 files.
            skip: Folder that is not looked into, e.g. the catalogue that is being written.
        """
        whole = list(dict.fromkeys(Path(os.path.abspath(root)) for root in roots))
        self.roots = [root for root in whole if not any(other in root.parents for other in whole)]
        self._root_names = [os.fspath(root) for root in self.roots]
        self.ambiguous: Counter[str] = Counter()
        self.padded: dict[str, str] = {}
        self.shared: dict[str, str] = {}
        self._log, self._given, self._skip = log, given, None if skip is None else os.path.abspath(skip)
        self._names: list[str] = []
        self._keys: list[str] = []
        self._folder_of = array("L")
        # (number of the root, path below it, first file, file after the last one)
        self._folders: list[tuple[int, str, int, int]] = []
        self._by_path: dict[str, list[int]] = {}
        self._by_tail: dict[str, list[int]] = {}
        self._by_key: dict[str, int] = {}
        self._several: dict[str, list[int]] = {}
        self._walked = False

    # ------------------------------------------------------------------ what is asked

    def find(self, written: str, item_id: str = "") -> FoundPhoto | str:
        """The file that an export calls so: by its relative path, else by its name alone.

        Args:
            written: Path or URL as the export has it, also one of another machine.
            item_id: Id of the product, which may tell apart files of one name in folders of products.

        Returns:
            The file, or the reason why there is none.
        """
        self._walk()
        alike: list[int] = []
        readings = _readings(written)
        for path in readings:
            at = self._by_key.get(_stem_key(path.rpartition("/")[2]), -1)
            if at >= 0 and self._keys[at] not in self._several:
                return self._use(at, _NAMED)
            for folders, name in _alternatives(path):
                found = self._locate(folders, name, _key(item_id))
                if len(found) == 1:
                    return self._use(found[0], _NAMED)
                alike = alike or found
        alike = alike or self._copies(readings[0])
        if len(alike) == 1 or self._same(alike):
            return self._use(alike[0], _NAMED)
        if not alike:
            return "no such file"
        names = self._names_of(alike)
        self.ambiguous[names] += 1
        return f"{len(alike)} files have this name, e.g. {names}"

    def of_product(self, name: str) -> list[FoundPhoto]:
        """The photos called by an id: ID.jpg, ID_1.jpg, ID-2.png, ID/1.jpg or 010/ID.jpg, in the order of numbers.

        An id of digits is also found with other leading zeros, which `padded` then holds.
        """
        self._walk()
        key = _key(name)
        found = self._called(key) if key else []
        if not found and key.isdecimal():
            bare = key.lstrip("0") or "0"
            for other in (bare, *(bare.zfill(width) for width in self._widths)):
                if other != key and (found := self._called(other)):
                    self.padded.setdefault(name, self._photo(found[0]).path)
                    break
        return [self._use(at, _CALLED if self._keys[at] == key else _GUESSED) for at in found]

    def unused(self) -> Iterator[FoundPhoto]:
        """Photos that were never found: of no product. Smaller copies of photos that were found do not count."""
        self._walk()
        for at, key in enumerate(self._keys):
            if not self._used[at] and os.path.splitext(self._names[at])[1]:
                originals = self._inside(self._folder_of[at], _RESIZED.sub("", key))
                if not any(self._used[one] for one in originals):
                    yield self._photo(at)

    def warn(self) -> None:
        """Writes warnings about what was found into the log."""
        if self.ambiguous:
            names, count = self.ambiguous.most_common(1)[0]
            self._log.warn(
                f"{sum(self.ambiguous.values()):,} photos are named without their folder while several folders hold a "
                f"file of the name, e.g. {names} ({count:,} times). Write the folder before the name."
            )
        if self.padded:
            name, path = next(iter(self.padded.items()))
            self._log.warn(
                f"ids have other leading zeros than their photos ({len(self.padded):,}), e.g. {name!r} and {path!r}: a "
                "spreadsheet may have removed the zeros, and judgements may name other ids."
            )
        if self.shared:
            name, path = next(iter(self.shared.items()))
            self._log.warn(
                f"{len(self.shared):,} photos belong to two products by their names, e.g. {path!r} also to {name!r}. "
                "Name the photos in a column."
            )

    # ------------------------------------------------------------------ the walk

    def _walk(self) -> None:
        if self._walked:
            return
        self._walked = True
        seen = {os.path.realpath(root) for root in self.roots}
        for number, root in enumerate(self.roots):
            waiting = [""]
            while waiting:
                waiting += self._read_folder(number, waiting.pop(), seen)
                if not self._given and len(self._names) > _MOST_FILES:
                    self._log.warn(
                        f"not all of the more than {_MOST_FILES:,} files below {root} were looked at; say where photos "
                        "are with --photos."
                    )
                    break
        self._used = bytearray(len(self._names))

    def _read_folder(self, root: int, below: str, seen: set[str]) -> list[str]:
        """Adds the photos of a folder and returns its folders, the last one first."""
        names, deeper = [], []
        try:
            with os.scandir(os.path.join(self.roots[root], below)) as entries:
                for entry in entries:
                    name = entry.name
                    if name.startswith((".", "__MACOSX")):
                        continue
                    if entry.is_dir():
                        place = os.path.realpath(entry.path) if entry.is_symlink() else entry.path
                        # A link to a folder above would never end.
                        if place != self._skip and place not in seen:
                            seen.add(place)
                            deeper.append(f"{below}/{name}" if below else name)
                    elif os.path.splitext(name)[1].lower() in _SUFFIXES:
                        names.append(name)
        except OSError as error:
            self._log.warn(f"the folder {os.path.join(self.roots[root], below)} cannot be read: {error.strerror}")
        if names:
            self._add_folder(root, below, names)
        return sorted(deeper, reverse=True)

    def _add_folder(self, root: int, below: str, names: list[str]) -> None:
        number, first = len(self._folders), len(self._names)
        for at, (key, name) in enumerate(sorted((_stem_key(name), name) for name in names), first):
            known = self._by_key.setdefault(key, at)
            if known != at:
                self._several.setdefault(key, [known]).append(at)
            self._keys.append(key)
            self._names.append(name)
        self._folder_of.extend([number] * len(names))
        self._folders.append((root, below, first, len(self._names)))
        self._by_path.setdefault(_key(below), []).append(number)
        # "images/1.jpg" is also 1.jpg of the folder "images" that was given.
        parts = _key(f"{self.roots[root].name}/{below}".rstrip("/")).split("/")
        for start in range(len(parts)):
            alike = self._by_tail.setdefault("/".join(parts[start:]), [])
            if len(alike) < _MOST_ALIKE:
                alike.append(number)

    @cached_property
    def _resized(self) -> dict[str, list[int]]:
        """Files by the name of the photo that they are a smaller copy of: the largest one first."""
        found: dict[str, list[int]] = {}
        for at, key in enumerate(self._keys):
            original = _RESIZED.sub("", key)
            if original != key:
                found.setdefault(original, []).append(at)
        for alike in found.values():
            alike.sort(key=lambda at: (-_pixels(self._keys[at]), at))
        return found

    @cached_property
    def _numbered(self) -> dict[str, list[int]]:
        """Files by what stands before their number, in the order of numbers."""
        found: dict[str, list[tuple[int, int]]] = {}
        for at, key in enumerate(self._keys):
            match = _NUMBERED.fullmatch(key)
            if match:
                number = match["number"]
                order = int(number) if number.isdecimal() else _VIEWS.index(number)
                found.setdefault(match["own"], []).append((order, at))
        return {own: [at for _, at in sorted(alike)] for own, alike in found.items()}

    @cached_property
    def _widths(self) -> list[int]:
        """Numbers of digits of names that begin with a zero."""
        names = itertools.chain(self._keys, self._numbered, self._by_tail)
        return sorted({len(name) for name in names if name[:1] == "0" and name.isdecimal()})

    # ------------------------------------------------------------------ looking up

    def _locate(self, folders: list[str], name: str, own: str) -> list[int]:
        """Files of a name, in the folder that fits best, else anywhere: none, the one, or several that fit alike."""
        key = _stem_key(name)
        if key not in self._by_key:
            return []
        # A product's own folder is the last to be tried: "1.jpg" of product 42 is 42/1.jpg.
        for tail in (*("/".join(folders[start:]) for start in range(max(len(folders), 1))), own):
            for known in (self._by_path, self._by_tail):
                found = [at for folder in known.get(tail, ()) for at in self._inside(folder, key, name)[:1]]
                if found:
                    return found
        inside = dict.fromkeys(self._folder_of[at] for at in self._files(key)[:_MOST_ALIKE])
        return [self._inside(folder, key, name)[0] for folder in inside]

    def _files(self, key: str) -> list[int]:
        return self._several.get(key) or ([self._by_key[key]] if key in self._by_key else [])

    def _inside(self, folder: int, key: str, name: str = "") -> list[int]:
        """Files of a folder by their name without its suffix, that with the suffix of `name` first."""
        _, _, first, end = self._folders[folder]
        at = bisect_left(self._keys, key, first, end)
        found = []
        while at < end and self._keys[at] == key:
            found.append(at)
            at += 1
        return sorted(found, key=lambda at: _likeness(self._names[at], name)) if len(found) > 1 else found

    def _copies(self, path: str) -> list[int]:
        """The largest of the smaller copies of a photo."""
        stem = _stem_key(path.rpartition("/")[2])
        alike = self._resized.get(_RESIZED.sub("", stem), [])
        return [at for at in alike if self._folder_of[at] == self._folder_of[alike[0]]][:1]

    def _called(self, key: str) -> list[int]:
        files = [*self._files(key), *self._numbered.get(key, ())]
        if len(files) == 1:
            return files
        if not files:
            inside = (self._by_path.get(key) or self._by_tail.get(key) or [])[:1]
            files = [at for folder in inside for at in range(*self._folders[folder][2:])]
            files.sort(key=lambda at: _natural(self._names[at]))
        others = [at for at in files if self._folder_of[at] != self._folder_of[files[0]]]
        if others and not self._same(self._files(key)):
            self.ambiguous[self._names_of([files[0], others[0]])] += 1
        keys = dict.fromkeys(self._keys[at] for at in files if at not in others)
        # One of each name: a photo may be there in several formats.
        return [self._inside(self._folder_of[files[0]], one)[0] for one in keys]

    def _same(self, alike: list[int]) -> bool:
        """Whether files are copies of each other."""
        files = [self._photo(at).file for at in alike[:_MOST_ALIKE]]
        try:
            return bool(files) and all(filecmp.cmp(files[0], other, shallow=False) for other in files[1:])
        except OSError:
            return False

    def _photo(self, at: int) -> FoundPhoto:
        root, below, _, _ = self._folders[self._folder_of[at]]
        return FoundPhoto(self._root_names[root], f"{below}/{self._names[at]}" if below else self._names[at])

    def _names_of(self, alike: list[int]) -> str:
        return " and ".join(self._photo(at).file for at in alike[:2])

    def _use(self, at: int, how: int) -> FoundPhoto:
        photo = self._photo(at)
        if self._used[at] + how == _CALLED + _GUESSED:
            self.shared[_split(self._names[at])[0]] = photo.path
        self._used[at] = how
        return photo


def photos_of_item(folders: PhotoFolders, item: Item) -> list[FoundPhoto]:
    """Photos of a product that names none, by its id or by the other name that they may have."""
    names: Iterable[str] = dict.fromkeys(name for name in (item.item_id, item.photo_name, item.group_id) if name)
    return next((found for name in names if (found := folders.of_product(name))), [])


def _readings(written: str) -> list[str]:
    """What a path or URL may mean, as a path with slashes: percent-decoded or not, without a query."""
    path = written.strip()
    if not ("?" in path or "%" in path or "#" in path or "\\" in path):
        return [path]
    if "://" in path or path.startswith("//"):
        path = path.partition("//")[2].partition("/")[2]
        path, _, query = path.partition("#")[0].partition("?")
        readings = [unquote(path), path, *(_IN_QUERY.findall(unquote(query)) if "." in query else ())]
    else:
        path = path.replace("\\", "/")
        readings = [path, unquote(path), path.partition("?")[0], unquote(path.partition("?")[0])]
    return list(dict.fromkeys(one for one in readings if one.rpartition("/")[2])) or [""]


def _alternatives(path: str) -> Iterator[tuple[list[str], str]]:
    """Folders and name of a file: as it is written, that of its original, and those of copies of the original."""
    *folders, name = path.split("/")
    folders = [_key(one) for one in folders if one not in ("", ".", "..") and not one.endswith(":")]
    yield folders, name
    stem, suffix = _split(name)
    original = _RESIZED.sub("", stem.lower())
    if original != stem.lower():
        yield folders, stem[: len(original)] + suffix
        stem = stem[: len(original)]
    yield folders, f"{stem}-scaled{suffix}"
    # A copy in another format keeps the suffix of the first.
    yield folders, f"{name}.webp"


def _split(name: str) -> tuple[str, str]:
    """Stem and suffix, where the suffix is one of a photo."""
    stem, suffix = os.path.splitext(name)
    return (stem, suffix.lower()) if suffix.lower() in _SUFFIXES else (name, "")


def _stem_key(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return _key(stem if dot and f".{suffix.lower()}" in _SUFFIXES else name)


def _key(name: str) -> str:
    # The disks of Macs keep an accent as a character of its own.
    return name.lower() if name.isascii() else unicodedata.normalize("NFC", name).casefold()


def _likeness(found: str, name: str) -> tuple[bool, bool, int]:
    own = _split(found)[1]
    return found != name, own != _split(name)[1], _SUFFIXES.index(own)


def _pixels(key: str) -> int:
    size = re.search(r"(\d+)x(\d+)$", key)
    # A copy without a size is a large one.
    return int(size[1]) * int(size[2]) if size else 1 << 40


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", _key(name))]
