"""Send pictures of a run to W&B: what the model sees at first, and the figures of its checkpoints."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.monitor.loggers import RunIdentity
from pipeline.monitor.wandb_identity import Destination
from pipeline.monitor.wandb_process import STEP_KEY, open_run
from pipeline.monitor.wandb_writer import INIT_TIMEOUT_S
from pipeline.run.folder import RunFolder

_STEP_FOLDER = re.compile(r"step_(\d+)(\.average)?")
GROUP = "figures"


@dataclass(frozen=True)
class Picture:
    """Names a picture of a step: `figures/attention_distance`."""

    name: str
    step: int
    path: Path


def find_pictures(folder: RunFolder) -> list[Picture]:
    """Return the pictures that `figures` and `samples` have left in a run folder, by step and name.

    RUN_DIR/figures/step_00001000/*.png, and RUN_DIR/figures/samples.png of step 1.
    """
    found = [Picture(f"{GROUP}/samples", 1, path) for path in [folder.figures / "samples.png"] if path.is_file()]
    for place in sorted(folder.figures.glob("step_*")):
        if (match := _STEP_FOLDER.fullmatch(place.name)) is None:
            continue
        found += [
            Picture(f"{GROUP}/{path.stem}{'_average' if match[2] else ''}", int(match[1]), path)
            for path in sorted(place.glob("*.png"))
        ]
    return sorted(found, key=lambda picture: (picture.step, picture.name))


def send_pictures(identity: RunIdentity, destination: Destination, pictures: Sequence[Picture]) -> None:
    """Send pictures to a run that is at W&B already. A picture that is sent again is shown twice at its step.

    Raises:
        ConfigError: W&B cannot be reached, or refuses.
    """
    import wandb

    spec: dict[str, Any] = {
        "writer": "pictures",
        "name": identity.name,
        "run_id": identity.run_id,
        "folder": str(identity.folder),
        "project": destination.project,
        "entity": destination.entity,
        "config": {},
        "group": identity.name,
        "tags": None,
        "notes": None,
        "init_timeout_s": INIT_TIMEOUT_S,
        "pid": os.getpid(),
    }
    try:
        run = open_run(spec, mode="shared")
        run.define_metric(f"{GROUP}/*", step_metric=STEP_KEY, step_sync=True)
        for step in sorted({picture.step for picture in pictures}):
            images = {picture.name: wandb.Image(str(picture.path)) for picture in pictures if picture.step == step}
            run.log({STEP_KEY: step, **images})
        run.finish()
    except Exception as error:  # the client raises almost anything
        raise ConfigError(
            f"W&B has not taken the pictures: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        ) from error
