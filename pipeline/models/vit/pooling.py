"""Pool by attention: one learned query reads all patch tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.models.vit.encoder_config import EncoderConfig
from pipeline.models.vit.layers import LAYER_NORM_EPS, Mlp, init_mlp, split_heads


class MapHead(nn.Module):
    """Applies multi-head attention pooling, "MAP" (Zhai et al. 2021, arXiv 2106.04560; big_vision, models/vit.py, MAPHead).

    A learned probe attends to the tokens with the encoder's number of heads; the result x becomes x + MLP(LN(x)).
    There is no dropout, as in big_vision.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.width
        self.num_heads = config.num_heads
        self.probe = nn.Parameter(torch.zeros(1, 1, width))
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(width=width, hidden=config.mlp_dim, dropout=0.0, gelu=config.gelu)

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B D"]:
        query = self.query(self.probe).expand(tokens.shape[0], -1, -1)  # (B, 1, D)
        key, value = self.key_value(tokens).chunk(2, dim=-1)  # each (B, N, D)
        query, key, value = (split_heads(part, self.num_heads) for part in (query, key, value))
        mixed = F.scaled_dot_product_attention(query, key, value)  # (B, heads, 1, D/heads)
        pooled = self.out(mixed.transpose(1, 2).flatten(2))  # (B, 1, D)
        return (pooled + self.mlp(self.norm(pooled)))[:, 0]

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Draw Xavier-uniform weights for the probe and for each of query, key, value and output; biases are zeros already."""
        nn.init.xavier_uniform_(self.probe[0], generator=generator)  # as Flax does with (1, 1, D): fans 1 and D
        for kernel in (self.query.weight, *self.key_value.weight.chunk(2, dim=0), self.out.weight):
            nn.init.xavier_uniform_(kernel, generator=generator)
        init_mlp(self.mlp, generator)
