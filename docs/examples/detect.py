"""Train an object detector on a pretrained backbone, and measure its AP: `python docs/examples/detect.py --help`."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from detection.ap import make_metric, measure
from detection.data import Resized, batches, read_folder
from detection.models import Detector, DetectorSettings, make_detector
from detection.training import Progress, Trainer
from torch.utils.data import DataLoader

from pipeline.errors import ConfigError, PipelineError
from pipeline.exchange.source import read_pretrained

EPILOG = """\
The weights are a file of a run, runs/NAME/weights/step_*.safetensors, of the families bit, timm or vit. The detector is
Deformable DETR; --detector detr is the older one, and yolos is for vit alone. A folder has images and an annotations.json in
COCO's format.

    python docs/examples/make_digits.py data/digits
    python docs/examples/detect.py runs/NAME/weights/step_00000300.safetensors data/digits/train data/digits/val \\
        --out runs/detect --image-size 70 --width 64 --layers 2 --queries 10 --lr 1e-3 --backbone-lr 2e-4 --steps 1000

The same command goes on from the last measurement, where it saved. In its folder are results.json, with AP over steps, and in
the end, unless the backbone is timm's, the folder `detector`, which transformers opens by from_pretrained.
docs/detection.md has what to install, which settings to change, and measured values."""
SAY_EVERY_S = 10
FREE = ("out", "device", "workers")  # options that another launch may change


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition(":")[0] + ".", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("weights", type=Path, help="weights file of a run: the backbone")
    add("train", type=Path, help="folder to train on: images and annotations.json")
    add("val", type=Path, help="folder to measure AP on")
    add("--out", type=Path, required=True, help="folder for checkpoint, results and detector; the same one resumes")
    add("--detector", choices=["yolos", "detr", "deformable-detr"], help="default: deformable-detr")
    add("--backbone", choices=["pretrained", "random"], default="pretrained", help="random: the same model, to compare with")
    add("--image-size", type=positive, nargs="+", default=[512], help="pixels: a side, or height and width (default: 512)")
    add("--width", type=positive, default=256, help="channels of DETR's transformer (default: 256)")
    add("--layers", type=positive, default=6, help="layers of DETR's encoder, and of its decoder (default: 6)")
    add("--queries", type=positive, default=100, help="most objects found in an image (default: 100)")
    add("--steps", type=positive, default=2000, help="optimizer steps (default: 2000)")
    add("--every", type=positive, default=200, help="steps between two measurements, which save too (default: 200)")
    add("--batch-size", type=positive, default=16)
    add("--lr", type=float, default=1e-4, help="learning rate (default: 1e-4)")
    add("--backbone-lr", type=float, default=1e-5, help="learning rate of the backbone (default: 1e-5; 0 freezes it)")
    add("--flip", action="store_true", help="mirror every other image; not for digits or text")
    add("--seed", type=int, default=0)
    add("--workers", type=int, default=0, help="processes that read images (default: 0, in the training process)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def make(arguments: argparse.Namespace, classes: tuple[str, ...]) -> Detector:
    """Return the detector as it is before the first step."""
    pretrained = read_pretrained(arguments.weights)
    if arguments.backbone == "random":
        model = pretrained.config.build()
        model.init_weights(torch.Generator().manual_seed(arguments.seed))
        pretrained = replace(pretrained, tensors=model.state_dict())
    torch.manual_seed(arguments.seed)
    sizes = (side_lengths(arguments), arguments.width, arguments.layers, arguments.queries)
    return make_detector(pretrained, DetectorSettings(arguments.detector, classes, *sizes))


def side_lengths(arguments: argparse.Namespace) -> tuple[int, int]:
    if len(arguments.image_size) > 2:
        raise ConfigError("--image-size takes one number, or height and width")
    return arguments.image_size[0], arguments.image_size[-1]


def train(arguments: argparse.Namespace) -> None:
    """Train to the last step, from the checkpoint where there is one."""
    folder = read_folder(arguments.train)
    val = read_folder(arguments.val, classes=folder.classes)
    detector = make(arguments, folder.classes)
    make_metric()  # what it lacks is better said now than after the first steps
    rates = {"rate": arguments.lr, "backbone_rate": arguments.backbone_lr}
    trainer = Trainer(detector, **rates, steps=arguments.steps, seed=arguments.seed, device=arguments.device)
    kind = trainer.model.config.model_type
    say(f"{kind} on {arguments.weights}: {len(detector.taken)} tensors taken over, backbone {arguments.backbone}")
    say(f"{len(folder.images)} images to train on, {len(val.images)} to measure on, {len(folder.classes)} classes")
    size, batch_size = side_lengths(arguments), arguments.batch_size
    progress = Progress(arguments.out, {key: str(value) for key, value in vars(arguments).items() if key not in FREE})
    results = progress.load(trainer)

    def save(step: int, loss: float | None) -> None:
        values = measure(trainer.model, Resized(val, size), batch_size=batch_size, device=arguments.device)
        results.append({"step": step, "loss": loss, **values})
        progress.save(trainer, results)
        say(f"step {step}: " + "  ".join(f"{name} {value:.1f} %" for name, value in values.items()))

    if not results:
        save(0, None)
    first, losses, begun = results[-1]["step"], list[float](), time.monotonic()
    said = begun
    draws = batches(len(folder.images), range(first, arguments.steps), batch_size, seed=arguments.seed, flip=arguments.flip)
    loader = DataLoader(Resized(folder, size), batch_sampler=draws, collate_fn=list, num_workers=arguments.workers)
    for step, items in enumerate(loader, start=first + 1):
        losses.append(trainer.step(step, items))
        if time.monotonic() - said > SAY_EVERY_S:
            said = time.monotonic()
            left_s = (said - begun) / (step - first) * (arguments.steps - step)
            say(f"step {step} of {arguments.steps}: loss {losses[-1]:.2f}, {left_s / 60:.0f} min left")
        if step % arguments.every == 0 or step == arguments.steps:
            save(step, sum(losses) / len(losses))
            losses.clear()
    if detector.is_plain:
        trainer.model.save_pretrained(arguments.out / "detector")
    say(f"AP {results[-1]['AP']:.1f} % after {results[-1]['step']} steps; {arguments.out} has the rest")


def say(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    try:
        train(parse_arguments())
    except (PipelineError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped: the same command goes on from the last measurement", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
