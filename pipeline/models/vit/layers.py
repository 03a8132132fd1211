"""The Transformer encoder block of ViT (paper section 3.1, equations 2 and 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

LAYER_NORM_EPS = 1e-6  # Flax's default, used by the authors' code; torch's own default is 1e-5


class Attention(nn.Module):
    """Multi-head self-attention (appendix A). The softmax runs in fp32 inside `scaled_dot_product_attention`."""

    def __init__(self, *, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        batch, length, width = tokens.shape
        qkv = self.qkv(tokens).view(batch, length, 3, self.num_heads, width // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, N, D/heads)
        mixed = F.scaled_dot_product_attention(query, key, value)  # (B, heads, N, D/heads)
        # No dropout on qkv or on the attention weights; one after the projection (appendix B.1).
        return self.dropout(self.out(mixed.transpose(1, 2).reshape(batch, length, width)))


class Mlp(nn.Module):
    """Two dense layers with a GELU between, dropout after each (section 3.1, appendix B.1)."""

    def __init__(self, *, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        return self.dropout(self.down(self.dropout(F.gelu(self.up(tokens)))))


class EncoderBlock(nn.Module):
    """Pre-LN block: x + attention(LN(x)), then x + MLP(LN(x))."""

    def __init__(self, *, width: int, num_heads: int, mlp_dim: int, dropout: float) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attention = Attention(width=width, num_heads=num_heads, dropout=dropout)
        self.norm_mlp = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(width=width, hidden=mlp_dim, dropout=dropout)

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        tokens = tokens + self.attention(self.norm_attention(tokens))
        return tokens + self.mlp(self.norm_mlp(tokens))


def lecun_normal_(weight: Tensor, generator: torch.Generator) -> None:
    """Truncated normal of variance 1 / fan_in, cut at two standard deviations (Flax `lecun_normal`)."""
    fan_in = weight[0].numel()
    std = fan_in**-0.5 / 0.87962566103423978  # divides out what the cut takes from the standard deviation
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std, generator=generator)
