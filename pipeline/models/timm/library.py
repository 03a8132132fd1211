"""Import the library timm when a model needs it, check names against it, and create a model without a classifier."""

from __future__ import annotations

import difflib
import importlib
import re
import traceback
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from torch import nn

from pipeline.errors import ConfigError

HOW_TO_INSTALL = "pip install '.[timm]'"
OLDEST = (1, 0, 31)
MAX_SUGGESTED = 5
CLASSIFIER = "~classifier"  # a name that no parameter of timm has
# What a configuration may not pass on to `timm.create_model`: the pipeline sets it, or it reads weights from elsewhere.
RESERVED = frozenset({
    "cache_dir", "checkpoint_path", "device", "dtype", "exportable", "features_only", "head_init_scale", "img_size", "in_chans",
    "model_name", "no_jit", "num_classes", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "scriptable",
})  # fmt: skip


def load_library() -> ModuleType:
    """Return timm itself.

    Raises:
        ConfigError: it is not installed, or it is too old.
    """
    try:
        library = importlib.import_module("timm")
    except ImportError as error:
        raise ConfigError(f"model.family=timm needs the library timm ({error}); {HOW_TO_INSTALL}") from error
    if tuple(int(part) for part in re.findall(r"\d+", library.__version__)[:3]) < OLDEST:
        needed = ".".join(map(str, OLDEST))
        raise ConfigError(
            f"model.family=timm needs timm {needed} or newer, and {library.__version__} is installed: where a model is cast to "
            f"bf16, older ones round the frequencies of rotary positions; {HOW_TO_INSTALL}"
        )
    return library


def installed_version() -> str:
    """Return timm's version.

    Raises:
        ConfigError: it is not installed.
    """
    return load_library().__version__


def check_name(name: str) -> None:
    """Accept an architecture's name alone: one with a tag or a prefix (`hf-hub:`) names weights from elsewhere.

    Raises:
        ConfigError: timm has no such architecture.
    """
    library = load_library()
    if "." not in name and ":" not in name and "/" not in name and library.is_model(name):
        return
    near = difflib.get_close_matches(
        name.partition(".")[0].rpartition("/")[2], library.list_models(), n=MAX_SUGGESTED, cutoff=0.5
    )
    hint = f"did you mean {', '.join(near)}?" if near else "python -c 'import timm; print(timm.list_models())' lists them"
    raise ConfigError(f"model.name={name[:60]!r} is not an architecture of timm {library.__version__}; {hint}")


def default_size(name: str) -> tuple[int, int]:
    """Return height and width in pixels of the images that an architecture is made for; 224 where timm does not say."""
    known = load_library().get_pretrained_cfg(name)
    return (224, 224) if known is None else tuple(known.input_size[1:])


def create(name: str, *, size: tuple[int, int], options: Mapping[str, Any], num_classes: int = 0) -> nn.Module:
    """Return a model, by default without a classifier. Its weights are drawn from torch's global generator.

    Raises:
        ConfigError: it does not take the size, or an option.
    """
    library = load_library()
    known = library.get_pretrained_cfg(name)
    # Models of a fixed size take another one when they are made; the others take any when they are run.
    sized = {"img_size": size} if known is not None and known.fixed_input_size and size != default_size(name) else {}
    try:
        return library.create_model(name, pretrained=False, num_classes=num_classes, **sized, **options)
    except (TypeError, ValueError, KeyError, AssertionError, RuntimeError) as error:
        given = ", ".join(f"{key}={value}" for key, value in {**sized, **options}.items()) or "no options"
        raise ConfigError(f"timm {library.__version__} cannot make {name} with {given}: {reason_of(error)}") from error


def new_model(name: str, *, size: tuple[int, int], options: Mapping[str, Any], num_classes: int) -> nn.Module:
    """Return timm's own model with its classifier, on the meta device: it has shapes and no weights.

    Raises:
        ConfigError: timm has no such model, or it does not take the size, or an option.
    """
    check_name(name)
    with torch.device("meta"):
        return create(name, size=size, options=options, num_classes=num_classes)


def classifier_name(name: str, model: nn.Module) -> str:
    """Return the name of the dense layer that is a model's classifier.

    Raises:
        ConfigError: it has two of them, or none.
    """
    found = dict(getattr(model, "pretrained_cfg", {}) or {}).get("classifier")
    if not isinstance(found, str):
        raise ConfigError(
            f"timm's {name} has the classifier {found!r}, and a model here has one dense layer; use another model"
        )
    return found


def reason_of(error: Exception) -> str:
    """Return what an error of timm says, or the line that raised it: some of its assertions say nothing."""
    return str(error) or f"{type(error).__name__}: {traceback.extract_tb(error.__traceback__)[-1].line}"


def innermost_blocks(backbone: nn.Module) -> list[nn.Module]:
    """Return the entries of the lists called blocks, layers or stages that hold no other such list, in order.

    timm keeps blocks in `nn.Sequential`s or `nn.ModuleList`s of these names, those of hierarchical models inside of stages.
    """
    lists = {
        name: module
        for name, module in backbone.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential) and name.rpartition(".")[2] in ("blocks", "layers", "stages")
    }
    innermost = [name for name in lists if not any(other.startswith(f"{name}.") for other in lists)]
    return [block for name in innermost for block in lists[name].children()]


def number_layers(backbone: nn.Module) -> dict[str, int]:
    """Return the layer of each parameter by name, as timm's own layer-wise decay numbers them (timm.optim,
    `param_groups_layer_decay`): what is made before the blocks is layer 0, blocks inside stages are counted one by one, a norm
    behind them is of the last block's layer. Empty where timm does not say.

    The classifier, which the backbone does not have, and what is made for it are of the last layer, whose number is that of
    `CLASSIFIER`.
    """
    make_matcher: Any = getattr(backbone, "group_matcher", None)
    if make_matcher is None:
        return {}
    grouping = importlib.import_module("timm.models._manipulate")
    named = [*backbone.named_parameters(), (CLASSIFIER, None)]
    return grouping.group_with_matcher(named, make_matcher(coarse=False), reverse=True)
