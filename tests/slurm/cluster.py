"""Run a real Slurm cluster of several nodes on this machine, for tests and for trials: `python -m tests.slurm.cluster`.

Each node is a slurmd in mount, host-name and process namespaces of its own. So killing the namespace's first process is to
Slurm what pulling a node's power cord is. Nothing outside the cluster's folder is read or written, several clusters may run at
once, and all of it dies with the process that started it.
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.slurm.configuration import NODE, SLURM_CONF
from tests.slurm.packages import SEARCH_PATH, SlurmUnavailableError, ensure_slurm

REPOSITORY = Path(__file__).parent.parent.parent
CPUS, MEMORY_MIB, GPUS = 128, 1_000_000, 8  # of a node, as declared: none of them need exist
KILL_WAIT_S = 10  # from SIGTERM to SIGKILL when Slurm ends a job
NODE_TIMEOUT_S = 6  # a node that has not answered for so long is down (sites have 300)
GRACE_TIME_S = 60  # time of a preempted job of the partition `gpu` to save
START_TIMEOUT_S = 60


@dataclass
class Cluster:
    """Runs a cluster in a folder. Its path must be short: sockets in it have at most 107 bytes.

    Args:
        root: an empty folder.
        num_nodes: they are called n1, n2, ...
    """

    root: Path
    num_nodes: int = 4
    start_s: float = 0.0  # from the first process to the last node's readiness
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def nodes(self) -> list[str]:
        return [f"n{number + 1}" for number in range(self.num_nodes)]

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment that makes Slurm's commands talk to this cluster."""
        # Variables of a job that this process may itself run in would be taken for options.
        env = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
        return {**env, "SLURM_CONF": str(self.root / "slurm.conf"), "PATH": f"{os.environ.get('PATH', '')}:{SEARCH_PATH}"}

    def start(self) -> None:
        """Write the configuration, start everything and wait until every node is idle.

        Raises:
            TimeoutError: a node is not ready; the message has the nodes' state and the ends of the logs.
        """
        begin = time.monotonic()
        self._write_configuration()
        munged = ["munged", "--foreground", "--force", f"--key-file={self.root}/munge.key",
                  f"--socket={self.root}/munge.socket",
                  f"--pid-file={self.root}/munged.pid", f"--log-file={self.root}/log/munged.log",
                  f"--seed-file={self.root}/munge.seed"]  # fmt: skip
        self._spawn("munged", munged)
        self._wait((self.root / "munge.socket").exists, "munged")
        self._spawn("slurmctld", ["slurmctld", "-D", "-c", "-f", f"{self.root}/slurm.conf"])
        for name in self.nodes:
            self.start_node(name)
        self.wait_until_idle()
        self.start_s = time.monotonic() - begin

    def stop(self) -> None:
        """Cut every node's power, then end the controller. The logs stay."""
        for name in reversed(list(self._processes)):
            process = self._processes.pop(name)
            process.kill()
            process.wait()

    def start_node(self, name: str) -> None:
        """Switch a node on."""
        # A node knows its peers by name, and its own /proc, so that its slurmd sees no other node's processes.
        inside = (
            f"hostname {name} && mount --bind {self.root}/hosts /etc/hosts && exec slurmd -D -f "
            f"{self.root}/slurm.conf -N {name}"
        )
        self._spawn(
            name,
            [
                "unshare",
                "--mount",
                "--propagation",
                "private",
                "--uts",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "bash",
                "-c",
                inside,
            ],
        )

    def is_on(self, name: str) -> bool:
        return name in self._processes

    def kill_node(self, name: str) -> None:
        """Pull a node's power cord: everything on it is gone at once, without a message."""
        process = self._processes.pop(name)
        process.kill()  # --kill-child: the first process of the node's process namespace goes with it, and so all others
        process.wait()

    def run(self, *command: str, timeout_s: float = 60, **extra: str) -> str:
        """Return the output of one of Slurm's commands.

        Raises:
            RuntimeError: the command failed; the message has its output.
        """
        result = subprocess.run(
            command, env={**self.environment, **extra}, cwd=REPOSITORY, text=True, capture_output=True, timeout=timeout_s
        )
        if result.returncode:
            said = f"{result.stderr.strip()}\n{result.stdout.strip()}".strip()
            raise RuntimeError(f"{' '.join(command)}: exit code {result.returncode}: {said}")
        return result.stdout

    def wait_until_idle(self) -> None:
        """Wait until every node is up and free."""
        self._wait(lambda: set(self.run("sinfo", "--Node", "--noheader", "--format=%t").split()) == {"idle"}, "the nodes")

    def clear(self) -> None:
        """Cancel every job and switch dead nodes on again."""
        self.run("scancel", "--user=root")
        self._wait(lambda: not self.run("squeue", "--noheader"), "cancelled jobs")
        for name in self.nodes:
            if name not in self._processes:
                self.start_node(name)
        self.wait_until_idle()

    def log_ends(self, num_lines: int = 30) -> str:
        """Return the last lines of every daemon's log."""
        parts = []
        for path in sorted((self.root / "log").iterdir()):
            lines = path.read_text(errors="replace").splitlines()[-num_lines:]
            parts += [f"--- {path.name}", *lines] if lines else []
        return "\n".join(parts)

    def _write_configuration(self) -> None:
        for name in ("log", "state", "spool", "gpus"):
            (self.root / name).mkdir(parents=True)
        self.root.chmod(0o755)
        key = self.root / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        for number in range(GPUS):  # Slurm requires device files that exist; symbolic links to an existing one suffice
            (self.root / "gpus" / f"nvidia{number}").symlink_to("/dev/null")
        (self.root / "gres.conf").write_text(
            f"NodeName=n[1-{self.num_nodes}] Name=gpu Type=h100 File={self.root}/gpus/nvidia[0-{GPUS - 1}]\n"
        )
        (self.root / "hosts").write_text(
            "".join(f"127.0.0.1 {name}\n" for name in ("localhost", socket.gethostname(), *self.nodes))
        )
        port, *node_ports = _free_ports(1 + self.num_nodes)
        nodes = [
            NODE.format(name=name, port=p, cpus=CPUS, memory=MEMORY_MIB, gpus=GPUS)
            for name, p in zip(self.nodes, node_ports, strict=True)
        ]
        (self.root / "slurm.conf").write_text(
            # The rendezvous port comes from the job's number: two clusters on one machine must not both begin at 1.
            SLURM_CONF.format(
                root=self.root,
                port=port,
                nodes="\n".join(nodes),
                first_job=random.SystemRandom().randrange(1000, 60_000),
                kill_wait=KILL_WAIT_S,
                node_timeout=NODE_TIMEOUT_S,
                grace=GRACE_TIME_S,
            )
        )

    def _spawn(self, name: str, command: Sequence[str]) -> None:
        with (self.root / "log" / f"{name}.out").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                if condition():
                    return
                trouble = ""
            except RuntimeError as error:  # the controller does not listen yet
                trouble = str(error)
            if time.monotonic() > end:
                raise TimeoutError(f"{what}: not ready after {START_TIMEOUT_S} s; {trouble}\n{self.log_ends()}")
            time.sleep(0.05)


