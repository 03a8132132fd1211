"""Folders of timm are read as what timm computes from them: as a model of ours, as one of the family timm, or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import safetensors.torch
import torch

from pipeline.errors import ExchangeError
from pipeline.exchange.source import read_pretrained
from pipeline.exchange.timm_architectures import HEADS_OF_WIDTH, form_of, looked_up
from pipeline.exchange.write import Options, write_model
from pipeline.models.timm.model import TimmConfig
from pipeline.models.vit.model import ViTConfig
from tests.exchange.models import model_of
from tests.helpers.parity.cases import fill

SMALL: dict[str, Any] = {"depth": 1}
# Architectures whose names, and nothing else in a folder, say what they compute.
FAMILIES: dict[str, type] = {
    "vit_tiny_patch16_224": ViTConfig,
    "vit_base_patch32_siglip_256": ViTConfig,  # attention pooling and the tanh approximation of GELU
    "vit_base_patch16_gap_224": ViTConfig,  # 16 heads of 48 channels
    "vit_tiny_patch16_dinov3_qkvb": TimmConfig,  # rotary positions, no classifier
    "vit_small_patch16_rope_ape_224": TimmConfig,
    "vit_relpos_small_patch16_rpn_224": TimmConfig,
    "cait_xxs24_224": TimmConfig,
    "vit_base_patch32_clip_quickgelu_224": TimmConfig,  # its convolution has no bias, and it has CLIP's normalisation of pixels
}


def write_folder(timm: ModuleType, name: str, folder: Path, **arguments: Any) -> Any:
    """Write a folder as timm does for its hub, of random weights, and return the model."""
    theirs = timm.create_model(name, **SMALL, **arguments)
    fill(theirs)
    timm.models.save_for_hf(theirs, str(folder), model_args={**SMALL, **arguments}, safe_serialization=True)
    return theirs.eval()


def images_as(theirs: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Return uint8 pixels as timm's transform gives them to a model."""
    mean, std = (torch.tensor(theirs.pretrained_cfg[name])[:, None, None] for name in ("mean", "std"))
    return (pixels / 255 - mean) / std


@pytest.mark.parametrize("name", FAMILIES)
def test_a_folder_of_timms_computes_what_timm_computes(timm: ModuleType, tmp_path: Path, name: str) -> None:
    """To rounding: other epsilons of norms (1e-5 and 1e-6) and folded pixels make the differences."""
    theirs = write_folder(timm, name, tmp_path)
    found = read_pretrained(tmp_path)
    assert type(found.config) is FAMILIES[name]
    size = found.config.height_and_width
    pixels = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = theirs.forward_head(theirs.forward_features(images_as(theirs, pixels)), pre_logits=True)
        ours = found.build()
        torch.testing.assert_close(
            ours.forward_representation(pixels), features, rtol=0, atol=1e-3 * float(features.abs().max())
        )
        assert found.has_head == (theirs.num_classes > 0)
        if found.has_head:
            logits = theirs(images_as(theirs, pixels))
            torch.testing.assert_close(ours(pixels), logits, rtol=0, atol=1e-3 * float(logits.abs().max()))


@pytest.mark.slow
def test_names_that_are_not_looked_up_are_what_their_sizes_say(timm: ModuleType) -> None:
    """A form that a name alone says is that of timm's own model."""
    plain = [name for name in timm.list_models() if not looked_up(name)]
    assert len(plain) > 40
    for name in plain:
        form = form_of(name, {}, source=name)
        with torch.device("meta"):
            theirs: Any = timm.create_model(name)
        assert form is not None
        assert (form.num_heads or HEADS_OF_WIDTH[theirs.embed_dim]) == theirs.blocks[0].attn.num_heads, name
        act, norm = theirs.blocks[0].mlp.act, theirs.blocks[0].norm1
        assert (type(act).__name__, act.approximate, norm.eps, form.gelu, form.eps) == ("GELU", "none", 1e-6, "exact", 1e-6)


