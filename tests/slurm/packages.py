"""Find Debian's Slurm on this machine, or install it where that is possible."""

from __future__ import annotations

import os
import shutil
import subprocess

PACKAGES = ("slurmctld", "slurmd", "munge", "slurm-client", "faketime")
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol", "squeue", "unshare", "setpriv", "faketime")
INSTALL_TIMEOUT_S = 120
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class SlurmUnavailableError(Exception):
    """Slurm cannot run here; the message says why."""


def ensure_slurm() -> None:
    """Install the Debian packages where programs are missing (about 15 s, as root).

    Raises:
        SlurmUnavailableError: not installed and not installable, or no right to make namespaces.
    """
    if os.geteuid() != 0:
        raise SlurmUnavailableError("a node is a mount, host-name and process namespace, which only root may make; run as root")
    if missing := _missing():
        _install(missing)
    if missing := _missing():
        raise SlurmUnavailableError(f"{', '.join(missing)} not found, though {', '.join(PACKAGES)} are installed")
    probe = _run("unshare", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "true")
    if probe.returncode:
        raise SlurmUnavailableError(
            f"namespaces are not allowed here (a container without privileges?): {probe.stderr.strip()}"
        )


def _missing() -> list[str]:
    return [program for program in PROGRAMS if shutil.which(program, path=SEARCH_PATH) is None]


def _install(missing: list[str]) -> None:
    if shutil.which("apt-get") is None:
        raise SlurmUnavailableError(f"{', '.join(missing)} missing, and there is no apt-get to install them with")
    for command in (("update", "-q"), ("install", "-q", "--yes", "--no-install-recommends", *PACKAGES)):
        try:
            result = _run("apt-get", *command, timeout_s=INSTALL_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise SlurmUnavailableError(f"{', '.join(missing)} missing, and apt-get {command[0]} does not end") from error
        if result.returncode:
            last = (result.stderr or result.stdout).strip().splitlines()[-1:]
            raise SlurmUnavailableError(f"{', '.join(missing)} missing, and apt-get {command[0]} failed: {' '.join(last)}")


def _run(*command: str, timeout_s: float = 30) -> subprocess.CompletedProcess[str]:
    # Started services would read a global configuration, which does not exist: RUNLEVEL=1 keeps the packages from starting
    # them.
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    return subprocess.run(command, env=env, text=True, capture_output=True, timeout=timeout_s)
