"""Define the Transformer encoder block of ViT (paper section 3.1, equations 2 and 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.models.vit.encoder_config import EncoderConfig, Gelu
from pipeline.models.vit.position import by_offset_to_by_key
from pipeline.models.vit.stochastic_depth import StochasticDepth

LAYER_NORM_EPS = 1e-6  # Flax's default, used by the authors' code; torch's own default is 1e-5
POSITION_STD = 0.02  # N(0, 0.02) for position embeddings (authors' code)
MLP_BIAS_STD = 1e-6  # MLP biases (authors' code)


class Attention(nn.Module):
    """Applies multi-head self-attention (appendix A). The softmax runs in fp32 inside `scaled_dot_product_attention`.

    `qk_norm` normalises queries and keys by a LayerNorm over each head's channels (ViT-22B, arXiv 2302.05442, section 2).

    `position: relative` adds the paper's 1-D relative attention (appendix D.4): a logit q . r, scaled like the content's,
    where r belongs to the offset of the key's index from the query's, the index running over the whole sequence in raster
    order, class token and registers first. The paper leaves open who shares the embeddings: here each layer has its own,
    and its heads share them (Shaw et al. 2018, arXiv 1803.02155, section 3.3).
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width, head_width = config.width, config.width // config.num_heads
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=config.qkv_bias)
        self.norm_query = nn.LayerNorm(head_width, eps=LAYER_NORM_EPS) if config.qk_norm else None
        self.norm_key = nn.LayerNorm(head_width, eps=LAYER_NORM_EPS) if config.qk_norm else None
        self.relative = None  # row i is of the key that is i - (N - 1) places after the query
        if config.position == "relative":
            self.relative = nn.Parameter(torch.zeros(2 * config.num_tokens - 1, head_width))
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        batch, length, width = tokens.shape
        query, key, value, bias = self._parts(tokens)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)  # (B, heads, N, D/heads)
        # Dropout follows the projection; qkv and the attention weights have none (appendix B.1).
        return self.dropout(self.out(mixed.transpose(1, 2).reshape(batch, length, width)))

    def weights(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B h N N"]:
        """Return the weights that `forward` gives to each key (last) for each query, which sum to 1. They are not fast."""
        query, key, _, bias = self._parts(tokens)
        logits = query.float() @ key.float().transpose(-1, -2) * query.shape[-1] ** -0.5
        return (logits if bias is None else logits + bias.float()).softmax(dim=-1)

    def _parts(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return queries, keys and values, each (B, heads, N, D/heads), and what is added to the logits."""
        batch, length, width = tokens.shape
        qkv = self.qkv(tokens).view(batch, length, 3, self.num_heads, width // self.num_heads)
        query, key, value = qkv.unbind(2)  # each (B, N, heads, D/heads)
        if self.norm_query is not None and self.norm_key is not None:
            # This precedes the transposition: attention's output has its query's layout, and is then read token by token.
            query, key = self.norm_query(query).to(value.dtype), self.norm_key(key).to(value.dtype)
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))  # each (B, heads, N, D/heads)
        bias = None
        if self.relative is not None:
            by_offset = query @ self.relative.T * (width // self.num_heads) ** -0.5  # (B, heads, N, 2N - 1)
            bias = by_offset_to_by_key(by_offset)
        return query, key, value, bias


class Mlp(nn.Module):
    """Applies two dense layers with a GELU between, and dropout after each (section 3.1, appendix B.1)."""

    def __init__(self, *, width: int, hidden: int, dropout: float, gelu: Gelu) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)
        self.approximate = "none" if gelu == "exact" else "tanh"

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        hidden = F.gelu(self.up(tokens), approximate=self.approximate)
        return self.dropout(self.down(self.dropout(hidden)))


class LayerScale(nn.Module):
    """Multiplies every channel of a residual branch by a learned factor (CaiT, arXiv 2103.17239, section 2)."""

    def __init__(self, *, width: int, start: float) -> None:
        super().__init__()
        self.start = start
        self.gamma = nn.Parameter(torch.full((width,), start))

    def forward(self, branch: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        return branch * self.gamma


class EncoderBlock(nn.Module):
    """Applies a pre-LN block: x + attention(LN(x)), then x + MLP(LN(x)).

    Each branch is scaled and skipped as the configuration says.

    Its parameters belong to modules inside it, so that it can be computed again in the backward pass (activation
    checkpointing) where ZeRO-3 gathers a module's parameters when it is called.
    """

    def __init__(self, config: EncoderConfig, *, skip_rate: float) -> None:
        super().__init__()
        width = config.width
        self.norm_attention = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attention = Attention(config)
        self.scale_attention = _layer_scale(config)
        self.norm_mlp = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(width=width, hidden=config.mlp_dim, dropout=config.dropout, gelu=config.gelu)
        self.scale_mlp = _layer_scale(config)
        self.skip = StochasticDepth(skip_rate)

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        tokens = tokens + self.skip(self.scale_attention(self.attention(self.norm_attention(tokens))))
        return tokens + self.skip(self.scale_mlp(self.mlp(self.norm_mlp(tokens))))

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Draw Xavier-uniform q, k and v, each as a square matrix, and other kernels likewise; biases are zeros already."""
        for part in self.attention.qkv.weight.chunk(3, dim=0):
            nn.init.xavier_uniform_(part, generator=generator)
        nn.init.xavier_uniform_(self.attention.out.weight, generator=generator)
        init_mlp(self.mlp, generator)
        if self.attention.relative is not None:
            nn.init.normal_(self.attention.relative, std=POSITION_STD, generator=generator)
        for scale in (self.scale_attention, self.scale_mlp):
            if isinstance(scale, LayerScale):
                nn.init.constant_(scale.gamma, scale.start)


def _layer_scale(config: EncoderConfig) -> nn.Module:
    return nn.Identity() if config.layer_scale is None else LayerScale(width=config.width, start=config.layer_scale)


def split_heads(tokens: Float[Tensor, "B N D"], num_heads: int) -> Float[Tensor, "B h N d"]:
    """Return channels as heads times channels of a head."""
    return tokens.unflatten(-1, (num_heads, -1)).transpose(1, 2)


@torch.no_grad()
def init_mlp(mlp: Mlp, generator: torch.Generator) -> None:
    """Draw Xavier-uniform kernels and N(0, 1e-6) biases (authors' code)."""
    for dense in (mlp.up, mlp.down):
        nn.init.xavier_uniform_(dense.weight, generator=generator)
        nn.init.normal_(dense.bias, std=MLP_BIAS_STD, generator=generator)


def lecun_normal_(weight: Tensor, generator: torch.Generator) -> None:
    """Draw a truncated normal of variance 1 / fan_in, cut at two standard deviations (Flax `lecun_normal`)."""
    fan_in = weight[0].numel()
    std = fan_in**-0.5 / 0.87962566103423978  # divides out what the cut takes from the standard deviation
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std, generator=generator)
