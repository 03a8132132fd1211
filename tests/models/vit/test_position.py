"""Kinds of positions against scipy, timm, and sums written out."""

from __future__ import annotations

import math
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.models.vit.encoder import EncoderBackbone
from pipeline.models.vit.layers import Attention
from pipeline.models.vit.model import VisionTransformer, ViTConfig
from pipeline.models.vit.position import by_offset_to_by_key, combine_axes, resize_grid, sincos_2d
from tests.helpers.timm_names import random_model

CONFIG = ViTConfig(
    image_size=(16, 24), patch_size=8, width=32, depth=3, mlp_dim=40, num_heads=2, num_classes=5, representation_size=None,
    dropout=0.0
)  # fmt: skip
GRIDS = [((4, 4), (7, 7)), ((7, 5), (3, 9)), ((14, 14), (24, 24)), ((3, 3), (1, 2))]


def table(grid: tuple[int, int], *, layers: int = 1, width: int = 6) -> Tensor:
    return torch.randn(layers, grid[0] * grid[1], width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("before", "after"), GRIDS)
def test_corners_aligned_bilinear_is_scipys_zoom(before: tuple[int, int], after: tuple[int, int]) -> None:
    """`scipy.ndimage.zoom(grid, factors, order=1)`, which the authors' code resizes positions with."""
    ndimage = pytest.importorskip("scipy.ndimage")
    positions = table(before)
    factors = (after[0] / before[0], after[1] / before[1], 1)
    theirs = ndimage.zoom(positions[0].view(*before, -1).numpy(), factors, order=1)
    assert theirs.shape[:2] == after
    ours = resize_grid(positions, before=before, after=after, how="corners_aligned_bilinear")
    torch.testing.assert_close(ours, torch.from_numpy(theirs).flatten(0, 1)[None], atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize(("before", "after"), GRIDS)
def test_bicubic_antialias_is_timms(timm: ModuleType, before: tuple[int, int], after: tuple[int, int]) -> None:
    positions = table(before, layers=1)
    theirs = timm.layers.resample_abs_pos_embed(positions, list(after), list(before), num_prefix_tokens=0)
    assert torch.equal(resize_grid(positions, before=before, after=after, how="bicubic_antialias"), theirs)


def test_tables_of_every_layer_are_resized_alike() -> None:
    positions = table((3, 4), layers=2).bfloat16()
    ours = resize_grid(positions, before=(3, 4), after=(5, 5), how="corners_aligned_bilinear")
    alone = [resize_grid(one[None], before=(3, 4), after=(5, 5), how="corners_aligned_bilinear") for one in positions]
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, torch.cat(alone))
    assert resize_grid(positions, before=(3, 4), after=(3, 4), how="bicubic_antialias") is positions


def test_sines_and_cosines_are_the_formula() -> None:
    rows, columns, width = 3, 5, 16
    found = sincos_2d((rows, columns), width=width, device=torch.device("cpu")).numpy()
    quarter = width // 4
    for y in range(rows):
        for x in range(columns):
            omega = [10_000 ** -(k / (quarter - 1)) for k in range(quarter)]
            wanted = [wave(place * w) for place in (x, y) for wave in (math.sin, math.cos) for w in omega]
            np.testing.assert_allclose(found[y * columns + x], wanted, atol=1e-6)


def test_axes_are_combined_in_raster_order_with_x_first() -> None:
    columns, rows = torch.tensor([[10.0], [20.0], [30.0]]), torch.tensor([[1.0], [2.0]])
    wanted = [[10, 1], [20, 1], [30, 1], [10, 2], [20, 2], [30, 2]]
    assert combine_axes(columns, rows).tolist() == wanted
    assert combine_axes(columns[None], rows[None]).tolist() == [wanted]


@pytest.mark.parametrize("length", [1, 2, 7])
def test_logits_by_offset_are_read_by_key(length: int) -> None:
    logits = torch.randn(2, 3, length, 2 * length - 1)
    found = by_offset_to_by_key(logits)
    for q in range(length):
        for k in range(length):
            assert torch.equal(found[:, :, q, k], logits[:, :, q, k - q + length - 1])


