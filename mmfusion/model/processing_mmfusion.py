"""From queries and products to tensors: text templates, prompts, truncation, photos and their masks."""

import datetime
import inspect
import numbers
import uuid
from collections.abc import Callable, Mapping, Sequence
from string import Formatter
from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature, ProcessorMixin

from .errors import explained
from .image_processors import load_image_processor, new_image_processor
from .missing import is_missing
from .photos import PhotoError, upright_rgb
from .pixels import looked_up, looks_up, resized
from .remote_code import keep_module
from .text_encoders import not_empty
from .text_tokenizers import load_tokenizer, open_tokenizer

PHOTO_COLUMN = "image"
PhotoLoader = Callable[[str], Image.Image]


class MMFusionProcessor(ProcessorMixin):
    """Turns queries and products into the inputs of [`MMFusionModel`].

    A product's columns become text the same way, whichever library the product comes from. None, NaN, NaT and pandas'
    NA mean that there is no value. The values of a list are joined by a comma and a blank, as sellers enumerate, which
    keeps "light blue" and "dark red" apart; missing ones are left out. Numbers are written with their shortest digits
    and keep their type (`3` is "3", `3.0` is "3.0", so convert a column of whole numbers that pandas made floats of),
    dates as ISO 8601 with a blank before the time. Structs and bytes are errors.

    Args:
        image_processor: Image processor of the vision encoder; it must give photos one fixed size.
        tokenizer: Tokenizer of the text encoder.
        product_template: `str.format` template over product columns, e.g. `"{title} {description}"`.
        query_prompt: Prefix of every query.
        product_prompt: Prefix of every product text.
        max_query_length: Longest query in tokens; longer ones are truncated.
        max_product_length: Longest product text in tokens; longer ones are truncated.
        max_photos: Photos of a product beyond this number are ignored.
        pad_to_max_length: Pads texts to full length, as SigLIP was trained, rather than to the longest in the batch.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        product_template: str = "{title}",
        query_prompt: str = "",
        product_prompt: str = "",
        max_query_length: int = 32,
        max_product_length: int = 64,
        max_photos: int = 4,
        pad_to_max_length: bool = False,
    ) -> None:
        super().__init__(image_processor, tokenizer)
        self.product_template = product_template
        self.query_prompt = query_prompt
        self.product_prompt = product_prompt
        self.max_query_length = max_query_length
        self.max_product_length = max_product_length
        self.max_photos = max_photos
        self.pad_to_max_length = pad_to_max_length
        for name in ("max_query_length", "max_product_length", "max_photos"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"MMFusionProcessor.{name} is {value!r}; give an integer of at least 1.")
        self.template_columns = _template_columns(product_template)

    @classmethod
    def from_backbones(
        cls,
        text: str,
        vision: str,
        *,
        image_size: tuple[int, int] | None = None,
        trust_remote_code: bool = False,
        **fields: Any,
    ) -> "MMFusionProcessor":
        """Combines the tokenizer of one pretrained model with the image processor of another.

        Args:
            text: Folder or Hub id of the text encoder or dual encoder.
            vision: Folder or Hub id of the vision encoder or dual encoder.
            image_size: (height, width) in pixels that every photo is resized to, whole, without cropping. None keeps
                the image processor's own resizing.
            trust_remote_code: Whether code that comes with an encoder may run, where transformers has none for it.
            fields: Further arguments of the constructor. Their defaults follow from the text encoder's checkpoint:
                texts for SigLIP are padded to its full length, as it reads padding; a folder of sentence-transformers
                says which prompts and lengths its encoder was trained with; no length is above its positions.

        Raises:
            ValueError: A length is above what the text encoder takes, or its tokenizer does not fit it.
        """
        image_processor = new_image_processor(vision, image_size, trust_remote_code)
        tokenizer, fields = load_tokenizer(text, fields, trust_remote_code=trust_remote_code)
        return cls(image_processor, tokenizer, **fields)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Loads a processor from a folder or the Hub, as `ProcessorMixin.from_pretrained` does.

        Raises:
            HubError: There is no such processor or it cannot be fetched; one line says which, and what to do.
        """
        with explained(pretrained_model_name_or_path, kwargs.get("revision")):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def from_args_and_dict(cls, args: Any, processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        # transformers drops fields that it does not know, so a misspelt one would pass in silence.
        known = [*inspect.signature(cls).parameters, "auto_map", "processor_class"]
        unknown = sorted(set(processor_dict) - set(known))
        if unknown:
            raise ValueError(
                f"MMFusionProcessor has no field {', '.join(map(repr, unknown))} (in processor_config.json); its "
                f"fields are {', '.join(known)}. Correct the name, or upgrade mmfusion if a newer version wrote it."
            )
        return super().from_args_and_dict(args, processor_dict, **kwargs)

    @classmethod
    def _get_arguments_from_pretrained(
        cls, pretrained_model_name_or_path: Any, processor_dict: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[Any]:
        # Unless it is said, transformers would ask on the terminal whether code that comes with a model may run.
        kwargs = {"trust_remote_code": False, **kwargs}
        tokenizer = open_tokenizer(pretrained_model_name_or_path, **kwargs)
        return [load_image_processor(pretrained_model_name_or_path, **kwargs), tokenizer]

    def __call__(
        self,
        queries: str | Sequence[str] | None = None,
        products: Sequence[Mapping[str, Any]] | None = None,
        photo_loader: PhotoLoader | None = None,
    ) -> BatchFeature:
        """Inputs for the model.

        Args:
            queries: One query or several.
            products: Mappings with the columns of the template and, under `image`, a PIL image of any mode, several, or
                None (or NaN: no photo). An image that `Image.open` gives is read as its file is by the recipes, see
                `upright_rgb`.
            photo_loader: Gives the image of a photo that is a text: its URL, say. By default a text is an error.

        Returns:
            For queries alone `input_ids`, `attention_mask` (arguments of `get_query_features`); for products alone the
            arguments of `get_product_features`; for both the arguments of `forward`.

        Raises:
            ValueError: Neither is given, one is empty, a query is blank or no text, a template column is missing from a
                product or holds a struct or bytes, or a photo is no PIL image or a broken one.
        """
        if queries is None and products is None:
            raise ValueError("Give queries, products or both; got neither.")
        queries = [queries] if isinstance(queries, str) else queries
        text = BatchFeature() if queries is None else self.process_queries(queries)
        features = BatchFeature() if products is None else self.process_products(products, photo_loader)
        if queries is None or products is None:
            return BatchFeature({**text, **features})
        renamed = {f"product_{name}": features.pop(name) for name in ("input_ids", "attention_mask")}
        return BatchFeature({**{f"query_{name}": value for name, value in text.items()}, **renamed, **features})

    def process_queries(self, queries: Sequence[str]) -> BatchFeature:
        """`input_ids` and `attention_mask`, both (Q, length) int64."""
        features = self._tokenize(query_texts(queries, self.query_prompt), self.max_query_length)
        # A query whose characters the tokenizer drops becomes a single token of padding.
        features["attention_mask"] = not_empty(features["attention_mask"])
        return features

    def process_products(
        self, products: Sequence[Mapping[str, Any]], photo_loader: PhotoLoader | None = None
    ) -> BatchFeature:
        """`input_ids`, `attention_mask` (P, length) int64, and, if any product has a photo, those of photos.

        A product without text has an attention mask of zeros. `pixel_values` is (P, photos, channels, height, width)
        float32 and `photo_mask` (P, photos) bool.
        """
        features = self.process_product_texts([self.product_text(product) for product in products])
        photos = [photos_of(product.get(PHOTO_COLUMN)) for product in products]
        if photo_loader is not None:
            photos = [
                [photo_loader(photo) if isinstance(photo, str) else photo for photo in own[: self.max_photos]]
                for own in photos
            ]
        features.update(self.process_photos(photos))
        return features

    def process_product_texts(self, texts: Sequence[str]) -> BatchFeature:
        """Tokens of rendered product texts, (P, length) int64; the mask of an empty text is all zeros."""
        features = self._tokenize([self.product_prompt + text for text in texts], self.max_product_length)
        features["attention_mask"][[not text for text in texts]] = 0
        return features

    def process_photos(self, photos: Sequence[Sequence[Image.Image]]) -> dict[str, torch.Tensor]:
        """`pixel_values` and `photo_mask` of P lists of images of any mode; empty if there is no photo at all.

        Raises:
            ValueError: A photo is no PIL image or a broken one; the message has the product's position.
        """
        photos = [
            [_upright(photo, f"A photo of product {position}") for photo in list(own)[: self.max_photos]]
            for position, own in enumerate(photos)
        ]
        widest = max((len(own) for own in photos), default=0)
        if widest == 0:
            return {}
        mask = torch.tensor([[position < len(own) for position in range(widest)] for own in photos])
        pixels = self.pixel_values([photo for own in photos for photo in own])
        if mask.all():
            return {"pixel_values": pixels.unflatten(0, mask.shape), "photo_mask": mask}
        padded = pixels.new_zeros(*mask.shape, *pixels.shape[1:])
        padded[mask] = pixels
        return {"pixel_values": padded, "photo_mask": mask}

    def pixel_values(self, photos: Sequence[Image.Image]) -> torch.Tensor:
        """(count, channels, height, width) float32 of images of any mode.

        Raises:
            ValueError: A photo is no PIL image or a broken one, or the image processor gives arrays of several shapes.
        """
        upright = [_upright(photo, f"Photo {position}") for position, photo in enumerate(photos)]
        fast = looks_up(self.image_processor)
        if fast:
            arrays = resized(self.image_processor, upright)
        else:
            arrays = self.image_processor(images=upright, return_tensors=None)["pixel_values"]
        shapes = {tuple(array.shape) for array in arrays}
        if len(shapes) > 1 or any(len(shape) != 3 for shape in shapes):
            raise ValueError(
                f"The image processor gives arrays of shapes {sorted(shapes)[:3]} where all must have one shape "
                "(channels, height, width); set a fixed size, "
                "e.g. MMFusionProcessor.from_backbones(…, image_size=(224, 224))."
            )
        if fast:
            return looked_up(self.image_processor, arrays)
        # Some give views that run backwards (MobileViT's flipped channels), which torch does not take.
        return torch.stack([torch.as_tensor(array.copy()) for array in arrays]).float()

    def product_text(self, product: Mapping[str, Any]) -> str:
        """The product's text as its template renders it, without the prompt; empty if all columns used are blank.

        Raises:
            ValueError: A column that the template names is not in the product, or is not a text, number, date or list
                of those.
        """
        values = {}
        for column in self.template_columns:
            if column not in product:
                raise ValueError(
                    f"product_template {self.product_template!r} names the column {column!r}, which product "
                    f"{product.get('product_id', '?')!r} lacks (it has {', '.join(map(str, product))}); change the "
                    "template or add the column."
                )
            try:
                values[column] = text_of(product[column])
            except TypeError as error:
                raise ValueError(
                    f"product_template {self.product_template!r} names the column {column!r}, which for product "
                    f"{product.get('product_id', '?')!r} holds {error}."
                ) from None
        return clean(self.product_template.format(**values)) if any(values.values()) else ""

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values", "photo_mask"]

    def _tokenize(self, texts: list[str], max_length: int) -> BatchFeature:
        _check_any(texts)
        limit = min(max_length, self.tokenizer.model_max_length)
        padding = "max_length" if self.pad_to_max_length else "longest"
        encoded = self.tokenizer(
            texts, padding=padding, truncation=True, max_length=limit, return_attention_mask=True, return_tensors="pt"
        )
        ids, mask = (encoded[name].long() for name in ("input_ids", "attention_mask"))
        if ids.shape[1] == 0:
            # Of empty texts, and a tokenizer that adds no token of its own.
            ids, mask = ids.new_full((len(texts), 1), self.tokenizer.pad_token_id or 0), mask.new_zeros(len(texts), 1)
        return BatchFeature({"input_ids": ids, "attention_mask": mask})


def query_texts(queries: Sequence[str], prompt: str) -> list[str]:
    """Queries as they are tokenized: cleaned, behind their prompt.

    Raises:
        ValueError: There is no query, or one is blank or no text (NaN, say).
    """
    if is_missing(queries):
        raise ValueError(f"queries is {queries!r}; give one query or several.")
    for position, query in enumerate(queries):
        if not isinstance(query, str) or not query.strip():
            raise ValueError(f"Query {position} is {query!r}; a query is a text with at least one visible character.")
    _check_any(queries)
    return [prompt + clean(query) for query in queries]


def _check_any(texts: Sequence[str]) -> None:
    if len(texts) == 0:
        raise ValueError("There are no queries or products; give at least one.")


def clean(text: str) -> str:
    """Collapses runs of white space, which sellers' exports are full of, and replaces halves of broken emoji."""
    if not text.isascii():
        # A lone surrogate is not text to any tokenizer; a pair of them is one character that was split.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return " ".join(text.split())


def text_of(value: Any) -> str:
    """A column's value as text, cleaned; "" for a missing one, as [`MMFusionProcessor`] describes.

    Raises:
        TypeError: It is not a text, number, date or list of those; says what it is, and what to do.
    """
    value = _plain(value)
    if isinstance(value, str):
        return clean(value)
    if is_missing(value):
        return ""
    if isinstance(value, Mapping) or hasattr(value, "_fields") or hasattr(value, "asDict"):
        raise TypeError(f"a struct, {short(value)}; put the fields that are text into columns of their own")
    if isinstance(value, (bytes, bytearray, memoryview)):
        raise TypeError(f"bytes, {short(bytes(value))}; decode them to text")
    if isinstance(value, (list, tuple)):
        return ", ".join(text for text in map(text_of, value) if text)
    if isinstance(value, (numbers.Number, datetime.date, datetime.time, datetime.timedelta, uuid.UUID)):
        return str(value)
    raise TypeError(f"a {type(value).__name__}, {short(value)}; convert it to text")


def _plain(value: Any) -> Any:
    """A scalar or an array of NumPy, Arrow, pandas or Polars as Python values; others as they are."""
    if isinstance(value, (str, bytes, bytearray, memoryview)):
        return value
    dtype = getattr(value, "dtype", None)
    if str(dtype).endswith("64[ns]") and type(value).__module__ == "numpy":
        # Times in nanoseconds would become numbers.
        value = value.astype(str(dtype).replace("[ns]", "[us]"))
    if getattr(dtype, "kind", "") == "V":
        raise TypeError(f"a struct, {short(value)}; put the fields that are text into columns of their own")
    for name in ("as_py", "tolist", "to_list", "to_pylist", "to_pytimedelta"):
        if callable(convert := getattr(value, name, None)):
            return convert()
    return value


def short(value: Any) -> str:
    """A value as errors show it: in one line, and not all of a long one."""
    text = repr(value).replace("\n", " ")
    return text if len(text) <= 60 else text[:59] + "…"


def photos_of(value: Any) -> list[Any]:
    """A product's photo column as a list, without missing ones: None or NaN, one photo, or several."""
    if getattr(getattr(value, "dtype", None), "kind", "") == "O":
        # A list column of pandas, not the pixels of a photo.
        value = value.tolist()
    several = value if isinstance(value, (list, tuple)) else [value]
    return [photo for photo in several if not is_missing(photo)]


def _upright(photo: Any, name: str) -> Image.Image:
    """The photo as the image processor reads it; `name` begins the message of an error."""
    if isinstance(photo, str):
        raise ValueError(
            f"{name} is the text {photo[:60]!r}; the processor opens and fetches nothing. Give PIL images, or the "
            "processor a photo_loader (mmfusion.hub.PhotoFetcher() for URLs)."
        )
    if not isinstance(photo, Image.Image):
        raise ValueError(f"{name} is a {type(photo).__name__}; give a PIL image, e.g. {_image_from(photo)}.")
    try:
        return upright_rgb(photo)
    except PhotoError as error:
        raise ValueError(f"{name} ({photo.mode}, {photo.width}x{photo.height}) cannot be used: {error}") from error


def _image_from(photo: Any) -> str:
    """Python that makes a PIL image of what was given instead."""
    if isinstance(photo, (bytes, bytearray, memoryview)):
        return "Image.open(io.BytesIO(photo))"
    if isinstance(photo, Mapping):
        return "Image.open(io.BytesIO(photo['bytes']))"
    if hasattr(photo, "shape"):
        # The shape and type that Pillow takes; of a tensor, most have the channels in front.
        return f"Image.fromarray(array) of a uint8 array (height, width, 3), where this has {tuple(photo.shape)}"
    return "Image.open(path)"


def _template_columns(template: str) -> list[str]:
    try:
        fields = [field for field in Formatter().parse(template) if field[1] is not None]
    except ValueError as error:
        raise ValueError(
            f"product_template {template!r} cannot be read: {error}; write a brace as {{{{ or }}}}."
        ) from None
    for _, name, specification, conversion in fields:
        # Attribute and index access in a template would let a downloaded config read Python objects, and a width fill
        # the memory.
        if not str(name).isidentifier() or specification or conversion:
            raise ValueError(
                f"product_template {template!r} has the field {name!r}; use plain column names: '{{title}}'."
            )
    if not fields:
        raise ValueError(f"product_template {template!r} names no column; use at least one, e.g. '{{title}}'.")
    return list(dict.fromkeys(str(name) for _, name, _, _ in fields))


MMFusionProcessor.register_for_auto_class("AutoProcessor")
keep_module(__name__)
