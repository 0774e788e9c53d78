"""Both towers as the one module of a `SentenceTransformer`, so that it gives the same vectors as the model itself.

The file travels with the weights. It alone imports sentence-transformers, and nothing here imports it.
"""

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from .modeling_mmfusion import MMFusionModel
from .processing_mmfusion import PHOTO_COLUMN, MMFusionProcessor, photos_of, short, text_of
from .remote_code import keep_module
from .sentence_transformers_folder import SETTINGS

try:
    from sentence_transformers.base.modality import is_image_url_or_path
    from sentence_transformers.base.modules import InputModule
except ImportError as error:
    raise ImportError(
        f"mmfusion needs sentence-transformers 6 or newer for this ({error}); pip install -U sentence-transformers"
    ) from error

QUERY, DOCUMENT = "query", "document"
TEXT = "text"
VECTORS = "sentence_embedding"

_MODEL_INPUTS = ("input_ids", "attention_mask", "pixel_values", "photo_mask")


class MMFusionTowers(InputModule):
    """The query tower and the product tower of an [`MMFusionModel`], and its processor, for sentence-transformers.

    `encode_query` embeds queries, as `get_query_features` does, and `encode_document` embeds products, as
    `get_product_features` does. Plain `encode` embeds products as well, unless it is given `task="query"` or
    `prompt_name="query"`.

    A query is a string. A product is any of:

    - a string: its text. Where `product_template` has a single column (`"{title}"`) that is the column; where it has
      several, the text as the template would render it. It is never opened as a file nor fetched as a URL: a string
      that sentence-transformers would take for a photo raises an error;
    - a PIL image of any mode: its photo, upright and on white as [`upright_rgb`] makes it;
    - `{"text": …, "image": …}`, where either may be None, NaN or missing and `image` may be a list of photos;
    - the columns of `product_template` and, under `image`, the photos, as [`MMFusionProcessor`] takes them.

    One call may mix them. A `prompt` or `prompt_name` replaces the processor's own prompt of that side.

    Vectors have length 1, or are three views side by side with a query router (compare them by inner product; theirs
    is another length). `truncate_dim` keeps the first components and gives vectors their length back. For the three
    views of a routed model it raises an error: the first components are a part of one view. There,
    `encode_query(…, view_dim=64)` and `encode_document(…, view_dim=64)` shorten each view; without a router they do the
    same as `truncate_dim`.

    Example:
        >>> model = SentenceTransformer("org/mm-ecom", trust_remote_code=True)  # doctest: +SKIP
        >>> queries = model.encode_query(["red floral dress"])  # doctest: +SKIP
        >>> products = model.encode_document([{"text": "Acme dress", "image": photo}, "Acme shoe"])  # doctest: +SKIP
        >>> model.similarity(queries, products)  # doctest: +SKIP
    """

    forward_kwargs = {"view_dim"}  # noqa: RUF012 (sentence-transformers reads it)

    def __init__(self, model: MMFusionModel, processor: MMFusionProcessor) -> None:
        super().__init__()
        self.model = model
        self.processor = processor

    @classmethod
    def load(  # type: ignore[override]
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        trust_remote_code: bool = False,
        model_kwargs: Mapping[str, Any] | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        config_kwargs: Mapping[str, Any] | None = None,
        backend: str = "torch",
        **unused: Any,
    ) -> "MMFusionTowers":
        """Loads model and processor from a folder or a repository; `SentenceTransformer` calls it.

        Args:
            model_name_or_path: Folder or Hub id.
            subfolder: Folder within it.
            token, cache_folder, revision, local_files_only: As `SentenceTransformer` takes them.
            trust_remote_code: Whether the caller lets the repository's code in.
            model_kwargs: Further arguments of `MMFusionModel.from_pretrained`, e.g. `dtype`.
            processor_kwargs: Further arguments of `MMFusionProcessor.from_pretrained`.
            config_kwargs: Fields of the configuration to replace.
            backend: "torch", the only one.
            unused: What sentence-transformers offers to other modules.

        Raises:
            ValueError: Another backend.
        """
        if backend != "torch":
            raise ValueError(f"backend is {backend!r}; an mmfusion model runs with backend='torch' only.")
        source: dict[str, Any] = {
            "subfolder": subfolder,
            "token": token,
            "cache_dir": cache_folder,
            "revision": revision,
            "local_files_only": local_files_only,
            # An encoder may bring code of its own. The tokenizer reads the config, and would ask at the terminal.
            "trust_remote_code": trust_remote_code,
        }
        model = MMFusionModel.from_pretrained(
            model_name_or_path, **{**source, **(config_kwargs or {}), **(model_kwargs or {})}
        )
        processor = MMFusionProcessor.from_pretrained(model_name_or_path, **{**source, **(processor_kwargs or {})})
        return cls(model, processor)

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **unused: Any) -> None:
        """Writes what `MMFusionModel.save_pretrained` and `MMFusionProcessor.save_pretrained` write."""
        if not safe_serialization:
            raise ValueError("safe_serialization is False; weights of an mmfusion model are saved as safetensors only.")
        # sentence-transformers has written its settings by now, which may be others than those of the config.
        settings = Path(output_path) / SETTINGS
        given = settings.read_text("utf-8") if settings.is_file() else None
        self.model.save_pretrained(output_path)
        self.processor.save_pretrained(output_path)
        if given is not None:
            settings.write_text(given, "utf-8")

    def on_model_ready(self, model: Any) -> None:
        """Gives a new `SentenceTransformer` the similarity of this model, and prompts that say whose they are.

        Raises:
            ValueError: `truncate_dim` would cut the views of a routed model apart.
        """
        width = getattr(model, "truncate_dim", None)
        if width is not None and self.model.config.query_router and width < self.get_embedding_dimension():
            raise ValueError(self._cannot_cut(width))
        if getattr(model, "_similarity_fn_name", QUERY) is None:
            model.similarity_fn_name = "dot" if self.model.config.query_router else "cosine"
        # A SentenceTransformer made of modules, not loaded from a folder, knows nothing of our prompts.
        assembled = model.module_kwargs is None
        own = {QUERY: self.processor.query_prompt, DOCUMENT: self.processor.product_prompt}
        for task, prompt in own.items():
            given = model.prompts.get(task) or ""
            model.prompts[task] = _Prompt(prompt if assembled and not given else given)
            model.prompts[task].task = task

    @property
    def modalities(self) -> list[Any]:
        """What a product may consist of. "message" is how sentence-transformers calls a batch of different ones."""
        return [TEXT] if self._default_task == QUERY else [TEXT, "image", ("image", TEXT), "message"]

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        self.processor.tokenizer = tokenizer

    @property
    def max_seq_length(self) -> int:
        """Longest text in tokens, of queries or of products; setting it sets both."""
        return max(self.processor.max_query_length, self.processor.max_product_length)

    @max_seq_length.setter
    def max_seq_length(self, length: int) -> None:
        self.processor.max_query_length = self.processor.max_product_length = length

    def get_embedding_dimension(self) -> int:
        """Width of the vectors: of all three views with a query router."""
        return self.model.config.vector_dim

    def preprocess(
        self,
        inputs: Sequence[Any],
        prompt: str | None = None,
        task: str | None = None,
        max_length: int | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Inputs of [`forward`]: those of the query tower or of the product tower, and under `task` which of them.

        Args:
            inputs: Queries or products, as the class describes them.
            prompt: Replaces the processor's prompt of that side; None keeps it.
            task: "query" or "document"; None: that of the prompt, else "document".
            max_length: Longest text in tokens; None keeps the processor's limit. It takes the place of that one.
            options: What `encode` passes on to other modules; `processing_kwargs` raises an error.

        Raises:
            ValueError: An input is of another kind, a query is blank, or `task` is unknown.
        """
        if options.get("processing_kwargs"):
            raise ValueError(
                f"processing_kwargs is {options['processing_kwargs']!r}; an mmfusion processor takes none. Set its own "
                "fields instead: model.max_seq_length, or model.processor.max_photos."
            )
        chosen = self._task(task, prompt)
        if self.model.training and task is None and chosen == DOCUMENT:
            warnings.warn(
                "No task is given in training, so the product tower alone reads these inputs and learns; if they are "
                "queries, give SentenceTransformerTrainingArguments(router_mapping={'COLUMN': 'query', …}).",
                stacklevel=2,
            )
        task = chosen
        processor = self._processor(task, prompt, max_length)
        if task == QUERY:
            features = processor.process_queries([_query(item) for item in inputs])
        else:
            products = [self._product(item) for item in inputs]
            features = processor.process_product_texts([text for text, _ in products])
            features.update(processor.process_photos([photos for _, photos in products]))
        return {**features, "task": task}

    def forward(self, features: dict[str, Any], view_dim: int | None = None, **unused: Any) -> dict[str, Any]:
        """Adds the vectors, (rows, [`get_embedding_dimension`]) float, to the features that [`preprocess`] gave.

        Args:
            features: Inputs of one tower and, under `task`, which.
            view_dim: Components to keep of each view, in [1, D]; each keeps its length.
            unused: What sentence-transformers offers to other modules.
        """
        inputs = {name: features[name] for name in _MODEL_INPUTS if name in features}
        query = features.get("task", self._default_task) == QUERY
        embed = self.model.get_query_features if query else self.model.get_product_features
        return _Features(features, embed(**inputs, truncate_dim=view_dim), self._cut)

    @property
    def _default_task(self) -> str:
        return QUERY if getattr(self.model.config, "query_only", False) else DOCUMENT

    def _task(self, task: str | None, prompt: str | None) -> str:
        if task is None:
            task = getattr(prompt, "task", None)
        if task is None:
            of_queries = prompt is not None and prompt == self.processor.query_prompt != self.processor.product_prompt
            task = QUERY if of_queries else self._default_task
        if task not in (QUERY, DOCUMENT):
            raise ValueError(f"task is {task!r}; give {QUERY!r} for queries or {DOCUMENT!r} for products.")
        return task

    def _processor(self, task: str, prompt: str | None, max_length: int | None) -> MMFusionProcessor:
        processor, side = copy.copy(self.processor), "query" if task == QUERY else "product"
        if prompt is not None:
            setattr(processor, f"{side}_prompt", str(prompt))
        if max_length is not None:
            setattr(processor, f"max_{side}_length", max_length)
        return processor

    def _product(self, item: Any) -> tuple[str, list[Any]]:
        """A product's text, without its prompt, and its photos."""
        if isinstance(item, str):
            return self._text(item), []
        if isinstance(item, Image.Image):
            return "", [item]
        if not isinstance(item, Mapping):
            raise ValueError(
                f"A product is a {type(item).__name__}, {short(item)}; give a text, a PIL image or "
                '{"text": …, "image": …}.'
            )
        photos = photos_of(item.get(PHOTO_COLUMN))
        if set(item) <= {TEXT, PHOTO_COLUMN}:
            return self._text(item.get(TEXT)), photos
        if TEXT in item and TEXT not in self.processor.template_columns:
            raise ValueError(
                f"A product has {', '.join(map(repr, item))}; give either the text, under 'text', or the columns of "
                f"product_template {self.processor.product_template!r}."
            )
        return self.processor.product_text(item), photos

    def _text(self, text: Any) -> str:
        try:
            text = text_of(text)
        except TypeError as error:
            raise ValueError(f"The text of a product is {error}.") from None
        if text and is_image_url_or_path(text):
            raise ValueError(
                f"The text of a product is the address of a photo, {short(text)}; this model opens no files and no "
                "URLs. Give the photo itself, e.g. Image.open(path)."
            )
        columns = self.processor.template_columns
        return self.processor.product_text({columns[0]: text}) if len(columns) == 1 else text

    def _cut(self, vectors: Tensor, width: int) -> Tensor:
        if self.model.config.query_router:
            raise ValueError(self._cannot_cut(width))
        return self.model.shorten(vectors, width)

    def _cannot_cut(self, width: int) -> str:
        config = self.model.config
        trained = ", ".join(map(str, config.matryoshka_dims)) or "no shorter width"
        return (
            f"truncate_dim is {width}, but this model has a query router: its vectors are views of "
            f"{config.embedding_dim} components side by side, {config.vector_dim} in all, and the first {width} are a "
            f"part of one view. Give view_dim to encode_query and encode_document, which shortens each view (trained: "
            f"{trained})."
        )


class _Features(dict[str, Any]):
    """Features with vectors, which are shortened rightly when `encode(…, truncate_dim=…)` stores a cut of them.

    sentence-transformers does not pass `truncate_dim` to modules: it cuts the vectors after the last one.
    """

    # With a mapping alone it is a copy that has nothing to cut: so accelerate makes one for mixed precision.
    def __init__(
        self, features: Any = (), vectors: Tensor | None = None, cut: Callable[[Tensor, int], Tensor] | None = None
    ) -> None:
        super().__init__(features if vectors is None else {**features, VECTORS: vectors})
        self.cut = cut

    def __missing__(self, name: str) -> Any:
        raise ValueError(f"There is no {name!r}; the vectors of an mmfusion model are its {VECTORS!r}.")

    def __setitem__(self, name: str, value: Any) -> None:
        if name == VECTORS and self.cut is not None:
            whole, width = self[VECTORS], value.shape[-1]
            if not width or (width < whole.shape[-1] and value.data_ptr() == whole.data_ptr()):
                value = self.cut(whole, width)
        super().__setitem__(name, value)


class _Prompt(str):
    """A prompt that says whose it is: where it is empty, as it often is, nothing else does."""

    task: str


def _query(item: Any) -> str:
    if isinstance(item, Mapping) and set(item) == {TEXT}:
        item = item[TEXT]
    if not isinstance(item, str):
        raise ValueError(f"A query is a {type(item).__name__}, {short(item)}; the query tower reads strings only.")
    return item


keep_module(__name__)