def test_relative_attention_is_the_sum_written_out() -> None:
    """Logits (q . k + q . r) / sqrt(d), where r belongs to the offset of key from query (appendix D.4)."""
    config = replace(CONFIG, position="relative")
    attention = Attention(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.normal_(std=0.3, generator=generator)
    tokens = torch.randn(2, config.num_tokens, config.width, generator=generator)
    relative = attention.relative
    assert relative is not None
    length, head_width = config.num_tokens, config.width // config.num_heads
    query, key, value = attention.qkv(tokens).view(2, length, 3, 2, head_width).permute(2, 0, 3, 1, 4)
    logits = torch.empty(2, 2, length, length)
    for q in range(length):
        for k in range(length):
            of_both = key[:, :, k] + relative[k - q + length - 1]
            logits[:, :, q, k] = (query[:, :, q] * of_both).sum(-1) / head_width**0.5
    mixed = logits.softmax(-1) @ value
    torch.testing.assert_close(attention(tokens), attention.out(mixed.transpose(1, 2).flatten(2)), atol=1e-5, rtol=1e-4)


def written_out(model: EncoderBackbone, images: Tensor, added: list[Tensor | None]) -> Tensor:
    """The encoder's output where `added[i]` is added to all tokens before block i."""
    tokens = model.embed_patches(images)
    if model.class_token is not None:
        tokens = torch.cat([model.class_token.expand(len(tokens), -1, -1), tokens], dim=1)
    for block, positions in zip(model.blocks, added, strict=True):
        tokens = block(tokens if positions is None else tokens + positions)
    return model.norm(tokens)


def learned_2d(model: EncoderBackbone, layer: int) -> Tensor:
    assert model.position_columns is not None
    assert model.position_rows is not None
    columns, rows = model.position_columns[layer], model.position_rows[layer]
    patches = torch.stack([torch.cat([columns[x], rows[y]]) for y in range(len(rows)) for x in range(len(columns))])
    return patches if model.position_class is None else torch.cat([model.position_class[layer], patches])


CASES: list[dict[str, Any]] = [
    {"position": position, "position_at": at, "position_class_token": with_class, "pooling": pooling}
    for position in ("learned_1d", "learned_2d", "sincos_2d", "none")
    for at in ("stem", "every_layer", "shared")
    for with_class, pooling in ((True, "class_token"), (False, "class_token"), (True, "gap"))
    if not (position == "none" and at != "stem") and not (position == "sincos_2d" and at == "every_layer")
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_positions_are_added_where_they_are_said_to_be(case: dict[str, Any]) -> None:
    config = replace(CONFIG, **case)
    model = random_model(config)
    images = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(1))
    tables: list[Tensor | None] = []
    for layer in range(config.depth):
        own = layer if config.position_at == "every_layer" else 0
        if config.position == "none" or (layer > 0 and config.position_at == "stem"):
            tables.append(None)
            continue
        if config.position == "learned_1d":
            assert model.position is not None
            positions = model.position[own]
        elif config.position == "learned_2d":
            positions = learned_2d(model, own)
        else:
            positions = sincos_2d(config.grid, width=config.width, device=torch.device("cpu"))
        missing = config.num_tokens - len(positions)
        assert missing == (config.has_class_token and not (config.position_class_token and config.position != "sincos_2d"))
        tables.append(F.pad(positions, (0, 0, missing, 0)))  # the class token is the first
    with torch.no_grad():
        torch.testing.assert_close(model.forward_tokens(images), written_out(model, images, tables))
    logits = model.train()(images)
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_positions_of_another_resolution_fit_the_model_and_keep_what_is_no_grid() -> None:
    before = replace(CONFIG, position_at="every_layer")
    after = replace(before, image_size=(32, 32))
    state = random_model(before).state_dict()
    model = VisionTransformer(after)
    resized = model.resize_positions(state, before=before, how="corners_aligned_bilinear")
    model.load_state_dict(resized)
    assert torch.equal(resized["position"][:, 0], state["position"][:, 0])  # the class token's
    corners = [0, 3, 12, 15]  # of 4 x 4 patches; of 2 x 3 they are 0, 2, 3, 5
    torch.testing.assert_close(resized["position"][:, 1:][:, corners], state["position"][:, 1:][:, [0, 2, 3, 5]])
    assert all(resized[name] is state[name] for name in state if name != "position")
    assert state["position"].shape[1] == 7  # what was given is as it was


def test_rows_and_columns_are_resized_each_along_its_axis() -> None:
    before = replace(CONFIG, position="learned_2d")
    after = replace(before, image_size=(40, 24))
    state = random_model(before).state_dict()
    model = VisionTransformer(after)
    resized = model.resize_positions(state, before=before, how="bicubic_antialias")
    model.load_state_dict(resized)
    assert torch.equal(resized["position_columns"], state["position_columns"])
    assert resized["position_rows"].shape == (1, 5, 16)
    fixed = VisionTransformer(replace(after, position="sincos_2d"))
    fixed.load_state_dict(
        fixed.resize_positions(
            random_model(replace(before, position="sincos_2d")).state_dict(), before=replace(before, position="sincos_2d"),
            how="bicubic_antialias",
        )
    )  # fmt: skip


def test_positions_that_cannot_be_carried_over_are_refused() -> None:
    relative = replace(CONFIG, position="relative")
    model = VisionTransformer(replace(relative, image_size=32))
    with pytest.raises(ConfigError, match="belongs to one number of patches"):
        model.resize_positions({}, before=relative, how="bicubic_antialias")
    with pytest.raises(ConfigError, match=r"from model\.position=learned_1d to model\.position=relative"):
        model.resize_positions({}, before=CONFIG, how="bicubic_antialias")
