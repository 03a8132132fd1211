"""In the formats of timm, transformers, Google and ONNX our models compute the same, and come back bit for bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import ExchangeError
from pipeline.exchange.card import CardFacts, make_card
from pipeline.exchange.google_names import Naming
from pipeline.exchange.hub import listed
from pipeline.exchange.onnx import write_onnx
from pipeline.exchange.pretrained import Pretrained
from pipeline.exchange.source import read_pretrained
from pipeline.exchange.write import Options, Target, write_model
from pipeline.models.vit.encoder_config import EncoderConfig
from tests.exchange.models import CLASSES, VITS, config_of, model_of
from tests.helpers.parity.cases import images_of
from tests.helpers.timm_names import timm_model

FAMILIES = ("hybrid", "hybrid_root", "bit")
FOLDED = ("sincos", "learned_2d")  # into learned 1-D positions: the same outputs, other tensors
# What a target has no name for, and the word in the message that says so.
REFUSED: dict[Target, dict[str, str]] = {
    "timm": {"pre_logits": "pre-logits", "relative": "position=relative", "every_layer": "position_at=every_layer"},
    "transformers": {
        "pre_logits": "pre-logits", "relative": "position=relative", "every_layer": "position_at=every_layer",
        "map": "--to timm", "qk_norm": "qk_norm", "hybrid": "--to timm", "hybrid_root": "--to timm",
    },
    "npz": {
        "relative": "position=relative", "every_layer": "position_at=every_layer", "registers": "registers",
        "qk_norm": "qk_norm",
    },
    "onnx": {},
    "safetensors": {},
}  # fmt: skip


@torch.no_grad()
def run(model: Any, config: Any) -> Any:
    return model(images_of(config))


def cases(target: Target) -> list[str]:
    return [name for name in (*VITS, *FAMILIES) if name not in REFUSED[target]]


def read_back(model: Pretrained, out: Path, *, exact: bool) -> Pretrained:
    """Read what was written. Its tensors are those that were written where nothing was folded."""
    found = read_pretrained(out, size=model.config.image_size)
    if exact:
        assert found.tensors.keys() == model.tensors.keys()
        assert all(torch.equal(found.tensors[name], tensor) for name, tensor in model.tensors.items())
    return found


@pytest.mark.parametrize("name", cases("timm"))
def test_timm_computes_the_same_from_its_folder(timm: ModuleType, tmp_path: Path, name: str) -> None:
    """Bit for bit but for attention pooling, which sums otherwise, and for ResNets, whose norms have other epsilons."""
    model = model_of(name)
    write_model(model, "timm", tmp_path)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    ours = run(model.build(), model.config)
    tolerance = 1e-4 if name in FAMILIES else 1e-6 if name == "map" else 0.0
    torch.testing.assert_close(run(theirs, model.config), ours, rtol=0, atol=tolerance)
    back = read_back(model, tmp_path, exact=name not in (*FOLDED, "registers"))
    assert torch.equal(run(back.build(), model.config), ours)
    assert back.class_names == CLASSES
    assert back.preprocessing.pixels(back.config) == model.preprocessing.pixels(model.config)


@pytest.mark.parametrize("name", cases("transformers"))
def test_transformers_computes_the_same_from_its_folder(timm: ModuleType, tmp_path: Path, name: str) -> None:
    """Bit for bit but for LayerScale, which ViT has not, and for the convolutions of BiT."""
    import transformers  # type: ignore[import-not-found]

    model = model_of(name)
    write_model(model, "transformers", tmp_path)
    theirs, info = transformers.AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())  # no tensor is missing, unexpected or of another shape
    assert list(theirs.config.id2label.values()) == list(CLASSES)
    ours = run(model.build(), model.config)
    tolerance = 1e-4 if name == "bit" else 1e-6 if name == "layer_scale" else 0.0
    torch.testing.assert_close(run(theirs.eval(), model.config).logits, ours, rtol=0, atol=tolerance)
    folded = (*FOLDED, "positions_on_patches", "no_positions", "layer_scale")
    back = read_back(model, tmp_path, exact=name not in folded)
    torch.testing.assert_close(run(back.build(), model.config), ours, rtol=0, atol=1e-6 if name == "layer_scale" else 0.0)


def test_transformers_has_pre_logits_as_its_pooler(timm: ModuleType, tmp_path: Path) -> None:
    import transformers  # type: ignore[import-not-found]

    model = model_of("pre_logits")
    write_model(model, "transformers", tmp_path, Options(has_head=False))
    theirs = transformers.AutoModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        ours = model.build().forward_representation(images_of(model.config))
    assert torch.equal(run(theirs, model.config).pooler_output, ours)
    back = read_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(back.build().forward_representation(images_of(model.config)), ours)


def test_timm_has_features_without_the_classifier(timm: ModuleType, tmp_path: Path) -> None:
    model = model_of("pre_logits")
    written = write_model(model, "timm", tmp_path, Options(has_head=False))
    assert any("pre-logits layer is left out" in note for note in written.notes)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    pooled = replace(model, config=replace(model.config, representation_size=None)).config.build()  # type: ignore[type-var]
    pooled.load_state_dict({k: v for k, v in model.tensors.items() if not k.startswith(("head.", "pre_logits."))}, strict=False)
    with torch.no_grad():
        assert torch.equal(run(theirs, model.config), pooled.eval().forward_representation(images_of(model.config)))


@pytest.mark.parametrize("name", cases("npz"))
def test_googles_file_gives_the_same_model_back(tmp_path: Path, name: str) -> None:
    model = model_of(name)
    if isinstance(model.config, EncoderConfig):
        model = replace(model, config=replace(model.config, gelu="tanh"))  # as Google's code computes it
    write_model(model, "npz", tmp_path / "weights.npz")
    folded = (*FOLDED, "no_positions", "layer_scale")
    back = read_back(model, tmp_path / "weights.npz", exact=name not in folded)
    tolerance = 1e-6 if name == "layer_scale" else 0.0
    torch.testing.assert_close(run(back.build(), model.config), run(model.build(), model.config), rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("name", "naming"),
    [
        ("class_token", "vision_transformer"),
        ("class_token", "big_vision"),
        ("gap", "big_vision"),
        ("map", "big_vision"),
        ("hybrid", "vision_transformer"),
        ("bit", None),
    ],
)
def test_timms_loader_of_googles_files_reads_ours(timm: ModuleType, tmp_path: Path, name: str, naming: Naming | None) -> None:
    model = model_of(name)
    write_model(model, "npz", tmp_path / "weights.npz", Options(naming=naming))
    if isinstance(model.config, EncoderConfig) and name != "hybrid":
        class_token = {"position_class_token": naming == "vision_transformer"} if name == "class_token" else {}
        theirs = timm_model(timm, replace(model.config, **class_token))  # type: ignore[arg-type]
    else:
        arguments = {"depth": 2, "num_heads": 3, "embed_dim": 48, "img_size": 64} if name == "hybrid" else {}
        architecture = "vit_small_r26_s32_224" if name == "hybrid" else "resnetv2_50x1_bit"
        theirs = timm.create_model(architecture, num_classes=len(CLASSES), **arguments)
    with torch.no_grad():
        theirs.load_pretrained(str(tmp_path / "weights.npz"))  # type: ignore[operator]
    tolerance = 1e-4 if name in FAMILIES else 1e-6
    torch.testing.assert_close(run(theirs.eval(), model.config), run(model.build(), model.config), rtol=0, atol=tolerance)


def test_files_of_a_scanned_bf16_optimizer_checkpoint_are_read(tmp_path: Path) -> None:
    """Files of big_vision: one array holds all blocks, bf16 has no type of NumPy's, parameters come after a prefix."""
    model = model_of("map")
    write_model(model, "npz", tmp_path / "plain.npz")
    arrays = {name.removeprefix("params/"): array for name, array in np.load(tmp_path / "plain.npz").items()}
    scanned: dict[str, Any] = {}
    for name, array in arrays.items():
        if name.startswith("Transformer/encoderblock_0/"):
            rest = name.removeprefix("Transformer/encoderblock_0/")
            scanned[f"Transformer/encoderblock/{rest}"] = np.stack([array, arrays[f"Transformer/encoderblock_1/{rest}"]])
        elif not name.startswith("Transformer/encoderblock_1/"):
            scanned[name] = array
    low = {
        f"opt/target/{name}": torch.from_numpy(array).bfloat16().view(torch.int16).numpy().view("V2")
        for name, array in scanned.items()
    }
    np.savez(tmp_path / "scanned.npz", **low, **{"opt/state/step": np.array(3)})  # type: ignore[arg-type]
    back = read_pretrained(tmp_path / "scanned.npz")
    assert back.config == model.config
    for name, tensor in model.tensors.items():
        assert torch.equal(back.tensors[name], tensor.bfloat16().float()), name


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name != "pre_logits" else ()) for name in cases("onnx")]
)
def test_onnxruntime_computes_the_same(tmp_path: Path, name: str) -> None:
    """`write_onnx` compares on three images, of a model that was traced with two."""
    model = model_of(name)
    written = write_model(model, "onnx", tmp_path / "model.onnx")
    assert [path.name for path in written.paths] == ["model.onnx"]
    assert list(tmp_path.iterdir()) == [tmp_path / "model.onnx"]


