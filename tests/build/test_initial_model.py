"""A run that names no model has that of the weights it begins with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from pipeline.build.initial import with_model_of_weights
from pipeline.config.read import load_config, parse_config
from pipeline.errors import ConfigError, ExchangeError
from pipeline.exchange.pretrained import Pretrained
from pipeline.exchange.write import write_model
from pipeline.files import write_whole
from pipeline.models import Model, settings_of
from pipeline.models.base import ModelConfig
from pipeline.models.bit.model import BiTConfig
from pipeline.models.hybrid.model import HybridConfig
from pipeline.models.hybrid.section import Hybrid
from pipeline.models.hybrid.sizes import parse_name
from pipeline.models.section import ModelSection
from pipeline.models.timm.section import Timm
from pipeline.models.vit.section import ViT
from pipeline.run.folder import RunFolder
from pipeline.section import members_of
from tests.exchange.models import VITS, config_of, model_of

CONFIGS: dict[str, ModelConfig] = {
    **{name: config_of(name) for name in (*VITS, "hybrid", "hybrid_root", "bit")},
    **{name: ViT(name=name, num_classes=5).resolve() for name in ("Ti/16", "S/32", "B/16", "L/16", "L/32", "H/14")},
    **{name: Hybrid(name=name, num_classes=5).resolve() for name in ("R50+B/16", "R50+L/32", "R26+S/32", "R+Ti/16")},
    "odd ResNet": BiTConfig(image_size=(64, 96), variant="v1", blocks=(1, 2), width=96, num_classes=5),
    "odd hybrid": Hybrid(
        name="R50+B/16", blocks=(2, 3), root_width=32, width=96, num_heads=3, image_size=256, num_classes=5
    ).resolve(),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_settings_of_a_model_make_it(name: str) -> None:
    config = CONFIGS[name]
    settings = settings_of(config)
    section = members_of(Model)[settings["family"]]
    assert issubclass(section, ModelSection)
    made = section(**settings, num_classes=config.num_classes).resolve()  # type: ignore[call-arg]
    assert made == config


def test_settings_of_a_backbone_of_timm_make_it(timm: ModuleType) -> None:
    del timm
    config = Timm(name="resnet18", options={"drop_rate": 0.1}, mean=(0.4, 0.5, 0.6), image_size=64, num_classes=5).resolve()
    assert Timm(**settings_of(config), num_classes=5).resolve() == config


def test_patches_that_no_hybrid_has_are_said() -> None:
    config = CONFIGS["R50+B/16"]
    assert isinstance(config, HybridConfig)
    assert parse_name("R50+B/16").patch_size == 1
    with pytest.raises(ValueError, match="has patches of 4 pixels"):
        settings_of(replace(config, patch_size=4))


def weights_of(name: str, folder: Path) -> tuple[str, Pretrained]:
    model = model_of(name)
    return str(write_model(model, "safetensors", folder).paths[0]), model


def test_what_the_settings_do_not_say_is_that_of_the_weights(tmp_path: Path, write_config: Callable[..., Path]) -> None:
    source, model = weights_of("map", tmp_path / "weights")
    path = write_config(init_from=source)
    named = load_config(path)
    assert with_model_of_weights(named) is named, "it names a model"
    values = {**named.model_dump(mode="json"), "model": {"num_classes": 3, "image_size": 64, "dropout": 0.1}}
    found = with_model_of_weights(parse_config(values, source="x"))
    expected = replace(model.config, num_classes=3, image_size=64, dropout=0.1)  # type: ignore[type-var]
    assert found.model.resolve() == expected
    # The run goes on without its weights.
    folder = RunFolder(found.run_dir)
    folder.root.mkdir(parents=True)
    write_whole(folder.config, found.to_yaml())
    Path(source).unlink()
    assert with_model_of_weights(parse_config(values, source="x")) == found
    folder.config.unlink()
    with pytest.raises(ExchangeError, match="do not exist"):
        with_model_of_weights(parse_config(values, source="x"))


def test_a_setting_of_another_family_is_refused_in_words(tmp_path: Path, write_config: Callable[..., Path]) -> None:
    source, _ = weights_of("bit", tmp_path / "weights")
    values = {**load_config(write_config(init_from=source)).model_dump(mode="json"), "model": {"num_classes": 3, "depth": 4}}
    with pytest.raises(ConfigError, match=r"the model of init_from=.*model\.depth"):
        with_model_of_weights(parse_config(values, source="x"))
