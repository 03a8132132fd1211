"""Compare the devices that this process was given with those that it would use. No difference passes without a message.

The environment says what was allotted (Slurm, CUDA_VISIBLE_DEVICES, a container's NVIDIA_VISIBLE_DEVICES). The machine's device
files say what exists, torch what it sees, and the ranks what is used. A difference is refused with its likely cause, unless a
setting (`hardware=found`) says that it is intended: a reservation must not idle, and a CPU must not do a GPU's work. Where no
scheduler has set GPUs aside, an empty CUDA_VISIBLE_DEVICES says so as well.
"""

from __future__ import annotations

import ctypes
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.launch.ranks import Launcher
from pipeline.launch.slurm_lists import expand_nodes
from pipeline.launch.slurm_step import is_in_step

Environment = Mapping[str, str]
VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
NO_DEVICES = {"", "-1", "none", "void", "nodevfiles", "no_dev_files"}


@dataclass(frozen=True)
class Gpus:
    """Describes the GPUs that a source assigns to this process. None means that it gives no number."""

    count: int | None
    source: str  # for messages: the variable and its value


@dataclass(frozen=True)
class Torch:
    """Describes what torch sees."""

    num_gpus: int
    is_cuda_build: bool
    version: str
    has_driver_library: bool
    problem: str | None = None  # the error of CUDA's initialisation

    @staticmethod
    def look() -> Torch:
        import warnings

        import torch

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            count = torch.cuda.device_count()
            is_available = torch.cuda.is_available()
        said = next((str(warning.message).splitlines()[0] for warning in caught if "CUDA" in str(warning.message)), None)
        return Torch(
            num_gpus=count if is_available else 0,
            is_cuda_build=torch.version.cuda is not None or torch.version.hip is not None,
            version=torch.__version__,
            has_driver_library=_has_library("libcuda.so.1"),
            problem=said,
        )


# ---------------------------------------------------------------------------------------------------- what was allotted


def gpus_visible(environment: Environment, *, devices: Path = Path("/dev")) -> Gpus | None:
    """Return the GPUs that this process should see; None where nothing says that there are any."""
    shown = next((name for name in VISIBLE if name in environment), None)
    if shown is not None:
        return None if _hides(environment[shown]) else Gpus(_count_list(environment[shown]), f"{shown}={environment[shown]}")
    if (allotted := gpus_allotted(environment)) is not None:
        return allotted
    value = environment.get("NVIDIA_VISIBLE_DEVICES", "")
    if not _hides(value) and value.strip().lower() != "all":  # images have `all` built in, on machines without any GPU too
        return Gpus(_count_list(value), f"NVIDIA_VISIBLE_DEVICES={value}")
    files = [path for path in devices.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)]
    return Gpus(None, f"{devices}/{files[0].name}") if files else None  # some may be closed to this process


def gpus_allotted(environment: Environment) -> Gpus | None:
    """Return the GPUs of this node that Slurm has set aside for this step, or else for this job."""
    for name in ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS"):
        if not _hides(environment.get(name, "")):
            return Gpus(_count_list(environment[name]), f"{name}={environment[name]}")
    for name in ("SLURM_GPUS_ON_NODE", "SLURM_GPUS_PER_NODE"):
        if (count := _count_of_types(environment.get(name, ""))) > 0:
            return Gpus(count, f"{name}={environment[name]}")
    for name in ("SLURM_GPUS", "SLURM_GPUS_PER_TASK"):
        if _count_of_types(environment.get(name, "")) > 0:
            return Gpus(None, f"{name}={environment[name]}")
    return None


def nodes_allotted(environment: Environment) -> tuple[int, str] | None:
    """Return how many nodes a scheduler has set aside for this step, or else for this job, and which variable says so."""
    if environment.get("SLURM_JOB_ID"):
        of_step = ("SLURM_STEP_NUM_NODES",) if is_in_step(environment) else ()
        for name in (*of_step, "SLURM_JOB_NUM_NODES", "SLURM_NNODES"):
            if environment.get(name, "").isdigit():
                return int(environment[name]), f"{name}={environment[name]}"
        if listing := environment.get("SLURM_JOB_NODELIST"):
            return len(expand_nodes(listing)), f"SLURM_JOB_NODELIST={listing}"
    if path := environment.get("PBS_NODEFILE"):
        try:
            return len(set(Path(path).read_text().split())), f"PBS_NODEFILE={path}"
        except OSError:
            return None
    if hosts := environment.get("LSB_MCPU_HOSTS"):
        return len(set(hosts.split()[::2])), f"LSB_MCPU_HOSTS={hosts}"
    return None


# --------------------------------------------------------------------------------------------- compared with what is used


