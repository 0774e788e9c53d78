"""Fusion networks: what they read and return, and the registry of their kinds.

A fusion network reads the views of a product and returns one vector per product and how much each modality gave.
docs/adding-a-fusion.md adds a kind.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar, get_type_hints

import torch
from huggingface_hub.dataclasses import type_validator
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from .remote_code import check_portable, remote_class, source_file

if TYPE_CHECKING:
    from .configuration_mmfusion import MMFusionConfig

TEXT, IMAGE = 0, 1


@dataclass
class ProductViews:
    """What the encoders give for P products; masks are True where something is there.

    Attributes:
        text_embeds, image_embeds: (P, D) L2-normalised views in the embedding space; arbitrary where missing.
        text_pooled, image_pooled: (P, text) and (P, image) before projection; arbitrary where missing.
        text_tokens, image_tokens: (P, T, text token), (P, V, image token); all photos of a product are one sequence;
            arbitrary where masked.
        text_mask, image_mask: (P, T), (P, V) bool.
        present: (P, 2) bool, columns text and image; at least one is True in each row.
    """

    text_embeds: Tensor
    image_embeds: Tensor
    text_pooled: Tensor
    image_pooled: Tensor
    text_tokens: Tensor
    image_tokens: Tensor
    text_mask: Tensor
    image_mask: Tensor
    present: Tensor


class FusionSizes(NamedTuple):
    """Widths of what a fusion network reads: pooled texts and photos, and the tokens of both."""

    text: int
    image: int
    text_token: int
    image_token: int


class Fused(NamedTuple):
    """What a fusion network makes of P products.

    Attributes:
        embeds: (P, D), not yet normalised.
        weights: (P, 2), >= 0, rows sum to 1, exactly 0 for a missing modality.
        penalty: Scalar to add to the loss, with its weight (a mixture of experts balances its load), or None.
        expert_load: (experts,) share of the products that each expert serves, sums to 1, or None.
    """

    embeds: Tensor
    weights: Tensor
    penalty: Tensor | None = None
    expert_load: Tensor | None = None


class Fusion(nn.Module):
    """Base of all fusion networks.

    Keyword-only parameters of a subclass's `__init__` are its own settings: `MMFusionConfig.fusion_kwargs` holds their
    values and checks them by name and by type.

    Parameters of two kinds never share a name, so that a checkpoint of one kind loads as another without a clash of
    shapes and without quietly starting from weights that were trained for something else.

    Attributes:
        reads: Modalities that the kind looks at while both are present; the model skips the vision encoder for products
            with a text if it reads text alone.
        reads_tokens: Whether the kind looks at token states. Where it does not, training gives it the mean of cached
            states of a text as its only token.
        zero_start: Linear layers, by name, that start at zero: training starts from what the kind does without them.
    """

    reads: ClassVar[tuple[int, ...]] = (TEXT, IMAGE)
    reads_tokens: ClassVar[bool] = True
    zero_start: tuple[str, ...] = ()

    def __init__(self, config: MMFusionConfig, sizes: FusionSizes) -> None:
        super().__init__()

    def forward(self, views: ProductViews) -> Fused:
        raise NotImplementedError

    def init_weights(self, std: float) -> None:
        """Initialises parameters that belong to this module itself, and the layers that start at zero."""
        for name in self.zero_start:
            layer = self.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            init.zeros_(layer.weight)
            init.zeros_(layer.bias)

    def penalty(self, load: Tensor) -> Tensor:
        """Scalar to add to the loss for a batch in which experts have this load (experts,); see `Fused.expert_load`."""
        raise NotImplementedError


FUSIONS: dict[str, type[Fusion]] = {}
"""Kinds of fusion networks by the name that `MMFusionConfig.fusion` gives them."""

Kind = TypeVar("Kind", bound=type[Fusion])


def register_fusion(name: str) -> Callable[[Kind], Kind]:
    """Adds a kind of fusion network, to be named in `MMFusionConfig.fusion`.

    `save_pretrained` writes the file of the class next to the weights, with imports of `mmfusion.model` made relative.
    So that it runs where mmfusion is not installed, it may import only torch, transformers, `mmfusion.model` and the
    standard library. A class of a notebook is not written.

    Args:
        name: Name of the kind.

    Raises:
        ValueError: Another class has the name, or its file could not be published: it imports something else, or has
            the name of a file of mmfusion.

    Example:
        >>> @register_fusion("sum")
        ... class Sum(Fusion):
        ...     def __init__(self, config, sizes, *, text_weight: float = 0.5):
        ...         super().__init__(config, sizes)
        ...         self.text_weight = text_weight
    """

    def register(kind: Kind) -> Kind:
        known = FUSIONS.get(name)
        # A cell of a notebook may be run again.
        if known is not None and (known.__module__, known.__qualname__) != (kind.__module__, kind.__qualname__):
            raise ValueError(f"The fusion {name!r} is {known.__module__}.{known.__qualname__} already; choose a name.")
        check_portable(kind)
        FUSIONS[name] = kind
        return kind

    return register


def fusion_class(config: MMFusionConfig) -> type[Fusion]:
    """The class of a config's fusion: one that is registered, or else the one that comes with the model.

    Raises:
        HubError: The code that comes with the model is not trusted.
    """
    return FUSIONS.get(config.fusion) or remote_class(config, fusion_reference(config.fusion))


def fusion_reference(name: str) -> str:
    """The key of `auto_map` in config.json that names the class of a fusion whose code comes with the model."""
    return f"fusion:{name}"


def refer_to_code(config: MMFusionConfig, kind: type[Fusion]) -> None:
    """Names the class in the config, unless mmfusion brings it or no file defines it."""
    module = kind.__module__.rpartition(".")[2]
    if module != "fusion" and source_file(kind) is not None:
        named = {fusion_reference(config.fusion): f"{module}.{kind.__name__}"}
        config.auto_map = {**(getattr(config, "auto_map", None) or {}), **named}


def check_fusion_kwargs(fusion: str, given: Mapping[str, Any]) -> None:
    """Raises a ValueError unless a registered fusion has all these parameters, and they have its types."""
    kind = FUSIONS[fusion].__init__
    known = [name for name, one in inspect.signature(kind).parameters.items() if one.kind is one.KEYWORD_ONLY]
    for name, value in given.items():
        if name not in known:
            raise ValueError(
                f"MMFusionConfig.fusion_kwargs names {name!r}; the parameters of fusion {fusion!r} are "
                f"{', '.join(known) or 'none'}."
            )
        expected = get_type_hints(kind).get(name, Any)
        try:
            type_validator(name, value, float | int if expected is float else expected)
        except TypeError as error:
            raise ValueError(f"MMFusionConfig.fusion_kwargs: {error}.") from error


class PooledInput(nn.Module):
    """Layer norm and linear map of one modality's pooled features; where they are missing, those of a zero vector."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_features)
        self.linear = nn.Linear(in_features, out_features)

    def forward(self, pooled: Tensor, present: Tensor) -> Tensor:
        """(P, in_features), (P,) bool -> (P, out_features)."""
        return self.linear(self.norm(zero_unless(pooled, present)))


