"""Write weights in another library's format."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.launch.imports import collector_paused
from pipeline.launch.signals import StopRequest

if TYPE_CHECKING:
    from pipeline.build.exporting import Export
    from pipeline.build.pretrained import RunWeights

EPILOG = (
    "examples:\n  python -m pipeline export runs/l16_in21k --to timm exported/l16\n"
    "  python -m pipeline export runs/l16_in21k --best 'imagenet linear' --to transformers exported/l16-hf\n"
    "  python -m pipeline export runs/l16_in21k --to onnx exported/l16.onnx --sizes 224 384\n"
    "  python -m pipeline export weights.safetensors --to npz l16.npz --naming big_vision\n\n"
    "timm: timm.create_model('local-dir:OUT', pretrained=True); transformers opens the same folder as TimmWrapperModel.\n"
    "What a target has no name for is folded where outputs stay the same, and refused else: docs/exchange.md has the table."
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("weights", metavar="RUN_OR_WEIGHTS", help="folder of a run, or anything that `import` reads")
    command.add_argument("out", metavar="OUT", help="folder to write; a file for npz and onnx")
    command.add_argument(
        "--to", required=True, choices=["timm", "transformers", "npz", "onnx", "safetensors"], help="whose format it is"
    )
    which = command.add_mutually_exclusive_group()
    which.add_argument("--step", type=int, help="of a run (default: the newest weights)")
    which.add_argument("--best", metavar="SET", help="of a run, the best step: a set, or 'SET MEASURE' as `report` names it")
    which.add_argument("--all-steps", action="store_true", help="of a run, each into a folder or file of its own in OUT")
    command.add_argument("--average", action="store_true", help="of a run, the averaged weights")
    command.add_argument("--without-head", action="store_true", help="leave the classifier out: the model gives features")
    command.add_argument("--naming", choices=["vision_transformer", "big_vision"], help="of npz (default: by the model)")
    command.add_argument("--sizes", nargs="+", type=int, metavar="PIXELS", help="of onnx: a file for each size of squares")
    command.add_argument("--license", help="for the model card, for example apache-2.0")
    command.add_argument("--push", metavar="OWNER/NAME", help="upload OUT to the model hub; needs HF_TOKEN")
    command.add_argument("--private", action="store_true", help="of --push, where the repository is made")
    command.add_argument("--dry-run", action="store_true", help="of --push: list what would be uploaded")


def run(arguments: argparse.Namespace, _stop: StopRequest) -> int:
    with collector_paused():
        from pipeline.build.exporting import export
        from pipeline.errors import ExchangeError
        from pipeline.exchange.hub import check_repository, require_token

    if arguments.push is not None:
        check_repository(arguments.push)
        if not arguments.dry_run:
            require_token()  # before minutes of writing
    for wanted in _list_exports(arguments):
        try:
            written = export(wanted)
        except OSError as error:
            raise ExchangeError(f"{wanted.out} cannot be written: {error.strerror or error}") from error
        for note in written.notes:
            print(f"[export] {note}")
        for path in written.paths:
            print(f"[export] wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")
    if arguments.push is not None:
        _push(arguments)
    return 0


def _list_exports(arguments: argparse.Namespace) -> list[Export]:
    """Return what is to be written.

    Raises:
        ExchangeError: options that do not go together, or no such weights.
    """
    from pipeline.build.pretrained import choose_weights, is_run, open_pretrained
    from pipeline.errors import ExchangeError
    from pipeline.exchange.places import place_of

    root, out = place_of(arguments.weights), Path(arguments.out)
    if arguments.naming and arguments.to != "npz":
        raise ExchangeError("--naming is an option of --to npz")
    if arguments.sizes and arguments.to != "onnx":
        raise ExchangeError(
            "--sizes is an option of --to onnx: other formats have one size, and their libraries resize positions"
        )
    if not is_run(root):
        for name in ("step", "best", "all_steps", "average"):
            if getattr(arguments, name):
                raise ExchangeError(f"--{name.replace('_', '-')} is for run folders, and {root} is none")
        return [_make_export(arguments, open_pretrained(root), out, run=None)]
    kind = "average" if arguments.average else "raw"
    chosen = choose_weights(root, step=arguments.step, best=arguments.best, kind=kind, every=arguments.all_steps)
    if not arguments.all_steps:
        return [_make_export(arguments, weights.open(), out, run=weights) for weights in chosen]
    return [_make_export(arguments, weights.open(), _place(out, arguments.to, weights), run=weights) for weights in chosen]


def _place(out: Path, target: str, weights: RunWeights) -> Path:
    return out / (f"{weights.name.stem}.{target}" if target in ("npz", "onnx") else weights.name.stem)


def _make_export(arguments: argparse.Namespace, model: object, out: Path, *, run: RunWeights | None) -> Export:
    from pipeline.build.exporting import Export
    from pipeline.exchange.pretrained import Pretrained
    from pipeline.exchange.write import Options

    assert isinstance(model, Pretrained)
    for note in model.notes:
        print(f"[export] {note}")
    return Export(
        model=model,
        target=arguments.to,
        out=out,
        options=Options(has_head=not arguments.without_head, naming=arguments.naming, sizes=tuple(arguments.sizes or ())),
        run=run,
        license=arguments.license,
        repository=arguments.push,
    )


def _push(arguments: argparse.Namespace) -> None:
    from pipeline.exchange.hub import listed, push_folder

    out = Path(arguments.out)
    folder = out if out.is_dir() else out.parent
    if arguments.dry_run:
        for name in listed(folder):
            print(f"[export] would upload {name} ({(folder / name).stat().st_size / 1e6:.1f} MB) to {arguments.push}")
        return
    message = f"Weights of {Path(arguments.weights).name}"
    address = push_folder(folder, arguments.push, private=arguments.private, message=message)
    print(f"[export] uploaded to {arguments.push}: {address}")
