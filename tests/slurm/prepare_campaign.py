"""Disturb the preparation of a corpus on a Slurm cluster with random faults, and compare what it makes with one machine's.

    python -m tests.slurm.prepare_campaign --faults 20 [--seed 0]

A corpus is prepared by `slurm/prepare.sh` on four nodes, again and again, until there have been that many faults. Each result
must have the bytes of an undisturbed preparation by two processes. It prints a line a fault and a line a preparation; the exit
code is 1 if one of them differs.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.data.shards.index import load_index
from tests.conftest import REPOSITORY, encode, environment, make_image
from tests.slurm.cluster import Cluster, running_cluster
from tests.slurm.site import write_site

IMAGES, CLASSES, COPIES = 1500, 6, 40  # of them the last are copies of the first
NODES = 3  # of workers; the fourth node leads
OPTIONS = ("--samples-per-shard", "12", "--split", "0.1", "--within", "--seed", "5")
PAUSE_S = (3.0, 14.0)  # between two faults
OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
SETTLED = 5  # looks in a row
REST_S = 3.0  # of a requeued job: within a second Slurm would start it with the credential that it has just revoked
LONGEST_S = 900.0  # of a preparation


def write_photos(folder: Path, *, count: int) -> Path:
    """Write class folders of pictures: some are copies of others, one is damaged, one is text."""
    for number in range(count):
        source = number % COPIES if number >= count - COPIES else number
        place = folder / f"class{number % CLASSES}"
        place.mkdir(parents=True, exist_ok=True)
        data = encode(make_image(source, num_classes=CLASSES, size=64), format="JPEG")
        (place / f"{number:05d}.jpg").write_bytes(data if number != 7 else data[:300])
    (folder / "class0" / "notes.txt").write_text("no image")
    return folder


def contents(folder: Path) -> dict[str, object]:
    """Return everything that a preparation leaves, by name, but for locks and findings of single shards."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            is_index = path.name == "index.safetensors"  # the library writes its header in an order of its own each time
            found[str(name)] = load_index(str(path.parent)).fingerprint if is_index else path.read_bytes()
    return found


@dataclass
class Scene:
    """Holds one preparation that runs, and disturbs it."""

    cluster: Cluster
    root: Path
    chance: random.Random
    job: str = ""
    rested: dict[str, float] = field(default_factory=dict)  # requeued jobs: since when they rest
    dark: dict[str, float] = field(default_factory=dict)  # nodes that are off or drained: when they come back

    def submit(self, source: Path, folder: Path) -> None:
        """Submit `slurm/prepare.sh`."""
        options = [*OPTIONS, "--nodes", str(NODES), "--cores", "1", "--time", "60", "--cluster-folder", str(self.root)]
        self.job = self.cluster.run(
            "sbatch", "--parsable", f"--output={self.root}/%j.log", "slurm/prepare.sh", str(source), str(folder), *options,
            SITE_ENV=str(self.root / "site.env"), **environment(),
        ).strip()  # fmt: skip

    def state(self) -> str:
        """Return the leading job's state, or an empty text where the controller does not answer."""
        try:
            return self.cluster.run("squeue", "--noheader", f"--jobs={self.job}", "--states=all", "--format=%T").strip()
        except RuntimeError:
            return ""

    def tend(self) -> None:
        """Switch nodes on again whose time has come, and let requeued jobs start without their rest of two minutes."""
        for name, until in list(self.dark.items()):
            if time.monotonic() > until:
                del self.dark[name]
                if not self.cluster.is_on(name):
                    self.cluster.start_node(name)
                else:
                    self._try("scontrol", "update", f"nodename={name}", "state=resume")
        lines = self._try("squeue", "--noheader", "--array", "--states=PENDING", "--format=%i %r").splitlines()
        resting = {line.partition(" ")[0] for line in lines if "BeginTime" in line}
        self.rested = {job: self.rested.get(job, time.monotonic()) for job in resting}
        for job, since in self.rested.items():
            if time.monotonic() - since > REST_S:
                self._try("scontrol", "update", f"jobid={job}", "StartTime=now")

    def disturb(self) -> str:
        """Do one fault at random, and return what it was."""
        kinds: list[Callable[[], str | None]] = [
            self._kill_worker, self._cancel_worker, self._requeue_worker, self._cut_power, self._drain, self._kill_leader,
            self._requeue_leader, self._preempt, self._limit_worker, self._limit_leader,
        ]  # fmt: skip
        while True:
            if did := self.chance.choice(kinds)():
                return did

    def _try(self, *command: str) -> str:
        try:
            return self.cluster.run(*command)
        except RuntimeError:
            return ""

    def _processes(self, *words: str) -> list[int]:
        """Return processes of this scene whose command line has all these words."""
        found: list[int] = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                is_mine = str(self.root).encode() in (path / "environ").read_bytes()
            except OSError:
                continue
            if is_mine and all(word in line for word in words) and " srun " not in f" {line}":
                found.append(int(path.name))
        return found

    def _workers(self) -> list[str]:
        lines = self._try("squeue", "--noheader", "--array", "--states=RUNNING", "--name=data-tools-workers", "--format=%i")
        return lines.split()

    def _kill(self, pids: list[int], what: str) -> str | None:
        if not pids:
            return None
        os.kill(self.chance.choice(pids), signal.SIGKILL)
        return what

    def _kill_worker(self) -> str | None:
        return self._kill(self._processes("multiprocessing.spawn"), "a worker process killed")

    def _cancel_worker(self) -> str | None:
        if not (workers := self._workers()):
            return None
        self._try("scancel", self.chance.choice(workers))
        return "a worker job cancelled"

    def _requeue_worker(self) -> str | None:
        if not (workers := self._workers()):
            return None
        self._try("scontrol", "requeue", self.chance.choice(workers))
        return "a worker job requeued"

    def _cut_power(self) -> str | None:
        nodes = [name for name in self.cluster.nodes if name not in self.dark]
        if len(nodes) < len(self.cluster.nodes):  # one at a time
            return None
        name = self.chance.choice(nodes)
        self.cluster.kill_node(name)
        self.dark[name] = time.monotonic() + 12.0
        return f"power of {name} cut for 12 s"

    def _drain(self) -> str | None:
        if self.dark:
            return None
        name = self.chance.choice(self.cluster.nodes)
        self._try("scontrol", "update", f"nodename={name}", "state=drain", "reason=fault")
        self.dark[name] = time.monotonic() + 10.0
        return f"{name} drained for 10 s"

    def _kill_leader(self) -> str | None:
        return self._kill(self._processes("data_tools", "prepare", "--cluster"), "the command killed")

    def _requeue_leader(self) -> str | None:
        if self.state() != "RUNNING":
            return None
        self._try("scontrol", "requeue", self.job)
        return "the leading job requeued"

    def _limit_worker(self) -> str | None:
        if not (workers := self._workers()):
            return None
        self._try("scancel", "--batch", "--signal=USR1", self.chance.choice(workers))
        return "a worker job told of its time limit"

    def _limit_leader(self) -> str | None:
        if self.state() != "RUNNING":
            return None
        self._try("scancel", "--batch", "--signal=USR1", self.job)
        return "the leading job told of its time limit"

    def _preempt(self) -> str | None:
        if self.dark or self.state() != "RUNNING":
            return None
        shape = (f"--nodes={len(self.cluster.nodes)}", "--exclusive", "--partition=urgent", "--output=/dev/null")
        self._try("sbatch", *shape, "--wrap=sleep 1")
        return "all preempted by an urgent job"