def weighted_views(views: ProductViews, weights: Tensor) -> Tensor:
    """Weighted sum of the two views (P, D); a missing view is masked out, as multiplying by 0 would keep NaN."""
    stacked = torch.stack([views.text_embeds, views.image_embeds], dim=1)
    return (zero_unless(stacked, views.present) * weights.unsqueeze(-1)).sum(1)


def masked_softmax(logits: Tensor, present: Tensor) -> Tensor:
    """Softmax over the present modalities, (P, 2) and (P, 2) bool -> (P, 2): exactly 0 for a missing one."""
    return at_least_float32(logits).masked_fill(~present, float("-inf")).softmax(-1).to(logits.dtype)


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision as float32, in which a softmax is exact enough; anything else as it is."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def zero_unless(values: Tensor, there: Tensor) -> Tensor:
    """`values` (…, width) with zeros where `there` (…) is False, whatever was there, NaN included."""
    return values.masked_fill(~there.unsqueeze(-1), 0.0)


class _SingleView(Fusion):
    """Reads one modality; a product without it is represented by the other, which stage 1 aligned with it."""

    reads_tokens = False

    def forward(self, views: ProductViews) -> Fused:
        own = self.reads[0]
        weights = F.one_hot(torch.where(views.present[:, own], own, 1 - own), 2).to(views.text_embeds.dtype)
        return Fused(weighted_views(views, weights), weights)