def check_visible(environment: Environment, torch: Torch, *, setting: str) -> None:
    """Refuse to run where torch sees fewer GPUs than this process was given.

    Args:
        setting: the setting that says that it is intended, for the message.

    Raises:
        ConfigError: with the likely cause.
    """
    given = gpus_visible(environment)
    if given is None or torch.num_gpus >= (given.count or 1):
        return
    sees = f"{torch.num_gpus} of them" if torch.num_gpus else "none"
    cause = likely_cause(environment, torch)
    raise ConfigError(
        f"{_there_are(given)}, but torch sees {sees}: {cause}. If this is intended: {setting}"
        f"{'' if torch.num_gpus else ', and it computes on the CPU'}"
    )


def check_hidden(environment: Environment, *, setting: str) -> None:
    """Refuse to train where a scheduler has set GPUs aside that CUDA_VISIBLE_DEVICES hides.

    Raises:
        ConfigError: with the likely cause.
    """
    given = gpus_allotted(environment)
    hiding = next((name for name in VISIBLE if name in environment and _hides(environment[name])), None)
    if given is None or hiding is None:
        return
    why = "is empty: exported by a shell or a script" if not environment[hiding].strip() else "says that this step has none"
    raise ConfigError(
        f"{_there_are(given)}, but {hiding}={environment[hiding]} {why}. Unset it, or start with srun --gpus-per-node=...; if "
        f"this is intended: {setting}, and it computes on the CPU"
    )


def likely_cause(environment: Environment, torch: Torch, *, root: Path = Path("/")) -> str:
    """Return why torch probably sees fewer GPUs than exist."""
    if torch.num_gpus:
        return "a number in the list that this machine does not have, or a GPU that has failed; compare with nvidia-smi"
    if not torch.is_cuda_build:
        return f"this is a build of torch without CUDA ({torch.version}); install one with CUDA (pytorch.org, Get started)"
    has_files = any(root.glob("dev/nvidia[0-9]*")) or (root / "dev/kfd").exists()
    if is_container(environment, root=root) and not (has_files and torch.has_driver_library):
        return (
            "the container was started without GPUs (apptainer exec --nv, docker run --gpus all; SITE_CONTAINER in "
            "slurm/site.env)"
        )
    if not has_files:
        return "this machine has no device files of GPUs (/dev/nvidia0): no GPU, no driver loaded, or the scheduler hides them"
    if not torch.has_driver_library or not (root / "proc/driver/nvidia/version").exists():
        return "the NVIDIA driver is not loaded, or its library libcuda.so.1 is not installed (nvidia-smi says more)"
    shown = next((name for name in VISIBLE if name in environment), None)
    or_list = f", or {shown} names a GPU that this machine does not have" if shown else ""
    return f"CUDA does not start ({torch.problem or 'most likely the driver is older than this torch needs'}{or_list})"


def is_container(environment: Environment, *, root: Path = Path("/")) -> bool:
    names = ("APPTAINER_CONTAINER", "SINGULARITY_CONTAINER", "KUBERNETES_SERVICE_HOST", "container")
    return any(name in environment for name in names) or any(
        (root / name).exists() for name in (".dockerenv", "run/.containerenv")
    )


def check_nodes(environment: Environment, *, num_nodes: int, launcher: Launcher, setting: str, host: str | None = None) -> None:
    """Refuse to train on fewer nodes than were set aside, or on a node that was not.

    Args:
        num_nodes: number of nodes with ranks.
        launcher: launcher of the ranks. srun itself says how much of the job a step takes.
        host: this machine's name.

    Raises:
        ConfigError: with how to start it.
    """
    if launcher == "slurm":
        return
    allotted = nodes_allotted(environment)
    if allotted is not None and allotted[0] > num_nodes:
        raise ConfigError(
            f"{allotted[0]} nodes are set aside ({allotted[1]}), but these ranks are on {num_nodes}: start them with srun, one "
            "task a GPU on every node (`srun python -m pipeline train ...`, or slurm/pretrain_l16.sh). If this is intended: "
            f"{setting}"
        )
    listing = environment.get("SLURM_JOB_NODELIST", "")
    here = (host or socket.gethostname()).partition(".")[0]
    # salloc's shell runs on the machine where it was called. Slurm marks its own processes by their step.
    is_shell = bool(environment.get("SLURM_JOB_ID")) and not any(
        environment.get(name) for name in ("SLURM_PROCID", "SLURM_STEP_ID", "SLURMD_NODENAME")
    )
    if is_shell and num_nodes == 1 and listing and here not in {name.partition(".")[0] for name in expand_nodes(listing)}:
        raise ConfigError(
            f"Slurm has set {listing} aside, but this is {here}, from where salloc was called: start the training there with "
            f"`srun python -m pipeline train ...`. If this is intended: {setting}"
        )


