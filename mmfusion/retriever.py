"""Lists in, vectors out: queries and products through one model, and an index over the products."""

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm
from transformers import BatchFeature

from mmfusion.allocator import keep_freed_memory
from mmfusion.data.photos import PhotoError, decode_photo
from mmfusion.data.records import photo_struct, rows_of
from mmfusion.model import VIEWS, MMFusionModel, MMFusionProcessor
from mmfusion.model.fusion import IMAGE
from mmfusion.model.missing import is_missing
from mmfusion.model.photos import upright_rgb
from mmfusion.model.processing_mmfusion import PHOTO_COLUMN, photos_of, query_texts, short
from mmfusion.retrieval import PhotoQueryError, ProductIndex, Searcher
from mmfusion.retrieval.fingerprint import model_fingerprint
from mmfusion.retrieval.hits import PhotoSource
from mmfusion.retrieval.parts import PartBatch, PartEncoder, Photo, ShownParts, part_batches
from mmfusion.retrieval.query_tower import load_query_tower, untrained_problem
from mmfusion.retrieval.search import check_width

logger = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float32]
PhotoLoader = Callable[[str], Image.Image]
Item = TypeVar("Item")

# Chosen on val queries of fpi, see docs/benchmarks/photo-queries.md.
PHOTO_WEIGHT = 0.5

# Columns that a catalogue may lack; any other one that the template names and no product has is a mistake.
_OPTIONAL_COLUMNS = ("description",)


