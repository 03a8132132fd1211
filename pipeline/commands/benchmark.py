"""Measure training, loaders, augmentations, architectural choices, planning and the solvers of probes side by side."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.commands import benchmark_train
from pipeline.image_size import ImageSize, image_size
from pipeline.launch.signals import StopRequest

EPILOG = (
    "examples:\n"
    "  python -m pipeline benchmark train --models L/16 H/14\n"
    "  python -m pipeline benchmark loader /data/imagenet-sample --workers 2\n"
    "  python -m pipeline benchmark scale\n"
    "  python -m pipeline benchmark augment /data/imagenet-sample\n"
    "  python -m pipeline benchmark choices runs/choices --train /data/tiny100/train --test /data/tiny100/val "
    "--plot choices.png\n"
    "  python -m pipeline benchmark eval --images 10000 --features-per-image 1024 --classes 100\n\n"
    "train: our training, a bare loop of the same model, timm's and transformers' models, on random pixels that are always\n"
    "there; every contender runs in a process of its own, in turns. Libraries that are not installed are left out.\n"
    "loader: every contender runs in a process of its own, in turns, on the same images and cores. `make peers` installs\n"
    "timm, litdata and mosaicml-streaming; those not installed are left out with a message.\n"
    "scale: plans a corpus of 300 M samples for 4,096 ranks; no image is read.\n"
    "augment: every augmentation law, and torchvision's and timm's where they are installed (`make test` does it).\n"
    "eval: the solvers of the few-shot and linear probes next to big_vision's algorithm in numpy and scikit-learn's logistic\n"
    "regression, on a mixture of Gaussians or on what `embed` wrote; scikit-learn is left out where it is not installed.\n"
    "choices: trains one small model for each architectural choice and seed, and compares their probes. Runs that are\n"
    "complete are not done again; the same command resumes."
)
CHOICES_CONFIG = Path(__file__).parents[2] / "configs" / "choices_64px.yaml"


def _image_size(text: str) -> ImageSize:
    height, _, width = text.partition("x")
    return image_size(int(height), int(width or height))


def add_arguments(command: argparse.ArgumentParser) -> None:
    kinds = command.add_subparsers(dest="what", required=True, metavar="train|loader|scale|augment|eval|choices")
    benchmark_train.add_arguments(kinds.add_parser("train"))
    loader = kinds.add_parser("loader", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    loader.add_argument("folder", help="indexed shards of real photos, at least one shard a worker")
    loader.add_argument("--workers", type=int, default=2, help="worker processes of each loader")
    loader.add_argument("--batch", type=int, default=64, help="images in a batch")
    loader.add_argument("--image-size", type=_image_size, default=224, help="pixels; 224x160: height x width")
    loader.add_argument("--batches", type=int, default=10, help="batches in a round")
    loader.add_argument("--rounds", type=int, default=7, help="rounds; the table shows their median")
    loader.add_argument("--only", nargs="*", default=[], help="contenders whose name has one of these in it")
    scale = kinds.add_parser("scale", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    scale.add_argument("--shards", type=int, default=30_000)
    scale.add_argument("--samples-per-shard", type=int, default=10_000)
    scale.add_argument("--ranks", type=int, default=4096)
    scale.add_argument("--workers", type=int, default=8, help="worker processes a rank")
    scale.add_argument("--batch", type=int, default=32_768, help="global batch size")
    augment = kinds.add_parser("augment", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    augment.add_argument("folder", help="indexed shards of real photos")
    augment.add_argument("--image-size", type=int, default=224, help="pixels")
    augment.add_argument("--rounds", type=int, default=15, help="rounds; the table shows their median")
    _add_eval(kinds.add_parser("eval", formatter_class=argparse.ArgumentDefaultsHelpFormatter))
    _add_choices(kinds.add_parser("choices"))


def _add_eval(command: argparse.ArgumentParser) -> None:
    command.add_argument("--images", type=int, default=4000, help="train images")
    command.add_argument("--features-per-image", type=int, default=384, metavar="D")
    command.add_argument("--classes", type=int, default=100)
    command.add_argument("--tests", type=int, default=5000, help="test images")
    command.add_argument(
        "--features", nargs=2, type=Path, metavar=("TRAIN", "TEST"), help="folders that `embed` wrote, instead of these sizes"
    )
    command.add_argument("--rounds", type=int, default=3, help="rounds of the few-shot probe; the table shows their median")
    command.add_argument("--only", choices=["few_shot", "logistic"], help="one of the probes")
    command.add_argument("--plan", action="store_true", help="say how much memory and time these sizes take, and stop")
    command.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")


def _add_choices(choices: argparse.ArgumentParser) -> None:
    choices.add_argument("--train", required=True, metavar="SHARDS", help="folder of indexed shards to train on")
    choices.add_argument("--test", required=True, metavar="SHARDS", help="folder of indexed shards to test the probes on")
    choices.add_argument(
        "--probe", metavar="SHARDS", help="folder of indexed shards that the probes are fitted to (default: those of --train)"
    )
    choices.add_argument("--seeds", type=int, default=3, help="runs of each variant (default: 3)")
    choices.add_argument("--epochs", type=float, help="length of each run, a tenth of it warmup (default: the configuration's)")
    choices.add_argument("--config", default=str(CHOICES_CONFIG), help="what every variant begins with (default: %(default)s)")
    choices.add_argument(
        "--only", nargs="*", default=[], metavar="NAME", help="variants whose name has one of these in it, and the default"
    )
    choices.add_argument("--json", type=Path, metavar="FILE", help="write every run's result there")
    choices.add_argument("--plot", type=Path, metavar="FILE", help="draw the table there")
    choices.add_argument("out", help="folder of the runs")
    choices.add_argument(
        "overrides", nargs="*", default=[], metavar="section.key=value", help="settings that replace the base configuration's"
    )


def run(arguments: argparse.Namespace, stop: StopRequest) -> int:
    if arguments.what == "train":
        return benchmark_train.run(arguments)
    if arguments.what == "scale":
        from pipeline.benchmark.scale import measure_scale

        print(
            measure_scale(
                num_shards=arguments.shards,
                samples_per_shard=arguments.samples_per_shard,
                num_ranks=arguments.ranks,
                num_workers=arguments.workers,
                global_batch_size=arguments.batch,
            )
        )
        return 0
    if arguments.what == "augment":
        from pipeline.benchmark.augment import compare_augmentations

        print(compare_augmentations(arguments.folder, image_size=arguments.image_size, num_rounds=arguments.rounds))
        return 0
    if arguments.what == "eval":
        return _compare_probes(arguments)
    if arguments.what == "choices":
        return _compare_choices(arguments, stop)
    from pipeline.benchmark.loader import compare_loaders

    print(
        compare_loaders(
            arguments.folder,
            num_workers=arguments.workers,
            batch_size=arguments.batch,
            image_size=arguments.image_size,
            num_batches=arguments.batches,
            num_rounds=arguments.rounds,
            only=arguments.only,
        )
    )
    return 0


def _compare_probes(arguments: argparse.Namespace) -> int:
    from pipeline.benchmark.probes.compare import PARTS, compare_probes, forecast
    from pipeline.benchmark.probes.features import Sizes, read_feature_set
    from pipeline.errors import ConfigError

    sizes = Sizes(arguments.images, arguments.features_per_image, arguments.classes, arguments.tests)
    if min(sizes.images, sizes.width, sizes.tests, arguments.rounds) < 1 or not 2 <= sizes.classes <= sizes.images:
        raise ConfigError("--images, --features-per-image, --tests and --rounds are 1 or more, --classes 2 to --images")
    features = tuple(arguments.features) if arguments.features else None
    if features is not None:
        sizes = read_feature_set(*features).sizes
    print(forecast(sizes), flush=True)
    if arguments.plan:
        return 0
    only = [arguments.only] if arguments.only else PARTS
    print(compare_probes(sizes, features=features, rounds=arguments.rounds, only=only, json_path=arguments.json))
    return 0


def _compare_choices(arguments: argparse.Namespace, stop: StopRequest) -> int:
    from pipeline.benchmark.choices.results import draw, make_table, write_json
    from pipeline.benchmark.choices.study import make_base, run_study
    from pipeline.benchmark.choices.variants import choose_variants
    from pipeline.errors import ConfigError, TrainingError

    stop.install_everywhere()
    if arguments.seeds < 1:
        raise ConfigError(f"--seeds {arguments.seeds}: a variant needs a run; use 1 or more, and 3 to see a spread")
    variants = choose_variants(arguments.only)
    base = make_base(
        arguments.config,
        arguments.overrides,
        train=arguments.train,
        probe=arguments.probe or arguments.train,
        test=arguments.test,
        epochs=arguments.epochs,
    )
    outcome = run_study(base, variants, num_seeds=arguments.seeds, out=Path(arguments.out), stop=stop)
    if outcome.results:
        print(make_table(outcome.results))
        if arguments.json is not None:
            write_json(arguments.json, outcome.results, settings=base.model_dump(mode="json"))
        if arguments.plot is not None:
            draw(arguments.plot, outcome.results)
    if outcome.failures:
        raise TrainingError("\n  ".join(["runs that failed; the same command tries them again:", *outcome.failures]))
    return 0