def test_a_name_that_must_be_looked_up_needs_timm(timm: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(timm, "vit_tiny_patch16_dinov3_qkvb", tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ExchangeError, match=r"timm itself has to say more: .*pip install"):
        read_pretrained(tmp_path)


def change(folder: Path, **tensors: torch.Tensor | None) -> None:
    found = safetensors.torch.load_file(folder / "model.safetensors")
    found |= {name: tensor for name, tensor in tensors.items() if tensor is not None}
    kept = {name: tensor for name, tensor in found.items() if name not in tensors or tensors[name] is not None}
    safetensors.torch.save_file(kept, folder / "model.safetensors")


def test_tensors_that_a_model_computes_with_are_never_left_out(tmp_path: Path) -> None:
    """In a file, where no description says what it is; tensors of pretraining alone may be left out."""
    write_model(model_of("class_token"), "transformers", tmp_path)
    change(tmp_path, **{"vit.pooler.dense.weight": torch.eye(48), "vit.embeddings.mask_token": torch.zeros(1, 1, 48)})
    assert any("not read: vit.embeddings, vit.pooler" in note for note in read_pretrained(tmp_path).notes)
    change(tmp_path, **{"vit.encoder.layer.0.attention.rope.freqs": torch.zeros(4)})
    with pytest.raises(
        ExchangeError, match=r"computes with vit\.encoder\.layer\.0\.attention\.rope\.freqs, which ours has not"
    ):
        read_pretrained(tmp_path)


def test_a_decoder_of_masked_autoencoders_is_left_out_in_a_line(timm: ModuleType, tmp_path: Path) -> None:
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=2)
    decoder = {f"decoder_blocks.{number}.norm1.weight": torch.ones(4) for number in range(100)}
    torch.save({"model": {**theirs.state_dict(), **decoder, "mask_token": torch.zeros(1, 1, 4)}}, tmp_path / "mae.pth")
    found = read_pretrained(tmp_path / "mae.pth")
    assert not found.has_head
    (note,) = (note for note in found.notes if note.startswith("not read"))
    assert note == "not read: decoder_blocks.0, decoder_blocks.1, decoder_blocks.10 and 98 more"


def test_a_hidden_layer_before_the_classifier_is_read(tmp_path: Path) -> None:
    """timm's files for ImageNet-21k had one until 2022."""
    model = model_of("pre_logits")
    write_model(model, "timm", tmp_path, Options(has_head=False))
    own = {name.replace("pre_logits.", "pre_logits.fc."): tensor for name, tensor in model.tensors.items() if "pre_" in name}
    change(tmp_path, **own, **{name: tensor for name, tensor in model.tensors.items() if name.startswith("head.")})
    found = read_pretrained(tmp_path)
    assert found.tensors.keys() == model.tensors.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in model.tensors.items())


def test_a_model_without_a_classifier_stays_one(timm: ModuleType, tmp_path: Path) -> None:
    """timm's num_classes=0: read and written again, no classifier of one class is made up."""
    write_model(model_of("class_token"), "timm", tmp_path / "features", Options(has_head=False))
    found = read_pretrained(tmp_path / "features")
    assert not found.has_head
    write_model(found, "safetensors", tmp_path / "ours")
    again = read_pretrained(tmp_path / "ours")
    assert not again.has_head
    for target in ("timm", "transformers"):
        write_model(again, target, tmp_path / target)  # type: ignore[arg-type]
        assert not read_pretrained(tmp_path / target).has_head
    assert json.loads((tmp_path / "timm" / "config.json").read_text())["num_classes"] == 0


def test_grey_images_give_what_they_give_there(timm: ModuleType, tmp_path: Path) -> None:
    """timm's in_chans=1. Of an RGB image whose channels are equal the outputs are the same, to rounding."""
    theirs = timm.create_model("vit_tiny_patch16_224", in_chans=1, num_classes=7, depth=2, img_size=32)
    fill(theirs)
    torch.save(theirs.state_dict(), tmp_path / "grey.pth")
    found = read_pretrained(tmp_path / "grey.pth")
    grey = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        expected = theirs.eval()(grey)
        torch.testing.assert_close(found.build()(grey.expand(-1, 3, -1, -1)), expected, rtol=0, atol=1e-5)
    change_channels = {**theirs.state_dict(), "patch_embed.proj.weight": torch.zeros(192, 4, 16, 16)}
    torch.save(change_channels, tmp_path / "rgba.pth")
    with pytest.raises(ExchangeError, match="reads images of 4 channels, ours has 3"):
        read_pretrained(tmp_path / "rgba.pth")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.full((48,), 1e5).half(), "48 of the 48 values of norm.weight are infinite or no numbers"),
        (torch.full((48,), float("nan")), "a training that diverged"),
        (torch.ones(48, dtype=torch.int8), "is of int8: the weights are quantised"),
        (torch.ones(48).to(torch.float8_e4m3fn), "is of float8_e4m3fn: the weights are quantised"),
    ],
)
def test_values_that_are_no_weights_are_refused(tmp_path: Path, value: torch.Tensor, message: str) -> None:
    write_model(model_of("class_token"), "timm", tmp_path)
    change(tmp_path, **{"norm.weight": value})
    with pytest.raises(ExchangeError, match=message):
        read_pretrained(tmp_path)