class Retriever:
    """A model and its processor: embeds queries and products, and indexes products. Safe to use from several threads.

    Args:
        model: The model, or its query tower alone, which embeds no products. It is put into evaluation mode.
        processor: The model's.
        photo_loader: Opens photos that are given as URLs, for example `mmfusion.hub.PhotoFetcher()`. None: a URL raises
            an error, as nothing is fetched by default.

    Example:
        >>> r = Retriever.from_pretrained("org/mm-ecom")  # doctest: +SKIP
        >>> index = r.index([{"title": "Summer dress", "image": "photos/1.jpg"}, {"title": "Mug"}])  # doctest: +SKIP
        >>> index.search("red dress", k=1)  # doctest: +SKIP
    """

    def __init__(
        self, model: MMFusionModel, processor: MMFusionProcessor, *, photo_loader: PhotoLoader | None = None
    ) -> None:
        keep_freed_memory()
        self.model = model.eval()
        self.processor = processor
        self.photo_loader = photo_loader
        self._fingerprint: str | None = None
        self._searcher: Searcher[ProductIndex] | None = None
        self._tokenizing = Lock()
        self._looked = False

    @classmethod
    def from_pretrained(
        cls,
        model_name_or_path: str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "float32",
        revision: str | None = None,
        subfolder: str = "",
        photo_loader: PhotoLoader | None = None,
        **kwargs: Any,
    ) -> "Retriever":
        """Loads a model from a folder or the Hub.

        Args:
            model_name_or_path: Folder, or Hub id (`org/name`).
            device: Where it computes, e.g. "cuda:1"; None: the accelerator of this machine, or else the CPU.
            dtype: Floating-point type of the weights, e.g. "bfloat16". Vectors are float32 in any case.
            revision: Branch, tag or commit on the Hub.
            subfolder: "query" loads the query tower alone, which is smaller and embeds no products.
            photo_loader: As for the constructor.
            kwargs: Further arguments of `PreTrainedModel.from_pretrained`, e.g. `token`.

        Raises:
            HubError: There is no such model, or it cannot be read.
            ValueError: `dtype` or `subfolder` is none of those above.
        """
        chosen = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
        if not isinstance(chosen, torch.dtype) or not chosen.is_floating_point:
            raise ValueError(f"dtype is {dtype!r}; give a floating-point type of torch, e.g. 'float32' or 'bfloat16'.")
        if subfolder not in ("", "query"):
            raise ValueError(f"subfolder is {subfolder!r}; give 'query' for the query tower alone, or leave it out.")
        model: Any  # mypy knows `to` by the decorator of transformers alone
        hub = {**kwargs, **({} if revision is None else {"revision": revision})}
        if subfolder:
            model, processor = load_query_tower(model_name_or_path, **hub)
        else:
            model = MMFusionModel.from_pretrained(model_name_or_path, **hub)
            processor = MMFusionProcessor.from_pretrained(model_name_or_path, **hub)
        retriever = cls(model, processor, photo_loader=photo_loader)
        if chosen != torch.float32:
            # An index belongs to the weights as they were saved, however they are rounded here.
            retriever._fingerprint = model_fingerprint(model, processor)
        # Unless it is checked, torch names the GPU that it was built for, whether there is one or not.
        found = torch.accelerator.current_accelerator(check_available=True)
        model.to(device=device or found or "cpu", dtype=chosen)
        return retriever

    @classmethod
    def from_encoders(
        cls,
        text: str | os.PathLike[str],
        vision: str | os.PathLike[str],
        *,
        image_size: tuple[int, int] | None = None,
        product_template: str = "{title}",
        seed: int = 0,
        trust_remote_code: bool = False,
        photo_loader: PhotoLoader | None = None,
        **model_config: Any,
    ) -> "Retriever":
        """Assembles a model from pretrained encoders, for `fit` to train: its projections are new.

        Args:
            text: Folder or Hub id of the text encoder (or of a dual encoder, which contributes its text half).
            vision: Folder or Hub id of the vision encoder (or of a dual encoder).
            image_size: Height and width in pixels that whole photos are resized to; None: as the image processor does.
            product_template: Product text over product columns, e.g. "{title} {description}".
            seed: Of the new weights.
            trust_remote_code: Whether code that comes with an encoder may run.
            photo_loader: As for the constructor.
            model_config: Fields of [`MMFusionConfig`], e.g. `embedding_dim=256`.

        Raises:
            HubError: An encoder cannot be loaded.
            ValueError: An encoder or a field does not fit.
        """
        places: dict[str, Any] = {"text": os.fspath(text), "vision": os.fspath(vision)}
        places |= {"trust_remote_code": trust_remote_code, "product_template": product_template}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = MMFusionModel.from_backbones(**places, **model_config)
        processor = MMFusionProcessor.from_backbones(**places, image_size=image_size)
        return cls(model, processor, photo_loader=photo_loader)

    def fit(
        self,
        products: Any,
        *,
        clicks: str | Sequence[str] | None = None,
        queries: Any = None,
        qrels: Any = None,
        output: str | os.PathLike[str] = "outputs/shop",
        **settings: Any,
    ) -> "Retriever":
        """Trains the model on products, and indexes them: what `mmfusion fit` does. Called again, it goes on.

        Without clicks or judgements it trains on products alone: which photo belongs to which title.

        Args:
            products: Dicts, or a table of pandas, Arrow or `datasets`, with `title`, `image` and perhaps `product_id`
                and further columns; or a path of what `mmfusion fit` takes, such as a shop's export or the folder of a
                catalogue.
            clicks: Files of click data, such as a search report.
            queries: A table with `query_id`, `query` and perhaps `split`, instead of clicks.
            qrels: A table with `query_id`, `product_id` and `grade`, that goes with them.
            output: Folder for everything that is written.
            settings: Further settings of `mmfusion fit`, e.g. `steps=500` or `optimization=Optimization(…)`.

        Returns:
            This retriever, with the model that was trained; `search` finds the products.

        Raises:
            FitError: There is nothing to fit, or the output folder began with another model or other settings.
            CatalogueError: Products, clicks or judgements cannot be used.
        """
        if not isinstance(products, (str, os.PathLike)):
            records = _records_of(products)
            products = [{"product_id": name, **one} for name, one in zip(_product_ids(records), records, strict=True)]
        # What trains imports this class, so that it is looked up when it is asked for.
        fitting: Any = import_module("mmfusion.commands.fit_records")
        inputs = {"clicks": clicks, "queries": queries, "qrels": qrels, "output": output}
        trained, index, photos = fitting.fit_records(self.model, self.processor, products, **inputs, **settings)
        device: Any = self.model.device
        self.model = MMFusionModel.from_pretrained(trained).to(device).eval()
        self.processor, self._fingerprint = MMFusionProcessor.from_pretrained(trained), None
        self._searcher = Searcher(self, ProductIndex.load(index), photos)
        return self

    def search(self, queries: Any = None, k: int = 10, *, image: Any = None, filter: Any = None, **ranking: Any) -> Any:
        """The k best of the products that `fit` or `index` have indexed last; see [`Searcher.search`].

        Raises:
            ValueError: Nothing has been indexed yet.
        """
        if self._searcher is None:
            raise ValueError("No products are indexed yet; call fit(products) or index(products) first.")
        return self._searcher.search(queries, k, image=image, filter=filter, **ranking)

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Writes model and processor into a folder, from which `from_pretrained` loads them."""
        self.model.save_pretrained(save_directory)
        self.processor.save_pretrained(save_directory)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of weights, config and preprocessing, which an index of this model's vectors knows, too."""
        if self._fingerprint is None:
            self._fingerprint = model_fingerprint(self.model, self.processor)
        return self._fingerprint

    @property
    def dimension(self) -> int:
        """D, the width of the vectors; with a query router that of its three views side by side."""
        return self.model.config.vector_dim

    @property
    def views(self) -> int:
        """Number of views side by side in a vector, 3 with a query router and otherwise 1."""
        return len(VIEWS) if self.model.config.query_router else 1

    def encode_queries(
        self,
        queries: str | Sequence[str],
        *,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        convert_to_tensor: bool = False,
        truncate_dim: int | None = None,
    ) -> Any:
        """Vectors of queries.

        Args:
            queries: n texts, or one. Longer ones than the model reads are truncated.
            batch_size: Texts per forward pass, at least 1.
            show_progress_bar: None shows one on a terminal where there are several batches.
            convert_to_tensor: Returns a tensor on the model's device rather than a NumPy array.
            truncate_dim: Components to keep of each view; best one of the widths that the model was trained for.

        Returns:
            float32 (n, D), or (D,) for a single text. Each vector has unit length; with a query router the length of
            each view is its weight.

        Raises:
            ValueError: A query is blank or no text; or `batch_size` or `truncate_dim` is out of range.
        """
        texts = [queries] if isinstance(queries, str) else list(queries)
        if texts:
            query_texts(texts, "")

        def embed(batch: list[str]) -> Tensor:
            # A tokenizer of transformers is set to the lengths of each call, which fails while another thread reads it.
            with self._tokenizing:
                inputs = self.processor.process_queries(batch)
            return self.model.get_query_features(**inputs.to(self.model.device), truncate_dim=truncate_dim)

        batches = _by_length([len(text) for text in texts], batch_size)
        items = [(places, [texts[place] for place in places]) for places in batches]
        vectors = self._in_batches(items, embed, show_progress_bar, truncate_dim)
        if self.views == 1:
            vectors = self._unit_length(vectors)
        return _given(vectors[0] if isinstance(queries, str) else vectors, convert_to_tensor)

    def encode_products(
        self,
        products: Any,
        *,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        convert_to_tensor: bool = False,
        truncate_dim: int | None = None,
    ) -> Any:
        """Vectors of products.

        Args:
            products: n dicts, or a table of pandas, Arrow or `datasets`, with the columns of the model's template and
                photos under `image`: the path or the bytes of a file, a PIL image, a dict with `bytes` or `path`, a URL
                (with a `photo_loader`), a list of these, or None.
            batch_size: Products per forward pass, at least 1.
            show_progress_bar: None shows one on a terminal where there are several batches.
            convert_to_tensor: Returns a tensor on the model's device rather than a NumPy array.
            truncate_dim: Components to keep of each view; best one of the widths that the model was trained for.

        Returns:
            float32 (n, D), or (D,) for a single dict. Each vector (with a query router each view) has unit length.

        Raises:
            ValueError: A column of the template is in no product, a value is not a text, or a photo cannot be read: the
                message names the product. Or `batch_size` or `truncate_dim` is out of range.
        """
        alone = isinstance(products, Mapping)
        vectors, _ = self._embed_products(_records_of(products), batch_size, show_progress_bar, truncate_dim)
        return _given(vectors[0] if alone else vectors, convert_to_tensor)

    def encode_photo_queries(
        self,
        photos: Sequence[Any],
        texts: Sequence[str | None] | None = None,
        *,
        photo_weight: float = PHOTO_WEIGHT,
    ) -> FloatArray:
        """Vectors of photos to search with, and of words that go with them.

        A photo is embedded as a product that has no text. Where there are words, the query is the weighted mean of
        the photo's vector and of the words' own: docs/benchmarks/photo-queries.md compares this with its alternatives.

        Args:
            photos: n photos, each a path, the bytes of a file, a PIL image or a URL (with a `photo_loader`).
            texts: Words for each photo, None or blank where it comes alone; None: all do.
            photo_weight: Weight of the photo where there are words, in [0, 1]; theirs is the rest.

        Returns:
            float32 (n, D); each vector (with a query router the photo's views together) has unit length.

        Raises:
            PhotoQueryError: The model is a query tower alone or a tower of texts, a photo cannot be read, or the
                numbers of photos and texts differ.
        """
        self.check_photo_queries()
        given = [None] * len(photos) if texts is None else texts
        words = [text if (text or "").strip() else None for text in given]
        if len(words) != len(photos) or not 0 <= photo_weight <= 1:
            raise PhotoQueryError(
                f"there are {len(photos)} photos, {len(words)} texts and the photo_weight {photo_weight}; give a text "
                "or None for each photo, and a weight of 0 to 1."
            )
        blank = dict.fromkeys(self.processor.template_columns)
        records: list[Mapping[str, Any]] = [
            {**blank, PHOTO_COLUMN: self._query_photo(place, photo)} for place, photo in enumerate(photos)
        ]
        vectors = self._embed_products(records, 32, False, None)[0] / self.views**0.5
        places = [place for place, text in enumerate(words) if text is not None]
        if places:
            said = self.encode_queries([text for text in words if text is not None], convert_to_tensor=True)
            mixed = photo_weight * vectors[places] + (1 - photo_weight) * F.normalize(said, dim=-1)
            vectors[places] = F.normalize(mixed, dim=-1)
        found: FloatArray = vectors.cpu().numpy()
        return found

    def similarity(self, queries: Any, products: Any) -> Tensor:
        """Inner products, float32 (n, m), of query vectors (n, D) and product vectors (m, D), arrays or tensors."""
        first, second = (torch.as_tensor(vectors).float() for vectors in (queries, products))
        return torch.atleast_2d(first) @ torch.atleast_2d(second).to(first.device).T

    def index(
        self,
        products: Any,
        *,
        factory: str = "Flat",
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        truncate_dim: int | None = None,
        lexical: bool | Sequence[str] = False,
    ) -> Searcher[ProductIndex]:
        """Embeds products and makes them searchable by text.

        Args:
            products: As for `encode_products`. The column `product_id` names each one; without it, the positions "0",
                "1", … do. Hits come with all other columns but `image`, and filters look at them.
            factory: FAISS factory string; "Flat" is exact.
            batch_size: Products per forward pass, at least 1.
            show_progress_bar: None shows one on a terminal where there are several batches.
            truncate_dim: Components to keep of each view.
            lexical: Columns whose words are searched, too (`mode="hybrid"`); True: those of the model's template.

        Returns:
            What searches them, for example `search("red dress", k=10, filter=[("price", "<", 50)])`, or
            `search("in green", image="photo.jpg")`. A notebook shows the hits with the photos given here. Its attribute
            `index` is the [`ProductIndex`], which `save` writes into a folder.

        Raises:
            ValueError: As for `encode_products`; or an id is missing or appears twice, or a column mixes types.
        """
        records = _records_of(products)
        metadata = _metadata(records)
        if lexical is True and metadata is not None:
            lexical = [name for name in self.processor.template_columns if name in metadata.column_names]
        vectors, weights = self._embed_products(records, batch_size, show_progress_bar, truncate_dim)
        index = ProductIndex.build(
            vectors.cpu().numpy(),
            _product_ids(records),
            model_fingerprint=self.fingerprint,
            metadata=metadata,
            modality_weights=weights.cpu().numpy(),
            factory=factory,
            lexical=lexical,
        )
        self._searcher = Searcher(self, index, _photo_source(records))
        return self._searcher

    def _embed_products(
        self,
        records: list[Mapping[str, Any]],
        batch_size: int,
        show_progress_bar: bool | None,
        truncate_dim: int | None,
    ) -> tuple[Tensor, Tensor]:
        """Vectors (n, D) and shares of text and photo (n, 2), both float32."""
        if not self._looked and self.model.is_untrained:
            # No error, as from Python this is how a model begins that is trained next.
            logger.warning("%s", untrained_problem("this model"))
        self._looked = True
        columns = {column for record in records for column in record} | set(_OPTIONAL_COLUMNS)
        blank = {column: None for column in self.processor.template_columns if column in columns}
        texts = [self.processor.product_text({**blank, **record}) for record in records]

        lengths = [len(text) for text in texts]
        batches = [PartBatch(np.array(places), None) for places in _by_length(lengths, batch_size)]
        parts = self._shown_parts(texts, records)
        if parts.any_equal:
            batches = part_batches(np.arange(len(records)), parts, np.array(lengths), batch_size)
        encoder = PartEncoder(self.model)

        def embed(batch: PartBatch) -> Tensor:
            inputs = self._inputs(batch, texts, records).to(self.model.device)
            output: Any = encoder(batch, inputs) if batch.parts else self.model.forward_products(**inputs)
            embeds = self.model.shorten(output.product_embeds, truncate_dim)
            return torch.cat([embeds.float(), output.modality_weights.float()], dim=1)

        found = self._in_batches([(batch.rows, batch) for batch in batches], embed, show_progress_bar, truncate_dim, 2)
        return self._unit_length(found[:, :-2]), found[:, -2:]

    def _shown_parts(self, texts: list[str], records: list[Mapping[str, Any]]) -> ShownParts:
        """Which texts and photos are equal; photos by their bytes, path or URL, and images by what object they are."""
        known: dict[Any, int] = {}
        photos = [
            tuple(
                Photo(known.setdefault(_photo_key(photo), len(known)), (place,))
                for place, photo in enumerate(photos_of(record.get(PHOTO_COLUMN))[: self.processor.max_photos])
            )
            for record in records
        ]
        return ShownParts([known.setdefault(("text", text), len(known)) for text in texts], photos)

    def _inputs(self, batch: PartBatch, texts: list[str], records: list[Mapping[str, Any]]) -> BatchFeature:
        """Texts and photos of the products of a batch, or, where it has parts, of those that are new."""
        if batch.parts is None:
            shown: Any = batch.rows.tolist()
            inputs = self.processor.process_photos([self._photos(row, records[row]) for row in shown])
        else:
            shown = batch.new_texts.values()
            photos = [self._photos(row, records[row], photo.places) for row, photo in batch.new_photos.values()]
            inputs = {"photo_counts": torch.tensor([len(own) for own in photos])}
            if flat := [photo for own in photos for photo in own]:
                inputs["pixel_values"] = self.processor.pixel_values(flat)
        if shown:
            with self._tokenizing:
                inputs.update(self.processor.process_product_texts([texts[row] for row in shown]))
        return BatchFeature(inputs)

    def _in_batches(
        self,
        batches: Sequence[tuple[Any, Item]],
        embed: Callable[[Item], Tensor],
        show_progress_bar: bool | None,
        truncate_dim: int | None,
        extra: int = 0,
    ) -> Tensor:
        """Rows of `embed` in the places that each batch comes with."""
        check_width(self.model.config, truncate_dim, allow_untrained=True)
        width = self.dimension if truncate_dim is None else truncate_dim * self.views
        count = sum(len(places) for places, _ in batches)
        found = torch.zeros(count, width + extra, device=self.model.device)
        hidden = (len(batches) <= 1 or None) if show_progress_bar is None else not show_progress_bar
        with torch.inference_mode(), tqdm(total=count, desc="embedding", disable=hidden) as progress:
            for places, batch in batches:
                found[places] = embed(batch).float()
                progress.update(len(places))
        return found

    def _unit_length(self, vectors: Tensor) -> Tensor:
        """Vectors of float32 as they are; those of a shorter type have lost their length by rounding."""
        if self.model.dtype == torch.float32 or not len(vectors):
            return vectors
        return F.normalize(vectors.unflatten(1, (self.views, -1)), dim=-1).flatten(1)

    def check_photo_queries(self) -> None:
        """Raises an error unless photos can be searched for.

        Raises:
            PhotoQueryError: The model is a query tower alone, or a tower of texts.
        """
        remedy = "search by photo with a whole model that was trained with photos, e.g. one with fusion 'gated'."
        if self.model.config.query_only:
            raise PhotoQueryError(f"this is a query tower alone, which reads words; {remedy}")
        if IMAGE not in self.model.fusion.reads:
            raise PhotoQueryError(
                f"the model's fusion is {self.model.config.fusion!r}, which does not look at photos; {remedy}"
            )

    def _query_photo(self, place: int, photo: Any) -> Image.Image:
        try:
            opened = self._open(photo)
        except (PhotoError, ValueError, OSError) as error:
            raise PhotoQueryError(f"the photo of query {place} cannot be read: {error}") from error
        if opened is None:
            raise PhotoQueryError(f"query {place} has no photo: it is {short(photo)}; give a path, bytes or an image.")
        return opened

    def _photos(self, row: int, record: Mapping[str, Any], places: Sequence[int] | None = None) -> list[Image.Image]:
        """Photos of a product, or those in some places of its list."""
        listed, photos = photos_of(record.get(PHOTO_COLUMN))[: self.processor.max_photos], []
        for photo in listed if places is None else [listed[place] for place in places]:
            try:
                opened = self._open(photo)
            except (PhotoError, ValueError, OSError) as error:
                name = record.get("product_id")
                known = "" if name is None else f" ({name!r})"
                raise ValueError(f"A photo of product {row}{known} cannot be read: {error}") from error
            photos += [] if opened is None else [opened]
        return photos

    def _open(self, photo: Any) -> Image.Image | None:
        if isinstance(photo, Image.Image):
            return upright_rgb(photo)
        if not isinstance(photo, (str, os.PathLike, bytes, bytearray, memoryview, Mapping)):
            raise ValueError(f"{short(photo)} is a {type(photo).__name__}; give a path, bytes or a PIL image.")
        stored = photo_struct(photo, os.getcwd())
        if stored is None:
            return None
        url = stored["path"]
        if not is_missing(stored["bytes"]) or "://" not in url:
            return decode_photo(stored)
        if self.photo_loader is None:
            raise ValueError(
                f"{url[:80]!r} is a URL, which is not fetched by default; give the Retriever a photo_loader, e.g. "
                "mmfusion.hub.PhotoFetcher()."
            )
        return upright_rgb(self.photo_loader(url))