@pytest.mark.slow
def test_onnx_has_a_file_for_each_size(tmp_path: Path) -> None:
    written = write_model(model_of("class_token"), "onnx", tmp_path / "vit.onnx", Options(sizes=[48, (32, 64)]))
    assert [path.name for path in written.paths] == ["vit-48x48.onnx", "vit-32x64.onnx"]


@pytest.mark.slow
def test_weights_above_the_limit_of_one_file_lie_next_to_their_graph(tmp_path: Path) -> None:
    """A message of protobuf has at most 2 GiB (onnx/onnx issue 4394): those of H/14 are more."""
    path, weights = tmp_path / "vit.onnx", tmp_path / "vit.onnx.data"
    model = model_of("class_token")
    graph = write_onnx(model, path, most_bytes=1000)
    assert graph.paths == (path, weights)
    assert sorted(tmp_path.iterdir()) == [path, weights]
    num_bytes = 4 * sum(tensor.numel() for tensor in model.tensors.values())
    assert path.stat().st_size < num_bytes < 1.5 * weights.stat().st_size
    assert listed(tmp_path) == [path.name, weights.name]
    assert write_onnx(model_of("gap"), path).paths == (path,)
    assert list(tmp_path.iterdir()) == [path], "weights of the older export are left"


@pytest.mark.parametrize("name", ["class_token", "relative", "hybrid", "bit"])
def test_our_own_file_keeps_everything(tmp_path: Path, name: str) -> None:
    model = replace(model_of(name), step=7, images_seen=56)
    write_model(model, "safetensors", tmp_path)
    back = read_back(model, tmp_path, exact=True)
    assert (back.config, back.step, back.images_seen, back.class_names) == (model.config, 7, 56, CLASSES)


