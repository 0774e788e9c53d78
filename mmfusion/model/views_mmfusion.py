"""From encoder states to the views of a product: a neck that keeps the details of a photo, and projections."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from .pooling_mmfusion import Encoded


class VisionNeck(nn.Module):
    """Pools intermediate states of the vision encoder by learned attention and adds them to its pooled output.

    The top of an encoder that was trained to name objects forgets colour and fine pattern, and a plain mean over
    positions mixes the product with its background. Each of `heads` slots is a softmax-weighted mean over positions of
    states below the top: hypercolumns (arXiv:1411.5752), pooled as by attention-based multiple instance learning
    (arXiv:1802.04712).
    """

    def __init__(self, state_size: int, pooled_size: int, hidden_size: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(state_size)
        self.states_in = nn.Linear(state_size, hidden_size)
        self.attention = nn.Linear(hidden_size, heads, bias=False)
        self.pooled_in = nn.Linear(pooled_size, hidden_size)

    def forward(self, encoded: Encoded) -> Encoded:
        """`tokens` (photos, T, state_size) -> (photos, heads + 1, hidden): the slots, then the encoder's pooled state.

        `pooled` (photos, pooled_size) -> (photos, pooled_size + heads * hidden).
        """
        states = F.gelu(self.states_in(self.norm(encoded.tokens)))
        slots = self.attention(states).softmax(1).transpose(1, 2) @ states
        tokens = torch.cat([slots, self.pooled_in(encoded.pooled).unsqueeze(1)], dim=1)
        return Encoded(tokens, torch.cat([encoded.pooled, slots.flatten(1)], dim=1))


class Projection(nn.Linear):
    """Linear map into the embedding space, plus a perceptron beside it where `hidden_size` is above 0.

    The perceptron's output layer starts at zero, so that training starts from the linear map.
    """

    def __init__(self, in_features: int, out_features: int, hidden_size: int, dropout: float) -> None:
        super().__init__(in_features, out_features)
        self.residual = Residual(in_features, out_features, hidden_size, dropout) if hidden_size else None

    def forward(self, input: Tensor) -> Tensor:
        """(rows, in_features) -> (rows, out_features)."""
        output = super().forward(input)
        return output if self.residual is None else output + self.residual(input)


class Residual(nn.Sequential):
    """Two-layer perceptron whose output layer starts at zero."""

    def __init__(self, in_features: int, out_features: int, hidden_size: int, dropout: float) -> None:
        super().__init__(
            nn.Dropout(dropout),
            nn.Linear(in_features, hidden_size),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_size, out_features),
        )

    def init_weights(self) -> None:
        output = self[-1]
        assert isinstance(output, nn.Linear)
        init.zeros_(output.weight)
        init.zeros_(output.bias)
