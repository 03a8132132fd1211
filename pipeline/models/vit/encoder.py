"""Define what follows the patch embedding in every model of patches: class token, positions, encoder, pooling and head."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import overload

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.models.base import Backbone, ModelOutputs, PatchOutput
from pipeline.models.vit.encoder_config import EncoderConfig
from pipeline.models.vit.layers import LAYER_NORM_EPS, POSITION_STD, Attention, EncoderBlock, lecun_normal_
from pipeline.models.vit.pooling import MapHead
from pipeline.models.vit.position import PositionResize, combine_axes, resize_grid, resize_line, sincos_2d
from pipeline.models.vit.stochastic_depth import block_rates

REGISTER_STD = 0.02  # deviation of DINOv3's storage tokens (facebookresearch/dinov3, models/vision_transformer.py)


class EncoderBackbone(Backbone):
    """Applies a patch embedding, then the encoder of ViT and its head; a family gives the patch embedding.

    By default: learned 1-D position embeddings, a class token, pre-LN encoder, final LayerNorm, and a head that is one dense
    layer with tanh ("pre-logits", `representation_size` wide) followed by a linear classifier. The tanh layer is
    the hidden layer of the pretraining head (section 3.1); without it (`None`) the classifier reads the pooled tokens.

    Tokens are the class token (where it is what is pooled), the registers, then the patches in raster order. Positions are
    added at the stem, before the dropout; `position_at: every_layer` and `shared` add them before every later block as well
    (appendix D.4). Registers have none, for they would only be part of what is learned already; nor has the class token with
    sincos_2d (as in MAE), or with position_class_token=false.

    The parts of the forward pass are methods: `embed_patches`, `encode`, `pool`. The parameters that they read directly
    belong to this module, so that ZeRO-3, which gathers a module's parameters when it is called, has them.

    Args:
        patch_embed: (B, 3, H, W) to (B, D, rows, columns).
    """

    def __init__(self, config: EncoderConfig, *, patch_embed: nn.Module) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.patch_embed = patch_embed
        self.class_token = nn.Parameter(torch.zeros(1, 1, width)) if config.has_class_token else None
        self.registers = nn.Parameter(torch.zeros(1, config.registers, width)) if config.registers else None
        self._make_positions(config)
        self.dropout = nn.Dropout(config.dropout)
        rates = block_rates(config.stochastic_depth, depth=config.depth, rule=config.stochastic_depth_rule)
        self.blocks = nn.ModuleList(EncoderBlock(config, skip_rate=rate) for rate in rates)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.map_head = MapHead(config) if config.pooling == "map" else None
        self.pre_logits = None if config.representation_size is None else nn.Linear(width, config.representation_size)
        self.head = nn.Linear(config.representation_size or width, config.num_classes)

    def _make_positions(self, config: EncoderConfig) -> None:
        """Make the tables of learned positions: (1, ..., D), or one for each layer."""
        layers, width, (rows, columns) = config.depth if config.position_at == "every_layer" else 1, config.width, config.grid
        self.position = self.position_columns = self.position_rows = self.position_class = None
        if config.position == "learned_1d":
            length = config.class_token_has_position + config.num_patches
            self.position = nn.Parameter(torch.zeros(layers, length, width))
        elif config.position == "learned_2d":
            self.position_columns = nn.Parameter(torch.zeros(layers, columns, width // 2))
            self.position_rows = nn.Parameter(torch.zeros(layers, rows, width // 2))
            if config.class_token_has_position:
                self.position_class = nn.Parameter(torch.zeros(layers, 1, width))

    @abstractmethod
    def init_patch_embed(self, generator: torch.Generator) -> None:
        """Initialise the patch embedding's kernels in place; its biases are zeros already."""

    def repeated_blocks(self) -> Sequence[nn.Module]:
        return list(self.blocks)

    def embed_patches(self, images: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B P D"]:
        """Return the patch embeddings in raster order, before positions.

        uint8 images are scaled to [-1, 1] here, on the device; floating-point ones are taken as already scaled.
        """
        patches = self.patch_embed(self.scale(images).to(next(self.patch_embed.parameters()).dtype))  # (B, D, h, w)
        return patches.flatten(2).transpose(1, 2)  # (B, h*w, D)

    def encode(self, patches: Float[Tensor, "B P D"]) -> Float[Tensor, "B N D"]:
        """Return all tokens after the final LayerNorm: `config.num_prefix_tokens` others, then the patches."""
        prefix = [token for token in (self.class_token, self.registers) if token is not None]
        prefix = [token.expand(patches.shape[0], -1, -1).to(patches.dtype) for token in prefix]
        tokens = torch.cat([*prefix, patches], dim=1) if prefix else patches
        positions = self._positions()  # one, or one a layer, each (1, N, D); or none
        tokens = self.dropout(tokens + positions[0] if positions else tokens)
        for number, block in enumerate(self.blocks):
            if number > 0 and self.config.position_at != "stem":
                tokens = tokens + positions[number % len(positions)]
            tokens = block(tokens)
        return self.norm(tokens)

    def _positions(self) -> list[Tensor]:
        """Return what is added to all tokens, (1, N, D): one for each layer that has its own; none where nothing is added."""
        config = self.config
        if self.position is not None:
            table = self.position  # (layers, P or 1 + P, D)
        elif self.position_columns is not None and self.position_rows is not None:
            table = combine_axes(self.position_columns, self.position_rows)  # (layers, P, D)
            if self.position_class is not None:
                table = torch.cat([self.position_class, table], dim=1)
        elif config.position == "sincos_2d":
            table = sincos_2d(config.grid, width=config.width, device=self.norm.weight.device).to(self.norm.weight.dtype)[None]
        else:
            return []
        if table.shape[1] < config.num_tokens:  # zeros for those that have no position
            first = config.class_token_has_position
            gap = table.new_zeros(len(table), config.num_tokens - table.shape[1], config.width)
            table = torch.cat([table[:, :first], gap, table[:, first:]], dim=1)
        return list(table.split(1))

    def patch_positions(self) -> Float[Tensor, "P D"] | None:
        """Return what is added to each patch at the stem; None where nothing is."""
        positions = self._positions()
        return positions[0][0, self.config.num_prefix_tokens :] if positions else None

    def pool(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B R"]:
        """Return what the classifier reads of `encode`'s tokens: one vector of them, then pre-logits with tanh if there are."""
        return self._add_pre_logits(self.pool_tokens(tokens))

    def pool_tokens(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B D"]:
        """Return one vector of `encode`'s tokens, before pre-logits.

        class_token: the class token. gap: the mean over the patches (appendix D.3). map: attention pooling over the patches.
        """
        patches = tokens[:, self.config.num_prefix_tokens :]
        if self.map_head is not None:
            return self.map_head(patches)
        return tokens[:, 0] if self.class_token is not None else patches.mean(dim=1)

    def _add_pre_logits(self, pooled: Tensor) -> Tensor:
        return pooled if self.pre_logits is None else torch.tanh(self.pre_logits(pooled))

    def forward_tokens(self, images: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N D"]:
        """Return all tokens after the final LayerNorm, as `encode` orders them."""
        return self.encode(self.embed_patches(images))

    def forward_representation(self, images: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B R"]:
        return self.pool(self.forward_tokens(images))

    def forward_outputs(self, images: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"]) -> ModelOutputs:
        tokens = self.forward_tokens(images)
        pooled = self.pool_tokens(tokens)
        return ModelOutputs(self._add_pre_logits(pooled), pooled, tokens[:, self.config.num_prefix_tokens :])

    def forward_last_blocks(self, images: Tensor, *, count: int) -> Float[Tensor, "B n D"] | None:
        """Return the class token of each of the last blocks, or the mean of its patches where there is none; then that mean.

        The mean at the end is of the last block. All tokens are after the final LayerNorm, as DINOv2's linear evaluation
        has them (`get_intermediate_layers` with `norm=True`).
        """
        if count > len(self.blocks):
            return None
        outputs: list[Tensor] = []

        def keep(_block: nn.Module, _inputs: tuple[Tensor], output: Tensor) -> None:
            outputs.append(output)

        hooks = [block.register_forward_hook(keep) for block in list(self.blocks)[-count:]]
        try:
            self.forward_tokens(images)
        finally:
            for hook in hooks:
                hook.remove()
        tokens = [self.norm(output) for output in outputs]
        means = [output[:, self.config.num_prefix_tokens :].mean(dim=1) for output in tokens]
        firsts = means if self.class_token is None else [output[:, 0] for output in tokens]
        return torch.stack([*firsts, means[-1]], dim=1)

    @torch.no_grad()
    def attention_weights(self, images: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B h N N"]]:
        """Return each layer's attention weights, first to last; the tokens are those of `encode`."""
        found: list[Tensor] = []

        def keep(attention: Attention, inputs: tuple[Tensor]) -> None:
            found.append(attention.weights(*inputs))

        attentions = [module for module in self.blocks.modules() if isinstance(module, Attention)]
        hooks = [attention.register_forward_pre_hook(keep) for attention in attentions]
        try:
            self.forward_tokens(images)
        finally:
            for hook in hooks:
                hook.remove()
        return found

    @overload
    def forward(self, images: Tensor, *, corrupt: None = None) -> Tensor: ...
    @overload
    def forward(self, images: Tensor, *, corrupt: Callable[[Tensor], Tensor]) -> PatchOutput: ...
    def forward(
        self,
        images: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"],
        *,
        corrupt: Callable[[Tensor], Tensor] | None = None,
    ) -> Float[Tensor, "B C"] | PatchOutput:
        """Return class logits.

        Args:
            corrupt: changes the patch embeddings (B, P, D) before positions are added; what each patch gives comes back too.
        """
        if corrupt is None:
            return self.head(self.forward_representation(images))
        patches = corrupt(self.embed_patches(images))
        tokens = self.encode(patches)
        return PatchOutput(patches=tokens[:, -patches.shape[1] :], logits=self.head(self.pool(tokens)))

    def resize_positions(
        self, state_dict: dict[str, Tensor], *, before: EncoderConfig, how: PositionResize
    ) -> dict[str, Tensor]:
        """Return another model's tensors by name, its learned positions resized to this model's grid; others are as they were.

        Args:
            state_dict: of a model that differs from this one in its grid of patches, and in no other choice of positions.
            before: that model's configuration.

        Raises:
            ConfigError: relative positions, or positions of another kind.
        """
        config = self.config
        kinds = [(c.position, c.position_at, c.class_token_has_position) for c in (before, config)]
        if kinds[0] != kinds[1]:
            raise ConfigError(
                f"positions cannot be carried over from model.position={before.position} to model.position={config.position}: "
                "position, position_at and position_class_token must be those of the weights"
            )
        if before.grid == config.grid:
            return dict(state_dict)
        if config.position == "relative":
            raise ConfigError(
                "model.position=relative belongs to one number of patches: its offsets along the raster have no meaning on "
                "another grid; keep the image size and the patch size"
            )
        resized = dict(state_dict)
        if "position" in resized:
            first, patches = resized["position"].split([int(config.class_token_has_position), before.num_patches], dim=1)
            patches = resize_grid(patches, before=before.grid, after=config.grid, how=how)
            resized["position"] = torch.cat([first, patches], dim=1)
        for name, length in zip(("position_rows", "position_columns"), config.grid, strict=True):
            if name in resized:
                resized[name] = resize_line(resized[name], length=length, how=how)
        return resized

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Initialise in place as the authors' code does, drawing from `generator` alone.

        Xavier-uniform for attention (q, k and v each as a square matrix) and MLP kernels, MLP biases N(0, 1e-6),
        positions N(0, 0.02), LeCun-normal for patch embedding and pre-logits (Flax's default), zeros for class
        token and head kernel, `head_bias` for the head's bias (-10 with the sigmoid loss). Registers N(0, 0.02).
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)
        self.init_patch_embed(generator)
        if self.class_token is not None:
            nn.init.zeros_(self.class_token)
        for table in (self.position, self.position_columns, self.position_rows, self.position_class):
            if table is not None:
                nn.init.normal_(table, std=POSITION_STD, generator=generator)
        if self.registers is not None:
            nn.init.normal_(self.registers, std=REGISTER_STD, generator=generator)
        for block in self.blocks:
            assert isinstance(block, EncoderBlock)
            block.init_weights(generator)
        if self.map_head is not None:
            self.map_head.init_weights(generator)
        if self.pre_logits is not None:
            lecun_normal_(self.pre_logits.weight, generator)
        nn.init.zeros_(self.head.weight)
        nn.init.constant_(self.head.bias, self.config.head_bias)