@register_fusion("text_only")
class TextOnly(_SingleView):
    """The text view alone: the text-only two-tower that fusion has to beat."""

    reads = (TEXT,)


@register_fusion("image_only")
class ImageOnly(_SingleView):
    """The photo view alone."""

    reads = (IMAGE,)


# An Adam step moves a parameter by about the learning rate, whatever its scale. At the rate that suits matrices a lone
# logit would barely leave its start in a whole training, so it is stored in units this large.
LOGIT_UNIT = 30.0


@register_fusion("weighted_mean")
class WeightedMean(Fusion):
    """embedding = w * text view + (1 - w) * image view, with one w for all products.

    w is `fusion_text_weight`; with `fusion_learned_weights` that is where a learned scalar starts. The evaluation code
    of Marqo's GCL (arXiv:2404.08535) defaults to 0.9 for the image and 0.1 for the title, which is 0.1 here. A product
    with one modality is represented by its view.
    """

    reads_tokens = False

    def __init__(self, config: MMFusionConfig, sizes: FusionSizes) -> None:
        super().__init__(config, sizes)
        self.start = math.log(config.fusion_text_weight) - math.log1p(-config.fusion_text_weight)
        learned = config.fusion_learned_weights
        self.text_logit = nn.Parameter(torch.tensor(self.start / LOGIT_UNIT)) if learned else None

    def init_weights(self, std: float) -> None:
        if self.text_logit is not None:
            init.constant_(self.text_logit, self.start / LOGIT_UNIT)

    def forward(self, views: ProductViews) -> Fused:
        # Not a buffer: transformers restores only those that a checkpoint holds.
        fixed = torch.tensor(self.start, device=views.present.device)
        logit = fixed if self.text_logit is None else self.text_logit.float() * LOGIT_UNIT
        logits = torch.stack([logit, torch.zeros_like(logit)]).expand(len(views.present), 2)
        weights = masked_softmax(logits, views.present).to(views.text_embeds.dtype)
        return Fused(weighted_views(views, weights), weights)