@pytest.mark.parametrize(("target", "name"), [(target, name) for target, names in REFUSED.items() for name in names])
def test_what_a_target_cannot_hold_is_refused_in_words(tmp_path: Path, target: Target, name: str) -> None:
    out = tmp_path / f"weights.{target}" if target == "npz" else tmp_path / "out"
    with pytest.raises(ExchangeError, match=REFUSED[target][name]):
        write_model(model_of(name), target, out)


def test_a_folder_of_another_normalisation_of_pixels_is_folded(timm: ModuleType, tmp_path: Path) -> None:
    """DeiT and most of timm's models normalise by the mean and deviation of ImageNet's pixels."""
    model = model_of("class_token")
    write_model(model, "timm", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    config["pretrained_cfg"] |= {"mean": mean, "std": std}
    (tmp_path / "config.json").write_text(json.dumps(config))
    back = read_pretrained(tmp_path)
    assert any("folded into the patch embedding" in note for note in back.notes)
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    columns = [torch.tensor(values)[:, None, None] for values in (mean, std)]
    with torch.no_grad():
        expected = theirs((pixels / 255 - columns[0]) / columns[1])
        torch.testing.assert_close(back.build()(pixels), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_a_cnn_keeps_its_normalisation_of_pixels(timm: ModuleType, tmp_path: Path, name: str) -> None:
    """A convolution that pads its images with zeros reads another border if the normalisation is folded into it."""
    theirs = timm.create_model(name, num_classes=7).eval()
    mean, std = theirs.default_cfg["mean"], theirs.default_cfg["std"]
    assert mean == (0.485, 0.456, 0.406)
    timm.models.save_for_hf(theirs, str(tmp_path), model_args={})
    ours = read_pretrained(tmp_path)
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    columns = [torch.tensor(values)[:, None, None] for values in (mean, std)]
    with torch.no_grad():
        expected = theirs((pixels / 255 - columns[0]) / columns[1])
        filled = ours.config.build()
        filled.load_state_dict(ours.tensors)
        torch.testing.assert_close(filled.eval()(pixels), expected, rtol=1e-5, atol=1e-5)
    out = tmp_path / "out"
    write_model(ours, "timm", out)
    described = json.loads((out / "config.json").read_text())["pretrained_cfg"]
    assert (tuple(described["mean"]), tuple(described["std"])) == (mean, std)
    assert read_pretrained(out).config == ours.config
    card = make_card(ours, CardFacts(title="x", library="timm", usage=""), num_parameters=1, macs=None)
    assert "normalised by the mean [0.485, 0.456, 0.406]" in card


def test_a_model_of_timm_goes_there_and_back(timm: ModuleType, tmp_path: Path) -> None:
    from pipeline.models.timm.section import Timm

    config = Timm(name="swin_tiny_patch4_window7_224", num_classes=7, image_size=56, options={"window_size": 7}).resolve()
    model = Pretrained(config, dict(config.build().state_dict()), source="swin", class_names=CLASSES)
    write_model(model, "timm", tmp_path)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(run(theirs, config), run(model.build(), config))
    back = read_back(model, tmp_path, exact=True)
    assert torch.equal(run(back.build(), config), run(model.build(), config))


def test_bit_of_another_width_is_refused_with_what_timm_has(tmp_path: Path) -> None:
    config = replace(config_of("bit"), width=32)  # type: ignore[type-var]
    model = Pretrained(config, {}, source="run")
    with pytest.raises(ExchangeError, match="resnetv2_50x1_bit"):
        write_model(model, "timm", tmp_path)
