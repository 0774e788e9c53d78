"""The two-tower model: a text-only query tower, and a product tower that fuses title and photos into one vector."""

import copy
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, logging

from .configuration_mmfusion import MMFusionConfig
from .errors import explained
from .families import pooled_size
from .fusion import TEXT, Fusion, FusionSizes, ProductViews, fusion_class, refer_to_code
from .heads import (
    VIEWS,
    Encoded,
    Projection,
    QueryRouter,
    Residual,
    TextHead,
    VisionNeck,
    evaluating,
    head_size,
    routed_products,
    routed_queries,
    shorten,
)
from .pretrained import check_complete, copy_weights, freeze_unread, hidden_size, load_half, load_text, new_encoder
from .remote_code import keep_module, save_encoder_code, save_portable_code, trusting
from .text_encoders import check_takes_embeddings, encode_text, encoded_text, not_empty
from .vision_encoders import (
    PhotoSizes,
    blank_photo,
    check_no_statistics,
    check_repeats,
    check_resumes,
    checkpoint_blocks,
    encode_photos,
    encode_photos_from,
    photo_sizes,
    vision_activations,
    vision_blocks,
    vision_prefix,
)
from .weights import HUB_ARGUMENTS, align_weights, check_no_adapter, fetch_weights

if TYPE_CHECKING:
    # transformers copies the files that imports name, whether they run or not: so this one is saved with the weights.
    from .sentence_transformers_mmfusion import MMFusionTowers as MMFusionTowers

logger = logging.get_logger(__name__)


@dataclass
class MMFusionOutput(ModelOutput):
    """Output of `MMFusionModel` for Q queries and P products; a side that was not given is None.

    Args:
        query_embeds: (Q, D) float, L2-normalised: the vectors to search with. (Q, 3 D) with a query router.
        product_embeds: (P, D) float, L2-normalised: the vectors to index. (P, 3 D) with a query router: the fused, text
            and photo view side by side, each L2-normalised, compared with queries by inner product.
        modality_weights: (P, 2) float, share of text and photo; rows sum to 1, exactly 0 for a missing modality.
        text_embeds: (P, D) float, L2-normalised text views; arbitrary where `modality_present[:, 0]` is False.
        image_embeds: (P, D) float, L2-normalised photo views; arbitrary where `modality_present[:, 1]` is False, and
            for `text_only` outside `views_only`, which does not look at photos of products with a text.
        modality_present: (P, 2) bool, columns text and photo.
        query_view_embeds: (Q, D) float, L2-normalised: what `text_embeds` and `image_embeds` are compared with.
        query_weights: (Q, 3) float with a query router: weights of the fused, text and photo view; rows sum to 1.
        fusion_penalty: Scalar that the fusion network asks to be added to the loss, with its weight.
        expert_load: (experts,) share of the products that each expert serves, of a mixture of experts.
    """

    query_embeds: Tensor | None = None
    product_embeds: Tensor | None = None
    modality_weights: Tensor | None = None
    text_embeds: Tensor | None = None
    image_embeds: Tensor | None = None
    modality_present: Tensor | None = None
    query_view_embeds: Tensor | None = None
    query_weights: Tensor | None = None
    fusion_penalty: Tensor | None = None
    expert_load: Tensor | None = None