@contextmanager
def running_cluster(*, num_nodes: int) -> Iterator[Cluster]:
    """Run a cluster for the time of a `with`. Its folder is deleted at the end.

    Raises:
        SlurmUnavailableError: Slurm cannot run here.
    """
    ensure_slurm()
    root = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    cluster = Cluster(root, num_nodes=num_nodes)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(root, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


WELCOME = """\
A Slurm cluster of {num_nodes} nodes is up on this machine and ends with this shell. Its GPUs are declared only: training finds
no CUDA and computes on the CPU. For example:

    sinfo                                         # nodes; partitions gpu, scavenge (no grace time), urgent (preempts both)
    python -m tests.slurm.site /tmp/site          # a few images, a site file for them, and a script that submits
    /tmp/site/submit --job-name=try --nodes=2 --ntasks-per-node=1
    tail -F slurm/logs/try.log
    scancel --signal=USR1 JOB                     # what a time limit does: it saves and requeues
    scontrol update jobid=JOB StartTime=now       # a requeued job rests for two minutes; this one does not
    kill-node n2                                  # pull its power cord
    start-node n2                                 # switch it on again

Logs of the daemons: {root}/log
"""


SWITCH = """\
#!/bin/sh
# kill-node NAME, start-node NAME: asks the process that holds the cluster, and waits until it has done so.
[ -e "{root}/spool/$1" ] || {{ echo "name a node: $(basename "$0") n2" >&2; exit 2; }}
request="{root}/switches/$(basename "$0").$1"
touch "$request"
while [ -e "$request" ]; do sleep 0.1; done
"""


def _shell(cluster: Cluster) -> list[str]:
    """Return bash, in which the cluster's commands come first whatever ~/.bashrc makes of PATH."""
    rc = cluster.root / "bashrc"
    env = _inside(cluster)
    rc.write_text(
        "[ ! -r ~/.bashrc ] || . ~/.bashrc\n"
        f"export PATH={shlex.quote(env['PATH'])} SLURM_CONF={shlex.quote(env['SLURM_CONF'])}\nPS1='(slurm) '$PS1\n"
    )
    return ["bash", "--rcfile", str(rc), "-i"]


def _inside(cluster: Cluster) -> dict[str, str]:
    path = f"{cluster.root}/bin:{Path(sys.executable).parent}:{cluster.environment['PATH']}"
    return {**cluster.environment, "PATH": path}


def _run_with_switches(cluster: Cluster, command: list[str]) -> int:
    """Run a command in which `kill-node` and `start-node` work."""
    switches, folder = cluster.root / "switches", cluster.root / "bin"
    switches.mkdir()
    folder.mkdir()
    for name in ("kill-node", "start-node"):
        (folder / name).write_text(SWITCH.format(root=cluster.root))
        (folder / name).chmod(0o755)
    process = subprocess.Popen(command, env=_inside(cluster))
    while process.poll() is None:
        for request in switches.iterdir():
            what, node = request.name.split(".")
            if (what == "kill-node") == cluster.is_on(node):
                (cluster.kill_node if what == "kill-node" else cluster.start_node)(node)
            request.unlink()
        time.sleep(0.1)
    return process.returncode


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.slurm.cluster",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
        epilog="Needs root, for namespaces. Installs Debian's Slurm packages where they are missing.\n\nexamples:\n"
        "  python -m tests.slurm.cluster                      # a shell in which sbatch, squeue, sinfo work\n"
        "  python -m tests.slurm.cluster --nodes 2 sinfo -N   # one command, then the cluster ends",
    )
    parser.add_argument("--nodes", type=int, default=4, help="how many (default: 4)")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="to run instead of a shell")
    arguments = parser.parse_args(argv)
    try:
        with running_cluster(num_nodes=arguments.nodes) as cluster:
            if not arguments.command:
                print(WELCOME.format(num_nodes=arguments.nodes, root=cluster.root))
            signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is for what runs in the shell
            return _run_with_switches(cluster, arguments.command or _shell(cluster))
    except (SlurmUnavailableError, TimeoutError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