def _by_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Places in batches of similar length, so that little is padded; the longest first."""
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; give at least 1.")
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _photo_key(photo: Any) -> Any:
    """What tells a photo from another one; of what is not known to be equal, the object itself."""
    if isinstance(photo, (str, os.PathLike)):
        return "path", os.fspath(photo)
    if isinstance(photo, Mapping):
        data, path = photo.get("bytes"), photo.get("path")
        stored = ("path", path) if data is None and isinstance(path, str) else ("object", id(photo))
        return ("bytes", data) if isinstance(data, bytes) else stored
    return ("bytes", photo) if isinstance(photo, bytes) else ("object", id(photo))


def _records_of(products: Any) -> list[Mapping[str, Any]]:
    if isinstance(products, Mapping):
        return [products]
    if isinstance(products, str) or not isinstance(products, (Iterable, pa.Table, pa.RecordBatch)):
        raise ValueError(
            f"products is {short(products)}; give a list of dicts, or a table of pandas, Arrow or datasets."
        )
    records = rows_of(products)
    for row, record in enumerate(records):
        if not isinstance(record, Mapping):
            raise ValueError(f"Product {row} is {short(record)}; give a dict, e.g. {{'title': …, 'image': …}}.")
    return records


def _product_ids(records: Sequence[Mapping[str, Any]]) -> list[str]:
    named = [record.get("product_id") for record in records]
    if all(name is None for name in named):
        return [str(row) for row in range(len(records))]
    if None in named:
        raise ValueError(f"Product {named.index(None)} has no product_id, and others have one; give one to each.")
    return [str(name) for name in named]


def _photo_source(records: Sequence[Mapping[str, Any]]) -> PhotoSource | None:
    """The photos that came with the products, to show hits; None where there are none."""
    shown = [record.get(PHOTO_COLUMN) for record in records]
    if not any(photos_of(photo) for photo in shown):
        return None
    return dict(zip(_product_ids(records), shown, strict=True)).get


def _metadata(records: Sequence[Mapping[str, Any]]) -> pa.Table | None:
    names = dict.fromkeys(name for record in records for name in record if name not in ("product_id", PHOTO_COLUMN))
    columns = {}
    for name in names:
        try:
            columns[str(name)] = pa.array([record.get(name) for record in records], from_pandas=True)
        except (pa.ArrowException, ValueError, TypeError) as error:
            raise ValueError(
                f"Column {name!r} of the products cannot be indexed ({error}); give values of one type, or leave it "
                "out."
            ) from error
    return pa.table(columns) if columns else None


def _given(vectors: Tensor, convert_to_tensor: bool) -> Any:
    return vectors if convert_to_tensor else vectors.cpu().numpy()
