"""Disturb a training: each fault acts on a launch, or on its files, and says what it did."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.run.checkpoint import RunFolder
from pipeline.run.records import read_json_lines
from tests.faults.launch import Launch, start


@dataclass
class Scene:
    """Holds one training under attack."""

    config: Path
    folder: RunFolder
    launch: Launch
    log: Path
    total_steps: int
    random: random.Random

    def step(self) -> int:
        """Return the last step that was logged."""
        try:
            return max((row["step"] for row in read_json_lines(self.folder.metrics)), default=0)
        except OSError:
            return 0

    def wait_for_step(self, step: int) -> None:
        """Wait until the step is logged, or the launch has ended."""
        while self.launch.poll() and self.step() < step:
            time.sleep(0.002)

    def num_lines(self) -> int:
        """Count the lines of the metrics file."""
        try:
            return len(read_json_lines(self.folder.metrics))
        except OSError:
            return 0

    def wait_for_more_than(self, num_lines: int) -> None:
        """Wait until this launch has logged a step itself, or ended: before that it still searches its run folder."""
        while self.launch.poll() and self.num_lines() <= num_lines:
            time.sleep(0.005)

    def wait_for_save(self) -> None:
        """Wait until a checkpoint is being written, or the launch has ended."""
        while self.launch.poll() and not list(self.folder.checkpoints.glob(".saving-*")):
            time.sleep(0.0005)

    def some_moment(self) -> None:
        """Wait a little."""
        time.sleep(self.random.uniform(0, 0.05))

    def some_rank(self) -> int:
        return self.random.randrange(len(self.launch.pids))


Fault = Callable[[Scene], str]


def kill_all(scene: Scene) -> str:
    scene.some_moment()
    scene.launch.signal(signal.SIGKILL)
    return "killed"


def kill_one(scene: Scene) -> str:
    scene.some_moment()
    scene.launch.signal(signal.SIGKILL, ranks=[scene.some_rank()])
    return "killed"


def kill_all_in_a_save(scene: Scene) -> str:
    scene.wait_for_save()
    return kill_all(scene)


def kill_one_in_a_save(scene: Scene) -> str:
    scene.wait_for_save()
    return kill_one(scene)


def tell_one_to_stop(scene: Scene) -> str:
    scene.launch.signal(scene.random.choice([signal.SIGUSR1, signal.SIGTERM]), ranks=[scene.some_rank()])
    scene.launch.wait()
    return "saved and ended"


def flip_a_bit(scene: Scene) -> str:
    return _damage(scene, _flip)


def truncate_a_file(scene: Scene) -> str:
    return _damage(scene, lambda path, chance: os.truncate(path, chance.randrange(path.stat().st_size)))


def delete_a_file(scene: Scene) -> str:
    return _damage(scene, lambda path, _: path.unlink())


def _flip(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(bytes(data))


def _damage(scene: Scene, act: Callable[[Path, random.Random], None]) -> str:
    """Damage a file of the newest checkpoint, where an older one is left, after all ranks were killed."""
    while scene.launch.poll() and len(scene.folder.checkpoint_steps()) < 2:
        time.sleep(0.002)
    kill_all(scene)
    scene.launch.wait()
    steps = scene.folder.checkpoint_steps()
    if len(steps) < 2:
        return "killed; too few checkpoints to damage one"
    files = sorted(path for path in scene.folder.checkpoint_of(steps[-1]).iterdir() if path.stat().st_size)
    victim = scene.random.choice(files)
    act(victim, scene.random)
    return f"killed, {victim.name} of step {steps[-1]} damaged"


def pause_one(scene: Scene) -> str:
    rank = [scene.some_rank()]
    scene.launch.signal(signal.SIGSTOP, ranks=rank)
    time.sleep(1.0)
    scene.launch.signal(signal.SIGCONT, ranks=rank)
    return "went on"


def second_training(scene: Scene) -> str:
    """Start a second training on the same folder by mistake."""
    second = start(scene.config, log=scene.log.with_suffix(".second"))
    second.wait()
    refused = "is being trained by" in second.log.read_text()
    if not scene.launch.poll():
        return "the first had ended"
    assert refused, second.log.read_text()
    assert set(second.codes.values()) == {2}, second.codes
    second.log.unlink()
    return "refused; the first went on"


def fill_disk(scene: Scene) -> str:
    """Fill the disk until a save has failed."""
    ballast = scene.folder.root.parent / "ballast"
    with ballast.open("wb") as file:
        try:
            while file.write(bytes(1 << 16)):
                file.flush()
        except OSError:
            pass
        try:
            file.close()
        except OSError:
            pass
    said = _wait_for_failed_save(scene)
    ballast.unlink()
    return said


def make_read_only(scene: Scene) -> str:
    """Make the disk read-only until a save has failed."""
    mount_point = str(scene.config.parent)  # where the disk is mounted
    while subprocess.run(["mount", "-o", "remount,ro", mount_point], capture_output=True, check=False).returncode != 0:
        if not scene.launch.poll():
            return "had ended"
        time.sleep(0.001)  # a file is open for writing just now
    said = _wait_for_failed_save(scene)
    subprocess.run(["mount", "-o", "remount,rw", mount_point], check=True)
    return said


def take_folder_away(scene: Scene) -> str:
    """Take the folder away until a save has failed."""
    away = scene.folder.root.with_name("away")
    scene.folder.root.rename(away)
    said = _wait_for_failed_save(scene)
    assert not scene.folder.root.exists(), "a run folder was created where the old one was missing"
    away.rename(scene.folder.root)
    return said


def _wait_for_failed_save(scene: Scene) -> str:
    before = scene.log.read_text().count("could not be saved")
    end = time.monotonic() + 60
    while scene.launch.poll() and scene.log.read_text().count("could not be saved") == before and time.monotonic() < end:
        time.sleep(0.01)
    if scene.launch.poll():
        return "a save failed, training went on"
    return f"ended with {sorted(set(scene.launch.codes.values()))}"


FAULTS: dict[str, Fault] = {
    "all ranks killed": kill_all,
    "one rank killed": kill_one,
    "all killed inside a save": kill_all_in_a_save,
    "one killed inside a save": kill_one_in_a_save,
    "asked to stop": tell_one_to_stop,
    "a bit flipped in the newest checkpoint": flip_a_bit,
    "a file of it truncated": truncate_a_file,
    "a file of it deleted": delete_a_file,
    "one rank suspended for a second": pause_one,
    "a second training on the folder": second_training,
    "disk full until a save fails": fill_disk,
    "disk read-only until a save fails": make_read_only,
    "folder missing until a save fails": take_folder_away,
}
NEED_MOUNT = ("disk full until a save fails", "disk read-only until a save fails")


def mount_small_disk(mount_point: Path, *, size: str) -> bool:
    """Mount a tmpfs of this size. Return whether this user may."""
    mount_point.mkdir(parents=True, exist_ok=True)
    if shutil.which("mount") is None:
        return False
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(mount_point)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
