"""Make the evaluator of a run folder, or of a model from anywhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipeline.build.loggers import describe_run, make_run_identity
from pipeline.build.pretrained import open_pretrained
from pipeline.build.streams import make_remote_options
from pipeline.config.evaluation import EvaluationConfig
from pipeline.config.run import RunConfig
from pipeline.console.lines import log_line
from pipeline.data.shards.class_names import parse_class_names
from pipeline.distributed.world import World
from pipeline.errors import ConfigError
from pipeline.evaluation.conditions import preprocessing_of
from pipeline.evaluation.runner import Evaluator
from pipeline.evaluation.upstream import Upstream
from pipeline.exchange.pretrained import Pretrained
from pipeline.monitor.tensorboard import check_tensorboard
from pipeline.monitor.wandb_identity import settle_run
from pipeline.monitor.wandb_settings import read_wandb_environment
from pipeline.objectives import Softmax
from pipeline.run.checkpoint import RunFolder
from pipeline.run.weights import digest_tensors, read_weights_header, save_weights


def make_upstream(config: RunConfig, folder: RunFolder) -> Upstream:
    """Return what the evaluator must know of the training."""
    names = parse_class_names(folder.classes.read_bytes(), source=str(folder.classes)) if folder.classes.exists() else None
    return Upstream(
        objective=config.objective,
        model=config.model.resolve(head_bias=config.objective.head_bias),
        seed=config.seed,
        class_names=None if names is None else tuple(names),
    )


def make_evaluator(folder: RunFolder, config: RunConfig) -> Evaluator:
    """Make the evaluator of a run folder, which may have moved since the run's configuration was written."""
    check_tensorboard(config.tracking)
    # It is created again if lost: results still belong in evaluations.jsonl.
    asked_id = None if config.tracking.mode == "disabled" else read_wandb_environment().run_id
    wandb = settle_run(folder.root, wanted=asked_id, checkpoint_id=None, step=max(folder.weight_steps(), default=0))
    for message in wandb.messages:
        log_line(f"[eval] {message}")
    return Evaluator(
        folder,
        section=config.evaluation,
        identity=make_run_identity(config.tracking, name=config.name, run_id=wandb.run_id, folder=folder),
        record={**describe_run(config, folder, config.model.resolve()), "slurm_job_id": World.from_environment().slurm_job_id},
        upstream=make_upstream(config, folder),
        remote=make_remote_options(config.data),
    )


def make_model_evaluator(path: Path, out: RunFolder, config: EvaluationConfig) -> Evaluator:
    """Make the evaluator of a model that is no run of this software: its weights are copied to a folder like a run's.

    Args:
        path: anything that `import` reads.
        out: the folder, which is made. It keeps results, so a later call computes what is missing.

    Raises:
        ExchangeError: the model cannot be read.
        ConfigError: the folder is a training's, or another model's, or cannot be written.
    """
    check_tensorboard(config.tracking)
    model = open_pretrained(path)
    _keep_weights(model, out)
    section = config.evaluation
    own = model.preprocessing
    asked = preprocessing_of(section)
    wandb = settle_run(out.root, wanted=None, checkpoint_id=None, step=model.step)
    for note in model.notes:
        log_line(f"[eval] {note}")
    return Evaluator(
        out,
        section=section,
        identity=make_run_identity(config.tracking, name=out.root.resolve().name, run_id=wandb.run_id, folder=out),
        record={"source": str(path), "model_resolved": {"family": model.config.family, **model.config.to_dict()}},
        upstream=Upstream(objective=Softmax(), model=model.config, seed=0, class_names=model.class_names),  # type: ignore[call-arg]
        preprocessing=replace(own, short_side=asked.short_side or own.short_side, aspect=asked.aspect),
    )


def _keep_weights(model: Pretrained, out: RunFolder) -> None:
    """Copy a model's weights to the folder of its results.

    Raises:
        ConfigError: the folder is a training's, or another model's, or cannot be written.
    """
    if out.config.exists():
        raise ConfigError(f"{out.root} is the folder of a training; name another one for this model's results: --out FOLDER")
    target = out.weights_of(model.step)
    # Zeros are a classifier that is not there.
    tensors = model.tensors if model.has_head else dict(model.build().state_dict())
    digest = digest_tensors(tensors)
    others = [name for name in out.weight_names() if read_weights_header(out.weights_of(name.step, name.kind)).digest != digest]
    if others:
        raise ConfigError(f"{out.root} has results of another model ({others[0]}); name another folder: --out FOLDER")
    try:
        out.root.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            more = {"source": model.source}
            save_weights(target, tensors, model=model.config, step=model.step, images_seen=model.images_seen, more=more)
    except OSError as error:
        raise ConfigError(
            f"{out.root} cannot be written ({error.strerror or error}); --out names a folder for results"
        ) from error