@register_fusion("concat")
class Concat(Fusion):
    """Late fusion: concatenated pooled features through a two-layer perceptron.

    A learned vector replaces a missing modality. Weights are the shares of the two modalities in what the network
    does with them: how far its output moves when that vector takes the modality's place.
    """

    reads_tokens = False

    def __init__(self, config: MMFusionConfig, sizes: FusionSizes) -> None:
        super().__init__(config, sizes)
        self.text_norm = nn.LayerNorm(sizes.text)
        self.image_norm = nn.LayerNorm(sizes.image)
        self.missing_text = nn.Parameter(torch.empty(sizes.text))
        self.missing_image = nn.Parameter(torch.empty(sizes.image))
        self.text_in = nn.Linear(sizes.text, 2 * config.fusion_hidden_size)
        self.image_in = nn.Linear(sizes.image, 2 * config.fusion_hidden_size, bias=False)
        self.out = nn.Linear(2 * config.fusion_hidden_size, config.embedding_dim)
        self.dropout = nn.Dropout(config.fusion_dropout)

    def init_weights(self, std: float) -> None:
        init.normal_(self.missing_text, std=std)
        init.normal_(self.missing_image, std=std)

    def forward(self, views: ProductViews) -> Fused:
        has_text, has_image = views.present.unbind(1)
        text = self.text_norm(zero_unless(views.text_pooled, has_text))
        image = self.image_norm(zero_unless(views.image_pooled, has_image))
        text = self.text_in(torch.where(has_text.unsqueeze(-1), text, self.missing_text))
        image = self.image_in(torch.where(has_image.unsqueeze(-1), image, self.missing_image))
        embeds = self.out(self.dropout(F.gelu(text + image)))
        return Fused(embeds, self._weights(text, image, views.present))

    @torch.no_grad()
    def _weights(self, text: Tensor, image: Tensor, present: Tensor) -> Tensor:
        whole = self.out(F.gelu(text + image))
        without_text = self.out(F.gelu(self.text_in(self.missing_text) + image))
        without_image = self.out(F.gelu(text + self.image_in(self.missing_image)))
        moved = torch.stack([(whole - without_text).norm(dim=-1), (whole - without_image).norm(dim=-1)], dim=1).float()
        # If nothing moves it, the present modalities share equally.
        moved = (moved + torch.finfo(moved.dtype).tiny) * present
        return (moved / moved.sum(1, keepdim=True)).to(text.dtype)


@register_fusion("gated")
class Gated(Fusion):
    """Residual on the text view: what the photo adds, behind gates that look at both modalities.

    embedding = text view + w * (image view - text view) + channel gates * correction(photo). The share w and the gates
    of the D channels are computed from both pooled features, as in a gated multimodal unit (arXiv:1702.01992). w and
    the correction start at the mean of the views. A product with one modality is represented by its view.
    """

    reads_tokens = False
    zero_start = ("gated_weights", "gated_correction")

    def __init__(self, config: MMFusionConfig, sizes: FusionSizes) -> None:
        super().__init__(config, sizes)
        width = config.fusion_hidden_size
        self.gated_text = PooledInput(sizes.text, width)
        self.gated_image = PooledInput(sizes.image, width)
        self.gated_weights = nn.Linear(width, 2)
        self.gated_channels = nn.Linear(width, config.embedding_dim)
        self.gated_correction = nn.Linear(width, config.embedding_dim)
        self.dropout = nn.Dropout(config.fusion_dropout)

    def forward(self, views: ProductViews) -> Fused:
        text = self.gated_text(views.text_pooled, views.present[:, TEXT])
        image = self.gated_image(views.image_pooled, views.present[:, IMAGE])
        both = self.dropout(F.gelu(text + image))
        weights = masked_softmax(self.gated_weights(both), views.present)
        correction = self.gated_correction(self.dropout(F.gelu(image))) * self.gated_channels(both).sigmoid()
        return Fused(weighted_views(views, weights) + zero_unless(correction, views.present.all(1)), weights)


@register_fusion("bilinear")
class Bilinear(Fusion):
    """Low-rank bilinear pooling as a correction of the weighted views.

    embedding = w_text * text view + w_image * image view + P (tanh(U text) * tanh(V photo)), of rank
    `fusion_hidden_size`, after multimodal low-rank bilinear pooling (arXiv:1610.04325). The weights are a softmax over
    the same two projections and their product. Training starts at the mean of the views. A product with one modality
    is represented by its view.
    """

    reads_tokens = False
    zero_start = ("bilinear_weights", "bilinear_correction")

    def __init__(self, config: MMFusionConfig, sizes: FusionSizes) -> None:
        super().__init__(config, sizes)
        rank = config.fusion_hidden_size
        self.bilinear_text = PooledInput(sizes.text, rank)
        self.bilinear_image = PooledInput(sizes.image, rank)
        self.bilinear_weights = nn.Linear(3 * rank, 2)
        self.bilinear_correction = nn.Linear(rank, config.embedding_dim)
        self.dropout = nn.Dropout(config.fusion_dropout)

    def forward(self, views: ProductViews) -> Fused:
        text = self.bilinear_text(views.text_pooled, views.present[:, TEXT]).tanh()
        image = self.bilinear_image(views.image_pooled, views.present[:, IMAGE]).tanh()
        product = self.dropout(text * image)
        logits = self.bilinear_weights(torch.cat([self.dropout(text), self.dropout(image), product], dim=-1))
        weights = masked_softmax(logits, views.present)
        correction = self.bilinear_correction(product)
        return Fused(weighted_views(views, weights) + zero_unless(correction, views.present.all(1)), weights)