class MMFusionPreTrainedModel(PreTrainedModel):
    """Weight initialisation and loading rules."""

    config_class = MMFusionConfig
    config: MMFusionConfig
    base_model_prefix = "mmfusion"
    main_input_name = "query_input_ids"
    input_modalities = ("image", "text")  # type: ignore[assignment]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _no_split_modules: list[str] = []  # noqa: RUF012 (transformers reads it)

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Any = checkpoint, *args: Any, **options: Any
    ) -> None:
        # What transformers calls to turn it on and off. Its own passes over encoders that know nothing of it, and in
        # older versions takes hooks into the layer, which are gone by the backward pass.
        if enable and not self.config.freeze_batch_norm:
            check_no_statistics(self)
        for encoder in self.encoders():
            checkpoint_blocks(encoder, gradient_checkpointing_func if enable else None)

    def encoders(self) -> list[PreTrainedModel]:
        """The encoders of a model, each once."""
        found = (getattr(self, name, None) for name in ("text_model", "query_model", "vision_model"))
        return [encoder for encoder in found if encoder is not None]

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        # For code outside transformers, a module is passed over once its own parameters are loaded, although it may be
        # the one that initialises a layer inside it. Ours checks each parameter, so that nothing needs passing over.
        super()._initialize_weights(module, is_custom_code=False)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Loads a model from a folder or the Hub, as `PreTrainedModel.from_pretrained` does, from safetensors alone.

        Args:
            pretrained_model_name_or_path: Folder, or Hub id (`org/name`).
            args, kwargs: As for transformers: `revision`, `subfolder`, `cache_dir`, `token`, `dtype` …

        Raises:
            HubError: There is no such model, it cannot be fetched, or it holds pickles or a PEFT adapter. One line says
                which, and what to do.
        """
        source = pretrained_model_name_or_path
        if source is None or kwargs.get("gguf_file"):
            return super().from_pretrained(source, *args, **kwargs)
        trust = kwargs.pop("trust_remote_code", None)
        with explained(source, kwargs.get("revision")), trusting(source, trust, kwargs):
            check_no_adapter(source, kwargs)
            if not isinstance(kwargs.get("config"), PreTrainedConfig):
                # A repository of another kind is named as such before its weights are looked at.
                hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
                cls.config_class.from_pretrained(kwargs.get("config") or source, trust_remote_code=trust, **hub)
            fetch_weights(source, kwargs)
            kwargs.update(use_safetensors=True, force_download=False)
            loaded: Any = super().from_pretrained(source, *args, **kwargs)
            model = loaded[0] if isinstance(loaded, tuple) else loaded
            align_weights(model)
            return loaded

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Saves a model as `PreTrainedModel.save_pretrained` does, with the code that its encoders and fusion bring.

        Raises:
            ValueError: There are LoRA adapters beside the weights.
        """
        if any(".lora_" in name for name, _ in self.named_parameters()):
            raise ValueError(
                "The model has LoRA adapters beside its weights, which nobody could load; save what "
                "mmfusion.stages.whole_model makes of it, with the adapters merged."
            )
        super().save_pretrained(save_directory, *args, **kwargs)
        for encoder in self.encoders():
            save_encoder_code(encoder, save_directory)
        if getattr(self, "fusion", None) is not None:
            save_portable_code(type(self.fusion), save_directory)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # Parameters that a checkpoint lacks come back as uninitialised memory unless they are covered here.
        super()._init_weights(module)
        # Code that comes with a model has a base class of its own.
        if module is getattr(self, "fusion", None):
            module.init_weights(self.config.initializer_range)
        if isinstance(module, (Residual, QueryRouter)):
            module.init_weights()
        if isinstance(module, MMFusionModel):
            init.constant_(module.logit_scale, math.log(self.config.logit_scale_init))
            if module.roles is not None:
                init.zeros_(module.roles.weight)
            for projection in (module.query_projection, module.text_projection, module.image_projection):
                if projection is not None:
                    init.orthogonal_(projection.weight)


