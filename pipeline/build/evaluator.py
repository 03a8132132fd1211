"""Make the evaluator of a run folder."""

from __future__ import annotations

from pipeline.build.loggers import describe_run, make_run_identity
from pipeline.build.streams import make_remote_options
from pipeline.config.run import RunConfig
from pipeline.console.lines import log_line
from pipeline.data.shards.class_names import parse_class_names
from pipeline.distributed.world import World
from pipeline.evaluation.runner import Evaluator
from pipeline.evaluation.upstream import Upstream
from pipeline.monitor.wandb_identity import settle_run
from pipeline.monitor.wandb_settings import read_wandb_environment
from pipeline.run.folder import RunFolder


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
    # It is created again if lost: results still belong in evaluations.jsonl.
    asked_id = None if config.tracking.mode == "disabled" else read_wandb_environment().run_id
    wandb = settle_run(folder.root, wanted=asked_id, checkpoint_id=None, step=max(folder.weight_steps(), default=0))
    for message in wandb.messages:
        log_line(f"[eval] {message}")
    return Evaluator(
        folder,
        section=config.evaluation,
        identity=make_run_identity(config, run_id=wandb.run_id, folder=folder),
        record={**describe_run(config, folder, config.model.resolve()), "slurm_job_id": World.from_environment().slurm_job_id},
        upstream=make_upstream(config, folder),
        remote=make_remote_options(config.data),
    )
