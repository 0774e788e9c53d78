"""Texts and photos that products share: each is read and encoded once, and then fused for each product."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from mmfusion.data.photos import PhotoError, is_null, is_photo_list, photo_bytes
from mmfusion.model import MMFusionModel
from mmfusion.model.heads import Encoded
from mmfusion.model.modeling_mmfusion import MMFusionOutput
from mmfusion.model.pixels import in_threads

if TYPE_CHECKING:
    # A search does not wait for what reads catalogues.
    from mmfusion.data.tables import ProductTable, Rows

# Products that go through the fusion network at once, of which few have to be encoded, by batches of encoders.
_FUSED_AT_ONCE = 4


class Photo(NamedTuple):
    """A photo of a product: its number, and its place in the product's list (several places: all of these together)."""

    number: int
    places: tuple[int, ...]


@dataclass(frozen=True)
class ShownParts:
    """What products show, by numbers: equal numbers are equal texts, or equal photos.

    Attributes:
        texts: The number of the text of each product.
        photos: The photos of each product. One with more photos than are read counts as a single one, as which of them
            are read is known only once they are decoded.
    """

    texts: list[int]
    photos: list[tuple[Photo, ...]]

    @property
    def any_equal(self) -> bool:
        """Whether two products show the same text, or the same photo."""
        numbers = [number for own in self.numbers() for number in own]
        return len(set(numbers)) < len(numbers)

    def numbers(self) -> list[set[int]]:
        """All numbers of each product."""
        pairs = zip(self.texts, self.photos, strict=True)
        return [{text, *(photo.number for photo in photos)} for text, photos in pairs]


def shown_parts(table: ProductTable, rows: Rows) -> ShownParts:
    """Finds out which texts and photos are equal, by digests of 128 bits; nothing is decoded.

    Args:
        table: Where the rows point; of one without photos, none count.
        rows: (n,) int64 product rows.
    """
    known: dict[bytes, int] = {}

    def number(kind: bytes, data: bytes) -> int:
        return known.setdefault(hashlib.blake2b(data, digest_size=16, person=kind).digest(), len(known))

    texts = [number(b"text", text.encode()) for text in table.texts(rows)]
    images = table.columns(["image"], rows)["image"] if table.photos else [None] * len(rows)
    root, most = table.catalogue.photo_root, table.processor.max_photos
    photos: list[tuple[Photo, ...]] = []
    for image in images:
        stored = {place: one for place, one in enumerate(_listed(image)) if not is_null(one)}
        files = {place: _file(one, root) for place, one in stored.items()}
        if len(files) > most:
            whole = b"".join(len(file).to_bytes(8, "little") + file for file in files.values())
            photos.append((Photo(number(b"photos", whole), tuple(files)),))
        else:
            photos.append(tuple(Photo(number(b"photo", file), (place,)) for place, file in files.items()))
    return ShownParts(texts, photos)


def _listed(image: Any) -> list[Any]:
    return list(image) if is_photo_list(image) else [image]


def _file(photo: Any, root: str | os.PathLike[str] | None) -> bytes:
    try:
        return photo_bytes(photo, root)
    except PhotoError as error:
        # As in the digest of a product: it will be missing.
        return b"\0" + str(error).encode()


class PartBatch:
    """Products that are fused together, and what has to be encoded for them first.

    Attributes:
        rows: (P,) int64 catalogue rows.
        parts: What they show; None where none of it is anybody else's, so that it is a batch like any other.
        new_texts: Texts to encode: their numbers, and a row that shows each.
        new_photos: Photos to encode, in the same way.
        done: Numbers that no later batch shows.
    """

    def __init__(self, rows: Rows, parts: ShownParts | None) -> None:
        self.rows, self.parts = rows, parts
        self.new_texts: dict[int, int] = {}
        self.new_photos: dict[int, tuple[int, Photo]] = {}
        self.done: set[int] = set()

    def __len__(self) -> int:
        return len(self.rows)


def part_batches(
    rows: Rows, parts: ShownParts, lengths: npt.NDArray[np.int64], batch_size: int, *, share: bool = True
) -> list[PartBatch]:
    """Batches of products, shortest texts first, in which those that share something are next to each other.

    Without anything shared these are batches of `batch_size` products; with it, batches in which as many products show
    something that was not encoded before.

    Args:
        rows: (n,) int64 catalogue rows, of a shard.
        parts: What they show.
        lengths: (n,) int64 characters of their texts.
        batch_size: Products per batch of the encoders.
        share: False encodes everything anew for each product.
    """
    numbers = parts.numbers()
    uses = Counter(number for own in numbers for number in own)
    left = uses.copy()
    group = _groups(numbers)
    longest = np.zeros(len(rows), dtype=np.int64)
    np.maximum.at(longest, group, lengths)
    order = np.lexsort((lengths, group, longest[group]))
    batches: list[PartBatch] = []
    seen: set[int] = set()
    for places in _cut(order.tolist(), numbers, batch_size):
        alone = not share or all(uses[number] == 1 for place in places for number in numbers[place])
        own = ShownParts([parts.texts[place] for place in places], [parts.photos[place] for place in places])
        batch = PartBatch(rows[places], None if alone else own)
        batches.append(batch)
        if alone:
            continue
        for row, text, photos in zip(batch.rows.tolist(), own.texts, own.photos, strict=True):
            if text not in seen:
                batch.new_texts[text] = row
            for photo in photos:
                if photo.number not in seen:
                    batch.new_photos.setdefault(photo.number, (row, photo))
            seen |= {text, *(photo.number for photo in photos)}
        shown = Counter(number for place in places for number in numbers[place])
        left.subtract(shown)
        batch.done = {number for number in shown if not left[number]}
    return batches