@register_fusion("moe")
class MixtureOfExperts(Fusion):
    """embedding = w_text * text view + w_image * image view + correction; experts give the weights and the correction.

    Experts and router read both modalities and their bilinear term (the product of two projections). All experts are
    mixed by the router's probabilities (arXiv:1312.4314) instead of choosing the best: a product between two experts
    would jump from one to the other with the rounding of half precision, and experts this small cost little. An
    expert's load is its mean probability over the products that have both modalities. Output layers start at zero, so
    training starts at the mean of the views. A product with one modality is represented by its view.
    """

    reads_tokens = False

    def __init__(self, config: MMFusionConfig, sizes: FusionSizes) -> None:
        super().__init__(config, sizes)
        width = config.fusion_hidden_size
        self.balance_weight = config.fusion_balance_weight
        self.moe_text = PooledInput(sizes.text, width)
        self.moe_image = PooledInput(sizes.image, width)
        self.router = nn.Linear(3 * width, config.fusion_experts)
        self.experts = nn.ModuleList(
            Expert(3 * width, width, 2 + config.embedding_dim, config.fusion_dropout)
            for _ in range(config.fusion_experts)
        )
        self.zero_start = tuple(f"experts.{number}.output" for number in range(config.fusion_experts))
        self.dropout = nn.Dropout(config.fusion_dropout)

    def forward(self, views: ProductViews) -> Fused:
        text = self.moe_text(views.text_pooled, views.present[:, TEXT])
        image = self.moe_image(views.image_pooled, views.present[:, IMAGE])
        both = torch.cat([text, image, text * image], dim=-1)
        shares = at_least_float32(self.router(both)).softmax(-1)
        hidden = self.dropout(both)
        outputs = torch.stack([expert(hidden) for expert in self.experts], dim=1)
        mixed = (shares.to(outputs.dtype).unsqueeze(-1) * outputs).sum(1)
        weights = masked_softmax(mixed[:, :2], views.present)
        fuses = views.present.all(1)
        load = mean_shares(shares, fuses)
        return Fused(
            weighted_views(views, weights) + zero_unless(mixed[:, 2:], fuses),
            weights,
            self.penalty(load),
            load,
        )

    def penalty(self, load: Tensor) -> Tensor:
        """Weighted imbalance of the load (experts,) of a batch."""
        return self.balance_weight * load_imbalance(load)


class Expert(nn.Module):
    """Two-layer perceptron."""

    def __init__(self, in_features: int, hidden: int, out_features: int, dropout: float) -> None:
        super().__init__()
        self.input = nn.Linear(in_features, hidden)
        self.output = nn.Linear(hidden, out_features)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor) -> Tensor:
        """(P, in_features) -> (P, out_features)."""
        return self.output(self.dropout(F.gelu(self.input(features))))


def mean_shares(shares: Tensor, counted: Tensor) -> Tensor:
    """Mean of (P, experts) over the rows that (P,) bool counts; over all of them if it counts none."""
    counted = counted | ~counted.any()
    return zero_unless(shares, counted).sum(0) / counted.sum()


