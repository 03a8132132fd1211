"""Run a campaign of faults: small trainings on two ranks are disturbed again and again, and compared at their end.

    python -m tests.faults --faults 100

Every training must resume after every fault, from a checkpoint that was whole, and end with the weights, losses and sample
digests of the undisturbed one, bit for bit. The campaign prints a table; the exit code is 1 if one did not.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import yaml
from tqdm import tqdm

from pipeline.run.checkpoint import RunFolder
from pipeline.run.records import read_metrics
from tests.faults import launch
from tests.faults.kinds import FAULTS, NEED_MOUNT, Scene, mount_small_disk

STEPS, SAVE_EVERY = 48, 4
FAULTS_A_TRAINING = 5
DISK_SIZE = "48M"


@dataclass(frozen=True)
class Outcome:
    """Holds what one fault did."""

    kind: str
    did: str
    hung: bool
    resumed_from: int | None  # None: the launch continued
    lost_steps: int


def write_config(folder: Path, corpus: Path, *, name: str) -> Path:
    """Write the configuration of a training of a second or two a dozen steps, with every source of randomness on."""
    values = {
        "name": name,
        "output_dir": str(folder / "runs"),
        "seed": 3,
        "model": {"name": "Ti/8", "image_size": 16, "num_classes": 4, "width": 64, "depth": 2, "num_heads": 2, "dropout": 0.1},
        "data": {"train": str(corpus), "num_workers": 0},
        "objective": {"name": "softmax"},
        "optimizer": {"learning_rate": 1e-3, "weight_decay": 0.05, "clip_norm": 1.0},
        "schedule": {"warmup": "2 steps"},
        "trainer": {"duration": f"{STEPS} steps", "global_batch_size": 16, "zero_stage": 2, "peak_tflops": 1.0},
        "checkpoint": {"every": f"{SAVE_EVERY} steps", "keep_last": 2, "max_failed_saves": 1000},
        "tracking": {"log_every": 1, "mode": "disabled"},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def disturb(config: Path, kinds: list[str], *, log: Path, chance: random.Random) -> list[Outcome]:
    """Run a training to its end, with these faults on the way."""
    folder = RunFolder(config.parent / "runs" / config.stem)
    log.touch()
    scene = Scene(config, folder, launch.start(config, log=log), log, STEPS, chance)
    outcomes: list[Outcome] = []
    lines_before = 0
    for kind in kinds:
        scene.wait_for_more_than(lines_before)
        at = scene.step() + chance.randrange(1, 2 + (STEPS - scene.step()) // FAULTS_A_TRAINING)
        scene.wait_for_step(min(at, STEPS - 1))
        reached = scene.step()
        did = FAULTS[kind](scene)
        if scene.launch.poll() and "killed" not in did:
            outcomes.append(Outcome(kind, did, hung=False, resumed_from=None, lost_steps=0))
            continue
        by_itself = scene.launch.wait()
        reached, lines_before = max(reached, scene.step()), scene.num_lines()
        scene.launch = launch.start(config, log=log)
        resumed = _wait_for_resume(scene)
        outcomes.append(Outcome(kind, did, hung=not by_itself, resumed_from=resumed, lost_steps=max(0, reached - resumed)))
    while True:  # a fault may have hit after the last step
        scene.launch.wait()
        if folder.complete.exists():
            return outcomes
        if set(scene.launch.codes.values()) - {0, 75}:
            raise RuntimeError(f"a launch did not resume: {scene.launch.codes}, see {log}\n{log.read_text()[-3000:]}")
        scene.launch = launch.start(config, log=log)


def _wait_for_resume(scene: Scene) -> int:
    """Return the step that a launch says it begins at."""
    before = _starts(scene.log)
    while scene.launch.poll() and len(_starts(scene.log)) == len(before):
        time.sleep(0.01)
    starts = _starts(scene.log)
    return starts[-1] if starts else 0


def _starts(log: Path) -> list[int]:
    found = []
    for line in log.read_text().splitlines():
        if line.startswith("[run] resuming from"):
            found.append(int(line.rpartition(": step ")[2].split()[0]))
        elif line.startswith("[run] new run in"):
            found.append(0)
    return found


def difference(folder: RunFolder, reference: RunFolder) -> str:
    """Return how two finished runs differ; empty if they do not."""
    ours, theirs = (safetensors.torch.load_file(f.weights_of(STEPS)) for f in (folder, reference))
    unequal = [name for name in theirs if not torch.equal(ours[name], theirs[name])]
    rows, expected = read_metrics(folder.metrics), read_metrics(reference.metrics)
    keys = ("step", "train/loss", "train/gradient_norm", "data/digest", "images_seen")
    wrong = [key for key in keys if [row[key] for row in rows] != [row[key] for row in expected]]
    return ", ".join([*unequal[:3], *wrong])


def tabulate(outcomes: list[Outcome], *, num_trainings: int, differing: list[str], left_out: list[str]) -> str:
    """Return one line a kind of fault."""
    lines = ["| fault | times | launches ended | resumed | steps lost (median, most) | hung |", "|---|---|---|---|---|---|"]
    for kind in FAULTS:
        mine = [outcome for outcome in outcomes if outcome.kind == kind]
        if not mine:
            continue
        ended = [outcome for outcome in mine if outcome.resumed_from is not None]
        lost = [outcome.lost_steps for outcome in ended]
        shown = f"{statistics.median(lost):g}, {max(lost)}" if lost else ""
        lines.append(f"| {kind} | {len(mine)} | {len(ended)} | {len(ended)} | {shown} | {sum(o.hung for o in mine)} |")
    same = num_trainings - len(differing)
    lines += [
        "",
        f"{len(outcomes)} faults, {num_trainings} trainings of {STEPS} steps on 2 ranks, a checkpoint every {SAVE_EVERY}: "
        f"{same} ended bit for bit as the undisturbed one",
    ]
    lines += [f"not run, for want of the right to mount a disk: {', '.join(left_out)}"] if left_out else []
    return "\n".join([*lines, *differing])


def prepare(folder: Path) -> Path:
    """Write a corpus of images that can be learnt."""
    from data_tools.index import index_folder
    from data_tools.parallel import LocalWorkers
    from tests.conftest import encode, make_image, write_tar

    members: list[tuple[str, bytes]] = []
    for number in range(203):
        image = encode(make_image(number, num_classes=4, size=24), format="JPEG")
        members += [(f"{number:03d}.jpg", image), (f"{number:03d}.cls", str(number % 4).encode())]
    (folder / "corpus").mkdir()
    write_tar(folder / "corpus" / "000.tar", members)
    index_folder(str(folder / "corpus"), block_samples=8, workers=LocalWorkers(1))
    return folder / "corpus"


def run_campaign(folder: Path, *, num_faults: int, seed: int) -> int:
    """Attack trainings until there were so many faults. Return 0 if all ended as they should."""
    chance = random.Random(seed)
    corpus = prepare(folder)
    reference = write_config(folder, corpus, name="reference")
    calm = launch.start(reference, log=folder / "reference.log")
    calm.wait()
    if set(calm.codes.values()) != {0}:
        raise RuntimeError((folder / "reference.log").read_text())
    can_mount = mount_small_disk(folder / "disk", size=DISK_SIZE)
    kinds = [kind for kind in FAULTS if can_mount or kind not in NEED_MOUNT]
    schedule: list[str] = []
    while len(schedule) < num_faults:
        schedule += chance.sample(kinds, len(kinds))
    schedule = schedule[:num_faults]
    groups = [schedule[i : i + FAULTS_A_TRAINING] for i in range(0, num_faults, FAULTS_A_TRAINING)]
    outcomes: list[Outcome] = []
    differing: list[str] = []
    try:
        for number, group in enumerate(tqdm(groups, desc="trainings", unit="training")):
            name = f"training-{number:03d}"
            disk = folder / "disk"
            config = write_config(disk, corpus, name=name)
            # The log is elsewhere: a file open for writing keeps a disk from becoming read-only.
            outcomes += disturb(config, group, log=folder / f"{name}.log", chance=chance)
            differs = difference(RunFolder(disk / "runs" / name), RunFolder(folder / "runs" / "reference"))
            if differs:
                differing.append(f"{name} DIFFERS in {differs}: {', '.join(group)}")
            subprocess.run(["rm", "-rf", str(disk / "runs" / name)], check=True)
    finally:
        if can_mount:
            subprocess.run(["umount", "--lazy", str(folder / "disk")], check=False)
    left_out = [kind for kind in FAULTS if kind not in kinds]
    print(tabulate(outcomes, num_trainings=len(groups), differing=differing, left_out=left_out))
    return 1 if differing or any(outcome.hung for outcome in outcomes) else 0


def load_libraries() -> None:
    """Load libraries once, before the first fork."""
    import deepspeed  # noqa: F401
    import lightning.pytorch  # noqa: F401

    import pipeline.build.training  # noqa: F401

    torch.set_num_threads(1)
    tqdm.monitor_interval = 0  # its thread does not belong into a process that forks


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faults", type=int, default=100, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    arguments = parser.parse_args(argv)
    settings: dict[str, Any] = {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled", "CUDA_VISIBLE_DEVICES": ""}
    os.environ.update(settings)
    load_libraries()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        return run_campaign(Path(folder), num_faults=arguments.faults, seed=arguments.seed)


if __name__ == "__main__":
    sys.exit(main())
