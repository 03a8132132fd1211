"""Read a folder of timm's as a model of the family timm: its backbone is timm's own, its classifier ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.errors import ConfigError, ExchangeError
from pipeline.exchange.pieces import Tensors, check_shapes, some, tensor_shapes, to_fp32
from pipeline.exchange.pretrained import Pretrained
from pipeline.exchange.timm_architectures import options_of
from pipeline.image_size import image_size
from pipeline.models.timm.library import classifier_name, installed_version, new_model
from pipeline.models.timm.model import TimmConfig, freeze

_COUNTER = "num_batches_tracked"  # of BatchNorm, a whole number


def read_timm_family(
    architecture: str, arguments: dict[str, Any], cfg: Mapping[str, Any], tensors: Tensors, *, source: str
) -> Pretrained:
    """Return a model of the family timm; without a classifier where the folder has none.

    Raises:
        ExchangeError: timm is not installed, has no such model, or it has other tensors.
    """
    name = architecture.rpartition("/")[2].partition(".")[0]  # without the hub's owner and the weights' tag
    size = _size_of(arguments, cfg)
    if arguments.get("in_chans", 3) != 3:
        raise ExchangeError(f"{source} reads images of {arguments['in_chans']} channels, ours has 3")
    options = options_of(arguments)
    try:
        frozen = freeze(options)
        theirs = new_model(name, size=size, options=options, num_classes=1)
        classifier = classifier_name(name, theirs)
        version = installed_version()
    except (ValueError, ConfigError) as error:
        raise ExchangeError(f"{source}: {error}") from error
    weight, bias = tensors.get(f"{classifier}.weight"), tensors.get(f"{classifier}.bias")
    own = {
        f"backbone.{key}": tensor if key.endswith(_COUNTER) else to_fp32(key, tensor, source=source)
        for key, tensor in tensors.items()
        if not key.startswith(f"{classifier}.")
    }
    num_classes = 1 if weight is None else weight.shape[0]
    config = TimmConfig(name=name, image_size=image_size(*size), options=frozen, timm_version=version, num_classes=num_classes)
    if weight is not None and bias is not None:
        own["head.weight"] = to_fp32(f"{classifier}.weight", weight, source=source).flatten(1)
        own["head.bias"] = to_fp32(f"{classifier}.bias", bias, source=source)
    elif weight is not None:
        raise ExchangeError(f"{source} lacks {classifier}.bias, of the classifier of timm's {name}")
    check_shapes(own, config, source=source)
    if odd := sorted(own.keys() - tensor_shapes(config).keys()):
        raise ExchangeError(
            f"{source} holds {some(odd)}, which timm's {name} has not; model_args in its config.json may differ"
        )
    return Pretrained(config, own, source=source)


def _size_of(arguments: Mapping[str, Any], cfg: Mapping[str, Any]) -> tuple[int, int]:
    """Return height and width of the model's images: an argument of its constructor goes before what it was trained on."""
    given = arguments.get("img_size") or (cfg.get("input_size") or (3, 224, 224))
    sides = [given, given] if isinstance(given, int) else list(given)[-2:]
    return int(sides[0]), int(sides[1])