def check_ranks(environment: Environment, torch: Torch, *, local_size: int, launcher: Launcher, setting: str) -> None:
    """Refuse to leave GPUs idle that were set aside, or to have several ranks share one.

    Args:
        local_size: ranks on this machine.

    Raises:
        ConfigError: naming both numbers.
    """
    on_node = _count_of_types(environment.get("SLURM_GPUS_ON_NODE", ""))
    if launcher == "slurm" and on_node and torch.num_gpus:  # GPUs of the step, whichever of them a task sees
        given, num_gpus = Gpus(on_node, f"SLURM_GPUS_ON_NODE={environment['SLURM_GPUS_ON_NODE']}"), on_node
    else:
        given, num_gpus = gpus_visible(environment), torch.num_gpus
    if given is None or given.count is None or local_size == num_gpus:
        return
    if local_size > num_gpus:
        if launcher == "slurm" and on_node:
            raise ConfigError(
                f"{local_size} tasks on a node share {num_gpus} GPU{'s'[: num_gpus != 1]} ({given.source}): ask Slurm for one "
                f"a task, --gpus-per-node={local_size} --ntasks-per-node={local_size}. If this is intended: {setting}"
            )
        return
    more = {"slurm": f"--ntasks-per-node={num_gpus}", "torchrun": f"--nproc-per-node={num_gpus}"}
    raise ConfigError(
        f"{_there_are(given)}, but only {local_size} would be used: ask for "
        f"{more.get(launcher, f'trainer.devices={num_gpus}, or auto')}. If this is intended: {setting}"
    )


def check_enough(torch: Torch, *, local_size: int, launcher: Launcher) -> None:
    """Refuse more ranks on this machine than it has GPUs, where it has any.

    Raises:
        ConfigError: naming both numbers.
    """
    if launcher == "slurm" or torch.num_gpus in (0, *range(local_size, torch.num_gpus + 1)):
        return  # each of srun's tasks may see its own GPU alone: see `World.on_devices`
    asked = f"trainer.devices={local_size}" if launcher == "none" else f"{launcher} has started {local_size} ranks here"
    raise ConfigError(
        f"{asked}, but this machine has {torch.num_gpus} GPU{'s'[: torch.num_gpus != 1]}; use at most that many, or hide them "
        "to train on the CPU: CUDA_VISIBLE_DEVICES= python -m pipeline train ..."
    )


def remarks(environment: Environment, torch: Torch, *, local_size: int, asked: int | None, launcher: Launcher) -> list[str]:
    """Return remarks on what is not an error and yet worth a line.

    Args:
        asked: trainer.devices, if it is a number.
    """
    lines = []
    if asked is not None and launcher not in ("none", "local") and asked != local_size:
        lines.append(f"trainer.devices={asked} does not count: {launcher} has started {local_size} ranks on this machine")
    if torch.num_gpus > max(1, local_size):
        lines.append(f"{local_size} of the {torch.num_gpus} GPUs of this machine are used")
    tasks = environment.get("SLURM_NTASKS", "")
    if (
        launcher == "none"
        and torch.num_gpus == 0
        and not is_in_step(environment)
        and tasks.isdigit()
        and int(tasks) > local_size
    ):
        lines.append(f"Slurm has set {tasks} tasks aside (SLURM_NTASKS), this launch has {local_size}; srun starts one a task")
    of_step, of_job = environment.get("SLURM_STEP_NUM_NODES", ""), environment.get("SLURM_JOB_NUM_NODES", "")
    if is_in_step(environment) and of_step.isdigit() and of_job.isdigit() and int(of_step) < int(of_job):
        lines.append(f"this step takes {of_step} of the {of_job} nodes of its job")
    return lines


# -------------------------------------------------------------------------------------------------------------- helpers


def _there_are(given: Gpus) -> str:
    count = "GPUs are" if given.count is None else "1 GPU is" if given.count == 1 else f"{given.count} GPUs are"
    return f"{count} there for this process ({given.source})"


def _hides(value: str) -> bool:
    return value.strip().lower() in NO_DEVICES


def _count_list(text: str) -> int:
    """Count the entries of a list of GPUs, as `0,1`, `0-3` or `GPU-uuid,GPU-uuid`. A process uses one part of a GPU (MIG)."""
    count = 0
    for part in filter(None, (part.strip() for part in text.split(","))):
        if part.startswith("-"):
            break  # CUDA reads no further
        found = re.fullmatch(r"(\d+)-(\d+)", part)
        count += int(found.group(2)) - int(found.group(1)) + 1 if found else 1
    return min(count, 1) if "MIG-" in text else count


def _count_of_types(text: str) -> int:
    """Count the GPUs in Slurm's `8`, `h100:8` or `a100:2,v100:1`."""
    return sum(int(part.rpartition(":")[2]) for part in text.split(",") if part.rpartition(":")[2].strip().isdigit())


def _has_library(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True