def is_over(states: list[str]) -> bool:
    """Return whether a job has ended for good. One that requeues itself is FAILED for a moment."""
    return len(states) > SETTLED and set(states) <= OVER


def campaign(
    cluster: Cluster,
    root: Path,
    *,
    num_faults: int,
    seed: int = 0,
    num_images: int = IMAGES,
    say: Callable[[str], None] = print,
) -> list[str]:
    """Run it. Return what went wrong.

    Args:
        root: an empty folder.
        num_faults: 0 prepares the corpus once, undisturbed.
    """
    write_site(root, DATA="none", RETRIES="50")
    source, folder, reference = write_photos(root / "photos", count=num_images), root / "corpus", root / "reference"
    command = [sys.executable, "-m", "data_tools", "prepare", str(source), str(folder), *OPTIONS, "--workers", "2"]
    begin = time.monotonic()
    subprocess.run(command, cwd=REPOSITORY, env=environment(), check=True, capture_output=True)
    folder.rename(reference)
    say(f"one machine, two processes: {time.monotonic() - begin:.0f} s")
    expected = contents(reference)
    chance, problems, done = random.Random(seed), list[str](), 0
    while not problems:
        scene, before = Scene(cluster, root, chance), done
        scene.submit(source, folder)
        states: list[str] = []
        begin, pause = time.monotonic(), time.monotonic() + chance.uniform(*PAUSE_S)
        while not is_over(states := [*states[-SETTLED:], scene.state()]):
            if time.monotonic() - begin > LONGEST_S:
                problems.append(f"not over after {LONGEST_S:.0f} s, in state {states[-1]}")
                break
            if done < num_faults and time.monotonic() > pause:
                say(f"    {time.monotonic() - begin:5.0f} s  {scene.disturb()}")
                done, pause = done + 1, time.monotonic() + chance.uniform(*PAUSE_S)
            scene.tend()
            time.sleep(0.5)
        found = contents(folder)
        if states[-1] != "COMPLETED":
            problems.append(f"the job ended as {states[-1]}: {(root / f'{scene.job}.log').read_text()[-3000:]}")
        elif differing := sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)):
            problems.append(f"{len(differing)} of {len(expected)} files differ: {', '.join(differing[:5])}")
        say(f"{time.monotonic() - begin:.0f} s with {done - before} faults: {problems[-1] if problems else 'the same bytes'}")
        shutil.rmtree(folder, ignore_errors=True)
        if done >= num_faults:
            break
    for name in scene.dark:
        if not cluster.is_on(name):
            cluster.start_node(name)
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="prepare-") as folder, running_cluster(num_nodes=NODES + 1) as cluster:
        problems = campaign(cluster, Path(folder), num_faults=arguments.faults, seed=arguments.seed)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