class MMFusionModel(MMFusionPreTrainedModel):
    """Text-only query tower and multimodal product tower in one embedding space.

    Example:
        >>> model = MMFusionModel.from_pretrained("org/mm-ecom")  # doctest: +SKIP
        >>> processor = MMFusionProcessor.from_pretrained("org/mm-ecom")  # doctest: +SKIP
        >>> query = model.get_query_features(**processor(queries=["red floral dress"]))  # doctest: +SKIP
    """

    # Those of the product tower are None in a query-only model; `_needs_products` stands before each use.
    text_model: PreTrainedModel
    query_model: PreTrainedModel | None
    vision_model: PreTrainedModel
    vision_neck: VisionNeck | None
    photo_sizes: PhotoSizes
    text_projection: Projection
    image_projection: Projection
    fusion: Fusion
    # Whether training shows the vision encoder a blank photo where a batch has none, so that it runs in every step.
    blank_photos: bool
    # Texts that a text encoder reads together, those of similar length; None: all of a batch.
    texts_at_once: int | None

    def __init__(self, config: MMFusionConfig) -> None:
        super().__init__(config)
        # A query-only model is a subset of the modules of the whole, under the same names: the weights of the whole
        # load into it, whether its towers share an encoder or not.
        shared, whole = config.share_text_encoder, not config.query_only
        self.text_model = new_encoder(config.text_config) if shared or whole else None  # type: ignore[assignment]
        self.query_model = None if shared else new_encoder(config.text_config)
        token_size = hidden_size(config.text_config)
        pooled = pooled_size(config.text_config, config.text_pooling, token_size)
        self.text_head = TextHead(config.text_head, pooled) if config.text_head and (shared or whole) else None
        self.query_head = TextHead(config.text_head, pooled) if config.text_head and not shared else None
        text_size = head_size(config.text_head, pooled)
        self.vision_model, self.vision_neck, self.photo_sizes = None, None, None  # type: ignore[assignment]
        sizes = self._add_vision(config, text_size, token_size) if whole else None
        self.roles = None
        if config.role_embedding:
            check_takes_embeddings(self.text_encoder("query"))
            words: Any = self.text_encoder("query").get_input_embeddings()
            self.roles = nn.Embedding(2, words.weight.shape[1])
        perceptron = (config.projection_hidden_size, config.projection_dropout)
        self.query_projection = Projection(text_size, config.embedding_dim, *perceptron)
        self.text_projection, self.image_projection, self.fusion = None, None, None  # type: ignore[assignment]
        if sizes is not None:
            self.text_projection = Projection(sizes.text, config.embedding_dim, *perceptron)
            self.image_projection = Projection(sizes.image, config.embedding_dim, *perceptron)
            kind = fusion_class(config)
            self.fusion = kind(config, sizes, **config.fusion_kwargs)
            refer_to_code(config, kind)
        self.query_router = QueryRouter(text_size) if config.query_router else None
        self.logit_scale = nn.Parameter(torch.tensor(math.log(config.logit_scale_init)))
        self.frozen_vision_blocks = 0
        self.blank_photos = False
        self.texts_at_once = None
        self.post_init()
        for encoder in self.encoders():
            freeze_unread(encoder, config.image_pooling if encoder is self.vision_model else config.text_pooling)

    def _add_vision(self, config: MMFusionConfig, text_size: int, token_size: int) -> FusionSizes:
        self.vision_model = new_encoder(config.vision_config, pooler=config.image_pooling == "pooler")
        layers, slots = config.vision_feature_layers, (config.neck_hidden_size, config.neck_heads)
        self.photo_sizes = photo_sizes(config.vision_config, config.image_pooling, layers)
        pooled, states = self.photo_sizes
        if not layers:
            return FusionSizes(text_size, pooled, token_size, states)
        self.vision_neck = VisionNeck(states, pooled, *slots)
        return FusionSizes(text_size, pooled + slots[0] * slots[1], token_size, slots[0])

    @classmethod
    def from_backbones(
        cls,
        text: str | PreTrainedModel,
        vision: str | PreTrainedModel,
        *,
        dtype: torch.dtype = torch.float32,
        trust_remote_code: bool = False,
        **config: Any,
    ) -> "MMFusionModel":
        """Assembles a model from pretrained encoders; projections and fusion network are new.

        What a checkpoint says of how it was trained is the default of the configuration: pooling and projection of a
        dual encoder, pooling, layers and prompts of a folder of sentence-transformers, the last token of a decoder.

        Args:
            text: Text encoder or dual encoder (CLIP, SigLIP …, which contributes its text half): local folder, Hub id
                or model.
            vision: Vision encoder or dual encoder, in the same way.
            dtype: Floating-point type of the loaded weights.
            trust_remote_code: Whether code that comes with an encoder may run, where transformers has none for it.
            config: Fields of [`MMFusionConfig`]. `embedding_dim` defaults to the width of the text encoder (of its
                projection, for CLIP): our projections then start as identity (as CLIP's own), and a pretrained
                encoder ranks from the first step as it did before. `image_pooling` defaults to what the vision encoder
                was trained with; where that cannot be known, a warning lists the choices.

        Raises:
            HubError: An encoder cannot be loaded: there is none, it holds pickles or an adapter, weights that are read
                are missing, or it needs code that is not trusted.
            ValueError: The text encoder cannot be a tower, or a field is wrong.
        """
        if config.get("query_only"):
            raise ValueError("A model is assembled whole; drop query_only=True, and take the query tower out later.")
        text_half, config = load_text(text, dtype, config, trust_remote_code=trust_remote_code)
        vision_half = load_half(vision, "vision", dtype, trust_remote_code=trust_remote_code)
        if vision_half.pooling is not None:
            config.setdefault("image_pooling", vision_half.pooling)
        config["text_config"] = _portable(text_half.encoder.config)
        config["vision_config"] = _portable(vision_half.encoder.config)
        model = cls(MMFusionConfig(**config)).to(dtype)  # type: ignore[arg-type]
        for encoder in model.encoders():
            source, half = (vision, vision_half) if encoder is model.vision_model else (text, text_half)
            check_complete(source, encoder, half.missing | copy_weights(encoder, half.encoder))
        check_repeats(model.vision_model, model.config.image_pooling)
        for head in filter(None, (model.text_head, model.query_head)):
            if model.config.text_head == text_half.layers:
                head.load_state_dict(text_half.weights)
        started = [
            _start_projection(model.query_projection, text_half.projection),
            _start_projection(model.text_projection, text_half.projection),
            _start_projection(model.image_projection, vision_half.projection),
        ]
        # Both halves of a dual encoder were trained into one space. A tower of texts needs no photo in it.
        of_texts = model.config.fusion == "text_only" and all(started[:2])
        if not (all(started) and _are_halves(text, vision)) and not of_texts:
            model.config.untrained_projection = _digest(model.query_projection)
        return model

    @property
    def is_untrained(self) -> bool:
        """Whether nothing has trained the projections since `from_backbones` made them for encoders of two spaces.

        Vectors of texts and photos, and with new random projections also those of queries and products, cannot be
        compared then.
        """
        made = self.config.untrained_projection
        return bool(made) and made == _digest(self.query_projection)

    def train(self, mode: bool = True) -> "MMFusionModel":
        """Sets training mode; BatchNorm layers of the backbones keep their statistics if the config says so.

        In-batch statistics would make an embedding depend on its batch, which breaks gradient caching and the equality
        of one and two ranks.
        """
        super().train(mode)
        if self.config.freeze_batch_norm:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        if self.frozen_vision_blocks:
            # The blank photo that stands in for cached ones must not reach the statistics of the frozen stem.
            for module in vision_prefix(self.vision_model, self.frozen_vision_blocks):
                module.eval()
        return self

    @property
    def num_vision_blocks(self) -> int:
        """Blocks of the vision encoder."""
        self._needs_products("num_vision_blocks")
        return len(vision_blocks(self.vision_model))

    @property
    def activation_width(self) -> int | None:
        """How many of the first values of [`get_vision_activations`] are read of a photo; None: all.

        Of a frozen encoder, token states come last, and a neck or a fusion network reads them, or nobody.
        """
        frozen = self.frozen_vision_blocks == self.num_vision_blocks
        reads_tokens = self.vision_neck is not None or self.fusion.reads_tokens
        return self.photo_sizes.pooled if frozen and not reads_tokens else None

    def freeze_vision(self, blocks: int) -> None:
        """Freezes the vision encoder below block `blocks` (0: nothing); its input may then be passed instead of photos.

        Args:
            blocks: Number of lowest blocks; [`num_vision_blocks`] freezes the whole encoder.

        Raises:
            ValueError: The encoder has fewer blocks.
        """
        self._needs_products("freeze_vision")
        if blocks:
            prefix = vision_prefix(self.vision_model, blocks)
            check_resumes(self.vision_model, blocks, self.config.image_pooling)
            for module in prefix:
                module.requires_grad_(False)
        self.frozen_vision_blocks = blocks
        # Frozen blocks are in evaluation mode, whatever the rest is in.
        self.train(self.training)

    def get_vision_activations(self, pixel_values: Tensor) -> Tensor:
        """Output of the frozen part of the vision encoder, for a cache of features.

        Args:
            pixel_values: (photos, channels, height, width) float.

        Returns:
            (photos, …) float; the trailing shape is the encoder's own.
        """
        self._needs_products("get_vision_activations")
        with evaluating(self.vision_model):
            return vision_activations(
                self.vision_model,
                pixel_values.to(self.dtype),
                self.frozen_vision_blocks,
                self.config.image_pooling,
                self.config.vision_feature_layers,
            )

    def vision_prefix_state(self) -> Iterator[tuple[str, Tensor]]:
        """Parameters and buffers of the frozen part of the vision encoder, by a name that is unique and stable."""
        self._needs_products("vision_prefix_state")
        for index, module in enumerate(vision_prefix(self.vision_model, self.frozen_vision_blocks)):
            for name, value in module.state_dict().items():
                yield f"{index}.{name}", value

    def text_encoder(self, role: Literal["query", "product"]) -> PreTrainedModel:
        """The encoder of queries or of product texts; both are one where they share it."""
        if role == "product":
            self._needs_products("the text encoder of products")
        return self.text_model if role == "product" or self.query_model is None else self.query_model

    @torch.no_grad()
    def get_text_states(self, input_ids: Tensor, attention_mask: Tensor, role: Literal["query", "product"]) -> Tensor:
        """Token states (texts, length, hidden) of a text encoder in evaluation mode, for a cache of features.

        Args:
            input_ids, attention_mask: (texts, length) int64; a row without tokens gives arbitrary states.
            role: Which tower's texts these are.
        """
        encoder = self.text_encoder(role)
        with evaluating(encoder):
            return encode_text(encoder, input_ids, not_empty(attention_mask), "mean", self._role(role)).tokens

    def get_query_features(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        text_states: Tensor | None = None,
        truncate_dim: int | None = None,
        **unused: Any,
    ) -> Tensor:
        """Embeddings of queries: the vectors to search with.

        Args:
            input_ids: (Q, length) int64.
            attention_mask: (Q, length) int64, 1 for tokens and 0 for padding; at least one 1 in each row.
            text_states: (Q, length, hidden) float from [`get_text_states`], instead of running the encoder.
            truncate_dim: Components to keep of each view, in [1, D]; use one of `config.matryoshka_dims`.

        Returns:
            (Q, D) float, L2-normalised; (Q, 3 D) with a query router.
        """
        embeds = self.forward_queries(input_ids, attention_mask, text_states).query_embeds
        assert embeds is not None
        return self.shorten(embeds, truncate_dim)

    def get_product_features(
        self, input_ids: Tensor, attention_mask: Tensor, truncate_dim: int | None = None, **photos: Any
    ) -> Tensor:
        """Embeddings of products: the vectors to index.

        Args:
            input_ids, attention_mask, photos: As in [`forward_products`].
            truncate_dim: As in [`get_query_features`]; both sides need the same.

        Returns:
            (P, D) float, L2-normalised; (P, 3 D) with a query router.
        """
        embeds = self.forward_products(input_ids, attention_mask, **photos).product_embeds
        assert embeds is not None
        return self.shorten(embeds, truncate_dim)

    def shorten(self, embeds: Tensor, truncate_dim: int | None) -> Tensor:
        """Shortens vectors to search or to index to `truncate_dim` components per view; None leaves them as they are.

        A width that the model was not trained for is warned of once.

        Raises:
            ValueError: There are fewer components.
        """
        if truncate_dim is None:
            return embeds
        if not 1 <= truncate_dim <= self.config.embedding_dim:
            raise ValueError(
                f"truncate_dim is {truncate_dim}; give 1 to {self.config.embedding_dim} (trained: "
                f"{', '.join(map(str, self.config.matryoshka_dims)) or 'none'})."
            )
        if truncate_dim not in self.config.trained_widths():
            trained = ", ".join(map(str, self.config.trained_widths()))
            logger.warning_once(
                f"truncate_dim is {truncate_dim}, a width that this model was not trained for (trained: {trained}); "
                "expect worse rankings."
            )
        return shorten(embeds, truncate_dim, len(VIEWS) if self.config.query_router else 1)

    def forward_queries(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        text_states: Tensor | None = None,
        views_only: bool = False,
    ) -> MMFusionOutput:
        """Embeddings of queries and, with a query router, their weights of views.

        Args:
            input_ids, attention_mask, text_states: As in [`get_query_features`].
            views_only: Leaves the router out.
        """
        pooled = self._encode_text(input_ids, attention_mask, text_states, "query").pooled
        embeds = F.normalize(self.query_projection(pooled), dim=-1)
        weights = None if self.query_router is None or views_only else self.query_router(pooled)
        return MMFusionOutput(
            query_embeds=embeds if weights is None else routed_queries(embeds, weights),
            query_view_embeds=embeds,
            query_weights=weights,
        )

    def forward_products(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Tensor | None = None,
        photo_mask: Tensor | None = None,
        vision_activations: Tensor | None = None,
        text_states: Tensor | None = None,
        views_only: bool = False,
    ) -> MMFusionOutput:
        """Embeddings, modality weights and single-modality views of products.

        Args:
            input_ids: (P, length) int64 product texts.
            attention_mask: (P, length) int64; a row of zeros means that the product has no text.
            pixel_values: (P, photos, channels, height, width) float, or None if no product has a photo.
            photo_mask: (P, photos) bool, True where `pixel_values` holds a photo; None means all.
            vision_activations: (P, photos, …) float from [`get_vision_activations`], instead of `pixel_values`.
            text_states: (P, length, hidden) float from [`get_text_states`], instead of running the text encoder.
            views_only: Leaves the fusion network out; both views are computed, `product_embeds` is None.

        A product with neither text nor photo is embedded as the empty text, with weight 1 on text.
        """
        self._needs_products("embedding products")
        views = self._views(
            input_ids, attention_mask, text_states, pixel_values, photo_mask, vision_activations, views_only
        )
        return self._products(views, views_only)

    def encode_product_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Encoded:
        """States of product texts, for [`fuse_products`]; arguments as in [`forward_products`]."""
        self._needs_products("encoding product texts")
        return self._encode_text(input_ids, not_empty(attention_mask), None, "product")

    def encode_product_photos(self, pixel_values: Tensor) -> Encoded:
        """States of photos (photos, channels, height, width), for [`fuse_products`]."""
        self._needs_products("encoding photos")
        encoded = self._encode_vision(pixel_values.to(self.dtype))
        return encoded if self.vision_neck is None else self.vision_neck(encoded)

    def fuse_products(
        self, text: Encoded, attention_mask: Tensor, photos: Encoded | None, photo_mask: Tensor
    ) -> MMFusionOutput:
        """The second half of [`forward_products`], for texts and photos that several products share.

        Args:
            text: Of P products, from [`encode_product_texts`]: tokens (P, length, hidden) and pooled (P, hidden).
            attention_mask: (P, length) int64; a row of zeros means that the product has no text.
            photos: From [`encode_product_photos`]: tokens (P, photos, states, hidden) and pooled (P, photos, hidden);
                None if no product has a photo.
            photo_mask: (P, photos) bool, True where `photos` holds one.
        """
        self._needs_products("embedding products")
        has_text = attention_mask.any(1)
        read = self._read_photos(photo_mask, has_text, False)
        if photos is None or not read.any():
            image, image_mask = self._no_photos(len(photo_mask))
        else:
            image, image_mask = _joined(photos, read)
        views = self._views_of(text, not_empty(attention_mask), has_text, image, image_mask, photo_mask.any(1))
        return self._products(views, False)

    def _products(self, views: ProductViews, views_only: bool) -> MMFusionOutput:
        fused = None if views_only else self.fusion(views)
        embeds = None if fused is None else F.normalize(fused.embeds, dim=-1)
        if embeds is not None and self.query_router is not None:
            embeds = routed_products(embeds, views.text_embeds, views.image_embeds, views.present)
        return MMFusionOutput(
            product_embeds=embeds,
            modality_weights=None if fused is None else fused.weights,
            text_embeds=views.text_embeds,
            image_embeds=views.image_embeds,
            modality_present=views.present,
            fusion_penalty=None if fused is None else fused.penalty,
            expert_load=None if fused is None else fused.expert_load,
        )

    def forward(
        self,
        query_input_ids: Tensor | None = None,
        query_attention_mask: Tensor | None = None,
        product_input_ids: Tensor | None = None,
        product_attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        photo_mask: Tensor | None = None,
        vision_activations: Tensor | None = None,
        query_text_states: Tensor | None = None,
        product_text_states: Tensor | None = None,
        views_only: bool = False,
        return_dict: bool = True,
    ) -> MMFusionOutput | tuple[Tensor, ...]:
        """Both towers at once; inputs as in [`get_query_features`] and [`forward_products`]. There is no loss inside.

        Returns:
            [`MMFusionOutput`], or its values without the Nones as a tuple if `return_dict` is False.
        """
        output, queries = MMFusionOutput(), MMFusionOutput()
        for side, ids, mask in (
            ("product", product_input_ids, product_attention_mask),
            ("query", query_input_ids, query_attention_mask),
        ):
            if ids is not None and mask is None:
                raise ValueError(f"{side}_input_ids came without {side}_attention_mask; give both.")
        if product_input_ids is not None and product_attention_mask is not None:
            output = self.forward_products(
                product_input_ids,
                product_attention_mask,
                pixel_values,
                photo_mask,
                vision_activations,
                product_text_states,
                views_only,
            )
        if query_input_ids is not None and query_attention_mask is not None:
            queries = self.forward_queries(query_input_ids, query_attention_mask, query_text_states, views_only)
        output = MMFusionOutput(**queries, **output)
        return output if return_dict else output.to_tuple()

    def get_input_embeddings(self) -> nn.Module:
        return self.text_encoder("query" if self.config.query_only else "product").get_input_embeddings()

    def _needs_products(self, what: str) -> None:
        if self.config.query_only:
            raise ValueError(
                f"This model is the query tower alone (query_only): it has no product tower, which {what} needs. Load "
                'the whole model, from the same repository without subfolder="query".'
            )

    def _role(self, role: Literal["query", "product"]) -> Tensor | None:
        return None if self.roles is None else self.roles.weight[0 if role == "query" else 1]

    def _views(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        states: Tensor | None,
        pixel_values: Tensor | None,
        photo_mask: Tensor | None,
        activations: Tensor | None,
        all_views: bool,
    ) -> ProductViews:
        has_text = attention_mask.any(1)
        photo_mask = _photo_mask(pixel_values, activations, photo_mask, self.frozen_vision_blocks, input_ids)
        mask = not_empty(attention_mask)
        text = self._encode_text(input_ids, mask, states, "product")
        read = self._read_photos(photo_mask, has_text, all_views)
        image, image_mask = self._encode_photos(pixel_values, activations, read)
        return self._views_of(text, mask, has_text, image, image_mask, photo_mask.any(1))

    def _read_photos(self, photo_mask: Tensor, has_text: Tensor, all_views: bool) -> Tensor:
        """Which of the photos are looked at, (P, photos) bool."""
        if all_views or self.fusion.reads != (TEXT,):
            return photo_mask
        return photo_mask & ~has_text.unsqueeze(1)

    def _views_of(
        self, text: Encoded, mask: Tensor, has_text: Tensor, image: Encoded, image_mask: Tensor, has_image: Tensor
    ) -> ProductViews:
        present = torch.stack([has_text | ~has_image, has_image], dim=1)
        return ProductViews(
            text_embeds=F.normalize(self.text_projection(text.pooled), dim=-1),
            image_embeds=F.normalize(self.image_projection(image.pooled), dim=-1),
            text_pooled=text.pooled,
            image_pooled=image.pooled,
            text_tokens=text.tokens,
            image_tokens=image.tokens,
            text_mask=mask.bool() & present[:, TEXT, None],
            image_mask=image_mask,
            present=present,
        )

    def _encode_text(
        self, input_ids: Tensor, attention_mask: Tensor, states: Tensor | None, role: Literal["query", "product"]
    ) -> Encoded:
        pooling = self.config.text_pooling
        if attention_mask.shape != input_ids.shape:
            shapes = tuple(attention_mask.shape), tuple(input_ids.shape)
            raise ValueError(f"attention_mask has shape {shapes[0]}; input_ids {shapes[1]}.")
        if states is not None:
            encoded = encoded_text(states.to(self.dtype), attention_mask, pooling)
        else:
            role_embedding, at_once = self._role(role), self.texts_at_once
            encoded = encode_text(self.text_encoder(role), input_ids, attention_mask, pooling, role_embedding, at_once)
        head = self.text_head if role == "product" or self.query_head is None else self.query_head
        return encoded if head is None else encoded._replace(pooled=head(encoded.pooled))

    def _encode_photos(
        self, pixel_values: Tensor | None, activations: Tensor | None, photo_mask: Tensor
    ) -> tuple[Encoded, Tensor]:
        """Encodes the photos that are there; a product's photos become one token sequence and one pooled mean."""
        products, photos = photo_mask.shape
        given = pixel_values if activations is None else activations
        if given is None or not photo_mask.any():
            return self._no_photos(products)
        # Where each product has as many photos, nothing is copied into place.
        full, there = bool(photo_mask.all()), photo_mask.flatten()
        flat, are_activations = given.flatten(0, 1), activations is not None
        if are_activations and self.frozen_vision_blocks == self.num_vision_blocks:
            # All that is left to do is to tell pooled and token states apart; what is left out is left out of each.
            encoded = self._encode_vision(flat, are_activations)
            encoded = Encoded(*((states if full else states[there]).to(self.dtype) for states in encoded))
        else:
            encoded = self._encode_vision((flat if full else flat[there]).to(self.dtype), are_activations)
        if self.vision_neck is not None:
            encoded = self.vision_neck(encoded)
        if full:
            placed = Encoded(*(states.unflatten(0, (products, photos)) for states in encoded))
        else:
            placed = Encoded(*(_in_place(states, photo_mask) for states in encoded))
        return _joined(placed, photo_mask)

    def _encode_vision(self, photos: Tensor, are_activations: bool = False) -> Encoded:
        """States of photos (photos, channels, height, width), or of what the frozen blocks made of them."""
        pooling, layers = self.config.image_pooling, self.config.vision_feature_layers
        if are_activations:
            frozen = self.frozen_vision_blocks
            return encode_photos_from(self.vision_model, photos, frozen, pooling, layers, self.photo_sizes)
        return encode_photos(self.vision_model, photos, pooling, layers)

    def _no_photos(self, products: int) -> tuple[Encoded, Tensor]:
        weight = self.image_projection.weight
        width = self.photo_sizes.states if self.vision_neck is None else self.config.neck_hidden_size
        tokens, pooled = weight.new_zeros(products, 1, width), weight.new_zeros(products, weight.shape[1])
        if self.blank_photos and self.training:
            photo, frozen = blank_photo(self.vision_model), bool(self.frozen_vision_blocks)
            blank = self._encode_vision(self.get_vision_activations(photo) if frozen else photo, frozen)
            nothing = 0.0 * blank.tokens.sum()
            tokens, pooled = tokens + nothing, pooled + nothing
        return Encoded(tokens, pooled), torch.zeros(products, 1, dtype=torch.bool, device=weight.device)