def load_imbalance(load: Tensor) -> Tensor:
    """experts * sum of load²: 1 if all experts are used equally, up to the number of experts if one does everything.

    The load-balance loss of Switch Transformers (arXiv:2101.03961, eq. 4), experts * sum of f * P, where the share f
    of the products that an expert serves is its mean probability P, since every expert serves every product.
    """
    return len(load) * load.square().sum()


@register_fusion("cross_attention")
class CrossAttention(Fusion):
    """Token-level fusion: both token sequences attend to each other; latent queries pool them into a correction.

    Each layer is attention over both sequences at once, which is attention in all four directions with one softmax:
    words attend to the photos and to each other, photo positions to the words and to each other.

    embedding = w_text * text view + w_image * image view + correction, with the weights a softmax over the present
    modalities. Output layers start at zero, so training starts from the mean of the views that stage 1 aligned and
    learns what to change. After `p = Attention(t, v) W` of arXiv:2603.04836; latent queries as in Perceiver
    (arXiv:2103.03206).
    """

    zero_start = ("correction", "gate")

    def __init__(self, config: MMFusionConfig, sizes: FusionSizes) -> None:
        super().__init__(config, sizes)
        width = config.fusion_hidden_size
        self.text_in = nn.Sequential(nn.LayerNorm(sizes.text_token), nn.Linear(sizes.text_token, width))
        self.image_in = nn.Sequential(nn.LayerNorm(sizes.image_token), nn.Linear(sizes.image_token, width))
        self.modality = nn.Parameter(torch.empty(2, width))
        self.layers = nn.ModuleList(AttentionLayer(config) for _ in range(config.fusion_layers))
        self.latents = nn.Parameter(torch.empty(config.fusion_latents, width))
        self.pool = AttentionLayer(config)
        self.norm = nn.LayerNorm(config.fusion_latents * width)
        self.correction = nn.Linear(config.fusion_latents * width, config.embedding_dim)
        self.gate = nn.Linear(config.fusion_latents * width, 2)

    def init_weights(self, std: float) -> None:
        super().init_weights(std)
        init.normal_(self.modality, std=std)
        init.normal_(self.latents, std=std)

    def forward(self, views: ProductViews) -> Fused:
        # Attention multiplies a masked token by 0, which would keep NaN.
        text = self.text_in(zero_unless(views.text_tokens, views.text_mask)) + self.modality[TEXT]
        image = self.image_in(zero_unless(views.image_tokens, views.image_mask)) + self.modality[IMAGE]
        tokens = torch.cat([text, image], dim=1)
        mask = torch.cat([views.text_mask, views.image_mask], dim=1)
        for layer in self.layers:
            tokens = layer(tokens, tokens, mask)
        latents = self.pool(self.latents.expand(len(tokens), -1, -1), tokens, mask)
        pooled = self.norm(latents.flatten(1))
        weights = masked_softmax(self.gate(pooled), views.present)
        return Fused(weighted_views(views, weights) + self.correction(pooled), weights)


class AttentionLayer(nn.Module):
    """Pre-norm attention of `queries` over masked `tokens`, then a feed-forward layer, both with residuals."""

    def __init__(self, config: MMFusionConfig) -> None:
        super().__init__()
        width = config.fusion_hidden_size
        self.heads = config.fusion_heads
        self.query_norm = nn.LayerNorm(width)
        self.token_norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.dropout = nn.Dropout(config.fusion_dropout)

    def forward(self, queries: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """(P, Q, width), (P, T, width), (P, T) bool with at least one True in each row -> (P, Q, width)."""
        query = self._split(self.query(self.query_norm(queries)))
        key, value = (self._split(x) for x in self.key_value(self.token_norm(tokens)).chunk(2, dim=-1))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :])
        queries = queries + self.dropout(self.out(attended.transpose(1, 2).flatten(2)))
        return queries + self.dropout(self.feed_forward(queries))

    def _split(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (self.heads, -1)).transpose(1, 2)