def _groups(numbers: Sequence[set[int]]) -> npt.NDArray[np.int64]:
    """For each product the first one that it shares something with, at whatever remove."""
    parent = list(range(len(numbers)))
    shown_by: dict[int, int] = {}

    def first(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    for place, own in enumerate(numbers):
        for number in own:
            one, other = first(shown_by.setdefault(number, place)), first(place)
            parent[max(one, other)] = min(one, other)
    return np.array([first(place) for place in range(len(numbers))], dtype=np.int64)


def _cut(order: list[int], numbers: Sequence[set[int]], batch_size: int) -> Iterator[list[int]]:
    seen: set[int] = set()
    batch: list[int] = []
    encoded = 0
    for place in order:
        new = not numbers[place] <= seen
        if encoded + new > batch_size or len(batch) == _FUSED_AT_ONCE * batch_size:
            yield batch
            batch, encoded = [], 0
        batch.append(place)
        encoded += new
        seen |= numbers[place]
    yield batch


class PartTable(Dataset[dict[str, Any]]):
    """Inputs of the batches of [`part_batches`]: of a [`PartBatch`] with parts, of its new texts and photos alone."""

    def __init__(self, table: ProductTable) -> None:
        self.table = table

    def __getitem__(self, batch: PartBatch) -> dict[str, Any]:
        if batch.parts is None:
            return dict(self.table[batch.rows])
        found: dict[str, Any] = {"product_rows": torch.from_numpy(batch.rows)}
        if batch.new_texts:
            rows = np.array(list(batch.new_texts.values()))
            texts = self.table.processor.process_product_texts(self.table.texts(rows))
            found.update(texts)
        if batch.new_photos:
            photos = self._read(list(batch.new_photos.values()))
            found["photo_counts"] = torch.tensor([len(own) for own in photos])
            flat = [photo for own in photos for photo in own]
            if flat:
                found["pixel_values"] = self.table.processor.pixel_values(flat)
        return found

    def _read(self, wanted: list[tuple[int, Photo]]) -> list[list[Any]]:
        table = self.table.columns(["product_id", "image"], np.array([row for row, _ in wanted]))

        def read(place: int) -> list[Any]:
            listed = _listed(table["image"][place])
            kept = [one if at in wanted[place][1].places else None for at, one in enumerate(listed)]
            return self.table.reader(table["product_id"][place], kept)

        return in_threads(read, range(len(wanted)))


class PartEncoder:
    """Embeds batches of [`PartTable`] one after the other, and keeps the states that later ones need again.

    Args:
        model: In evaluation mode.
    """

    def __init__(self, model: MMFusionModel) -> None:
        self.model = model
        # Of texts: tokens, pooled state and mask. Of photos: tokens and pooled states of those that could be read.
        self._texts: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self._photos: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, batch: PartBatch, inputs: Mapping[str, Any]) -> MMFusionOutput:
        """The output for the products of a batch, from what `PartTable` gives for it without `product_rows`."""
        if batch.parts is None:
            return self.model(**inputs)
        self._encode(batch, inputs)
        texts = [self._texts[number] for number in batch.parts.texts]
        tokens, masks = (pad_sequence([text[part] for text in texts], batch_first=True) for part in (0, 2))
        text = Encoded(tokens, torch.stack([pooled for _, pooled, _ in texts]))
        photos = [[self._photos[photo.number] for photo in own] for own in batch.parts.photos]
        images, photo_mask = self._side_by_side(photos)
        output = self.model.fuse_products(text, masks, images, photo_mask)
        for number in batch.done:
            self._texts.pop(number, None)
            self._photos.pop(number, None)
        return output

    def _encode(self, batch: PartBatch, inputs: Mapping[str, Any]) -> None:
        if batch.new_texts:
            mask = inputs["attention_mask"]
            encoded = self.model.encode_product_texts(inputs["input_ids"], mask)
            self._keep(self._texts, batch, list(batch.new_texts), zip(*encoded, mask, strict=True))
        if batch.new_photos:
            counts = inputs["photo_counts"].tolist()
            if "pixel_values" in inputs:
                states = self.model.encode_product_photos(inputs["pixel_values"])
                split = zip(*(part.split(counts) for part in states), strict=True)
                self._keep(self._photos, batch, list(batch.new_photos), split)
            else:
                self._photos.update(dict.fromkeys(batch.new_photos, (torch.empty(0), torch.empty(0))))

    @staticmethod
    def _keep(kept: dict[int, Any], batch: PartBatch, numbers: list[int], states: Iterator[tuple[Tensor, ...]]) -> None:
        for number, own in zip(numbers, states, strict=True):
            # A view would hold on to the states of the whole batch.
            kept[number] = own if number in batch.done else tuple(part.clone() for part in own)

    def _side_by_side(self, photos: list[list[tuple[Tensor, Tensor]]]) -> tuple[Encoded | None, Tensor]:
        """States of the photos of P products, (P, photos, …), and which of them are there, (P, photos) bool."""
        counts = [sum(len(tokens) for tokens, _ in own) for own in photos]
        widest = max(counts)
        mask = torch.tensor([[place < count for place in range(max(widest, 1))] for count in counts])
        mask = mask.to(self.model.device)
        if not widest:
            return None, mask
        rows = [[torch.cat(part) for part in zip(*(one for one in own if len(one[0])), strict=True)] for own in photos]
        empty = [part[:0] for part in next(row for row in rows if row)]
        filled = [row or empty for row in rows]
        tokens, pooled = (pad_sequence([row[part] for row in filled], batch_first=True) for part in (0, 1))
        return Encoded(tokens, pooled), mask