def _portable(config: PreTrainedConfig) -> PreTrainedConfig:
    """A copy of the encoder's config; the path of a local folder means nothing to others and is left out."""
    config = copy.deepcopy(config)
    source = Path(config._name_or_path)
    if source.is_absolute() or source.exists():
        config._name_or_path = ""
    return config


def _are_halves(text: str | PreTrainedModel, vision: str | PreTrainedModel) -> bool:
    """Whether both come from one checkpoint."""
    if text is vision:
        return True
    names = [str(source if isinstance(source, (str, Path)) else source.name_or_path) for source in (text, vision)]
    first, second = (Path(name).resolve() if Path(name).exists() else name.rstrip("/") for name in names)
    return all(names) and first == second


def _digest(projection: nn.Module) -> str:
    """Some of the SHA-256 of its weights."""
    weights = (value.detach().float().cpu().contiguous() for value in projection.state_dict().values())
    return hashlib.sha256(b"".join(value.numpy().tobytes() for value in weights)).hexdigest()[:16]


@torch.no_grad()
def _start_projection(projection: nn.Linear, pretrained: nn.Linear | None) -> bool:
    """Starts a projection where vectors stay what they were; says whether there is such a start."""
    if pretrained is not None and pretrained.out_features == projection.out_features:
        # A neck appends its slots to what the encoder's own projection was trained on.
        projection.weight.zero_()[:, : pretrained.in_features] = pretrained.weight
        if pretrained.bias is not None:
            projection.bias.copy_(pretrained.bias)
    elif projection.in_features == projection.out_features:
        projection.weight.copy_(torch.eye(projection.in_features))
    else:
        return False
    return True


