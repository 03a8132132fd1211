"""Read weights of another library into a weights file of this software."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.launch.imports import collector_paused
from pipeline.launch.signals import StopRequest

EPILOG = (
    "examples:\n  python -m pipeline import vit_large_patch16_224.augreg_in21k l16\n"
    "  python -m pipeline import ViT-L_16.npz l16\n"
    "  python -m pipeline train configs/paper/l16_in1k.yaml init_from=l16/model.safetensors\n\n"
    "Reads a folder of timm or transformers (config.json and model.safetensors), Google's .npz files (vision_transformer,\n"
    "big_vision, BiT), and .safetensors, .bin or .pth files with timm's names. Pickled objects are refused. `train` and\n"
    "`embed` read the same paths by themselves: importing is for keeping one format."
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("weights", metavar="WEIGHTS", help="file or folder to read")
    command.add_argument("out", metavar="OUT", help="folder to write: model.safetensors and classes.txt")
    command.add_argument(
        "--image-size",
        nargs="+",
        type=int,
        metavar="PIXELS",
        help="side, or height and width, where the file does not say it",
    )
    command.add_argument("--gelu", choices=["exact", "tanh"], help="what it was trained with (default: as its format says)")
    command.add_argument("--classes", metavar="FILE", help="names of the classes, one a line (default: as the format has them)")


def run(arguments: argparse.Namespace, _stop: StopRequest) -> int:
    from dataclasses import replace

    with collector_paused():
        from pipeline.data.shards.class_names import parse_class_names
        from pipeline.errors import ExchangeError
        from pipeline.exchange.card import describe_model
        from pipeline.exchange.source import read_pretrained
        from pipeline.exchange.write import write_model
        from pipeline.image_size import describe_size, image_size
        from pipeline.models.vit.encoder_config import EncoderConfig

    sides = arguments.image_size
    if sides is not None and len(sides) > 2:
        raise ExchangeError(f"--image-size {' '.join(map(str, sides))}: give one side of a square, or height and width")
    size = None if sides is None else image_size(sides[0], sides[-1])
    model = read_pretrained(arguments.weights, size=size)
    if arguments.gelu is not None and isinstance(model.config, EncoderConfig):
        model = replace(model, config=replace(model.config, gelu=arguments.gelu))
    try:
        if arguments.classes is not None:
            names = parse_class_names(Path(arguments.classes).read_bytes(), source=arguments.classes)
            model = replace(model, class_names=tuple(names))
        written = write_model(model, "safetensors", Path(arguments.out))
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        raise ExchangeError(f"{where}{error.strerror or error}") from error
    for note in model.notes:
        print(f"[import] {note}")
    size_text = describe_size(model.config.image_size)
    classes = f"{model.config.num_classes} classes" if model.has_head else "no classifier"
    print(f"[import] {describe_model(model)}, images of {size_text}, {classes}")
    for path in written.paths:
        print(f"[import] wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0
