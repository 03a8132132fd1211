"""Draw what a model has learned: filters, positions, attention."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.launch.imports import collector_paused
from pipeline.launch.signals import StopRequest

if TYPE_CHECKING:
    from pipeline.config.run import RunConfig

EPILOG = (
    "examples:\n  python -m pipeline figures runs/l16_in21k --images /data/imagenet/val\n"
    "  python -m pipeline figures runs/l16_in21k --all-steps --count 12\n"
    "  python -m pipeline figures google/L_16.npz --images cat.jpg dog.jpg --out figures/google_l16\n\n"
    "Four figures, for print (one column wide, PNG and SVG): principal components of the patch embedding's filters,\n"
    "similarity of position embeddings, mean attention distance of each head by layer, and attention rollout on images\n"
    "(figures 7, 11, 6 and 14 of the paper). Without --images those of a run are its evaluation sets', or training images.\n"
    "Of a run they go to RUN_DIR/figures/step_..., where `report --html` finds them."
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("weights", metavar="RUN_OR_WEIGHTS", help="folder of a run, or anything that `import` reads")
    command.add_argument("--out", metavar="FOLDER", help="where they go (default: RUN_DIR/figures/STEP, or figures/NAME)")
    command.add_argument("--images", nargs="+", metavar="PATH", help="image files, or folders or URLs of indexed shards")
    command.add_argument("--count", type=int, default=6, help="images to look at (default: 6)")
    command.add_argument("--step", type=int, help="of a run (default: the newest weights)")
    command.add_argument("--all-steps", action="store_true", help="of a run, all weights that it has")
    command.add_argument("--average", action="store_true", help="of a run, the averaged weights")
    command.add_argument(
        "--formats", nargs="+", choices=["png", "svg", "pdf"], default=["png", "svg"], help="of the files (default: png svg)"
    )


def run(arguments: argparse.Namespace, _stop: StopRequest) -> int:
    from pipeline.errors import ConfigError

    if arguments.count < 1:
        raise ConfigError(f"--count {arguments.count}: at least 1")
    if arguments.all_steps and arguments.step is not None:
        raise ConfigError("--step and --all-steps exclude each other")
    with collector_paused():
        import torch

        from pipeline.build.figures import make_figures, read_images
        from pipeline.build.pretrained import choose_weights, is_run, open_pretrained
        from pipeline.exchange.places import place_of
        from pipeline.run.folder import RunFolder

    path = place_of(arguments.weights)
    kind = "average" if arguments.average else "raw"
    if is_run(path):
        chosen = choose_weights(path, step=arguments.step, kind=kind, every=arguments.all_steps)
        models = [(weights.name.stem, weights.open) for weights in chosen]
        sources = arguments.images or _images_of(chosen[0].config)
        root = RunFolder(path).figures if arguments.out is None else Path(arguments.out)
    else:
        if arguments.all_steps or arguments.step is not None:
            raise ConfigError(f"{path} is not a run folder, and holds one model: leave the step out")
        models = [("", lambda: open_pretrained(path))]
        sources = arguments.images or []
        root = Path("figures") / (path.stem if path.is_file() else path.resolve().name)
        root = root if arguments.out is None else Path(arguments.out)
    if not sources:
        print("[figures] no --images: without them there are no figures of attention", flush=True)
    for name, open_model in models:
        model = open_model()
        transform = model.preprocessing.transform(model.config)
        size = model.config.height_and_width
        images = read_images(sources, transform, count=arguments.count) if sources else torch.zeros(0, 3, *size)
        written = make_figures(model, images).write(root / name, formats=tuple(dict.fromkeys(arguments.formats)))
        print(f"[figures] {root / name}: {', '.join(file.name for file in written)}", flush=True)
    return 0


def _images_of(config: RunConfig) -> list[str]:
    """Return the shards of a run whose images are most interesting: those that it is tested on, else trained on."""
    section = config.evaluation
    named = [dataset.test.path for dataset in section.datasets] + [held_out.shards.path for held_out in section.validation]
    if named:
        return named[:1]
    train = config.data.train
    return [train] if isinstance(train, str) else [corpus.path for corpus in train][:1]