def _in_place(states: Tensor, mask: Tensor) -> Tensor:
    """Rows of `states` where `mask` (P, photos) is True, in order, and zeros elsewhere: (P, photos, …)."""
    placed = states.new_zeros(*mask.shape, *states.shape[1:])
    placed[mask] = states
    return placed


def _joined(photos: Encoded, mask: Tensor) -> tuple[Encoded, Tensor]:
    """Tokens (P, photos, states, hidden) of each product as one sequence with its mask, and the mean of pooled ones."""
    pooled = photos.pooled.masked_fill(~mask.unsqueeze(2), 0.0)
    mean = pooled.sum(1) / mask.sum(1, keepdim=True).clamp_min(1)
    return Encoded(photos.tokens.flatten(1, 2), mean), mask.repeat_interleave(photos.tokens.shape[2], dim=1)


def _photo_mask(
    pixel_values: Tensor | None, activations: Tensor | None, mask: Tensor | None, frozen: int, like: Tensor
) -> Tensor:
    """(P, photos) bool, True where there is a photo; (P, 1) False if there are none.

    Raises:
        ValueError: Photos, their mask, the frozen blocks and the P product texts `like` do not fit together.
    """
    photos = pixel_values if activations is None else activations
    if photos is None:
        if mask is not None and mask.any():
            raise ValueError("photo_mask says that there are photos, but there are none; give pixel_values or no mask.")
        return torch.zeros(len(like), 1, dtype=torch.bool, device=like.device)
    if activations is not None and not frozen:
        raise ValueError("vision_activations replace what a frozen prefix computes; call freeze_vision(blocks) first.")
    if activations is None and photos.ndim != 5:
        raise ValueError(
            f"pixel_values has shape {tuple(photos.shape)}; products need (P, photos, channels, height, width), "
            "with one photo each pixel_values.unsqueeze(1)."
        )
    if len(photos) != len(like):
        raise ValueError(
            f"There are {len(like)} product texts but photos of {len(photos)} products; give one row for each."
        )
    if mask is not None and mask.shape != photos.shape[:2]:
        raise ValueError(f"photo_mask has shape {tuple(mask.shape)}; the photos need {tuple(photos.shape[:2])}.")
    return torch.ones(photos.shape[:2], dtype=torch.bool, device=photos.device) if mask is None else mask.bool()


MMFusionModel.register_for_auto_class("AutoModel")
keep_module(__name__)
