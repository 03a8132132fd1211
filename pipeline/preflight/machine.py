"""Look at one machine: software, processor, memory, limits, GPUs. Nothing is computed."""

from __future__ import annotations

import importlib
import os
import platform
import resource
import subprocess
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import psutil
import torch

import pipeline
from pipeline.data.images.decode import HOW_TO_BUILD, has_region_decoder
from pipeline.distributed.hardware import processor_name
from pipeline.preflight.measure import Measure, wanted

GIB = 2**30
LIBRARIES = ("torch", "lightning", "deepspeed", "webdataset", "torchmetrics", "wandb")
LEAST_FILES, LEAST_PROCESSES = 4096, 4096
LEAST_SHARED_GIB, LEAST_LOCKED_GIB = 2.0, 1.0  # of a rank
LEAST_FILE_GIB = 20.0  # a checkpoint of H/14 on one GPU has files of 8 GiB, a shard has a few
HOT = 85  # degrees Celsius
SMI_FIELDS = {
    "driver": "driver_version",
    "GPU clock": "clocks.sm",
    "largest GPU clock": "clocks.max.sm",
    "GPU temperature": "temperature.gpu",
    "uncorrected memory errors": "ecc.errors.uncorrected.volatile.total",
    "GPU slowed down by": "clocks_event_reasons.active",
}
OLD_NAMES = {"clocks_event_reasons.active": "clocks_throttle_reasons.active"}  # of drivers before 535
PROBLEM = "problem: "
# Bits of NVML's nvmlClocksEventReasons that mean that the hardware holds a GPU back (nvml.h).
SLOWED_DOWN = {0x8: "hardware slowdown", 0x20: "temperature (software)", 0x40: "temperature", 0x80: "power brake"}


def examine_machine(*, ranks_here: int) -> Iterator[Measure]:
    """Yield what can be read on this machine.

    Args:
        ranks_here: ranks of the training on it.
    """
    yield from examine_software()
    yield from examine_processor()
    yield from examine_limits(ranks_here=ranks_here)
    if torch.cuda.is_available():
        yield from examine_gpus()


def examine_software() -> Iterator[Measure]:
    yield Measure("pipeline", pipeline.__version__, rule="same")
    yield Measure("Python", platform.python_version(), rule="same")
    for name in LIBRARIES:
        yield Measure(name, _version_of(name), rule="same")
    yield Measure(
        "JPEG decoder",
        "region" if has_region_decoder() else "whole",
        rule="same",
        advice=None if has_region_decoder() else f"decoding takes up to twice as long: {HOW_TO_BUILD}",
    )
    yield Measure("kernel", platform.release())


def _version_of(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"


def examine_processor() -> Iterator[Measure]:
    cores = len(os.sched_getaffinity(0))
    yield Measure("cores of a rank", cores, rule="none less")
    yield Measure("processor", f"{processor_name()} ({torch.backends.cpu.get_cpu_capability()})", rule="same")
    yield Measure("memory available", psutil.virtual_memory().available / GIB, "GiB")
    load = os.getloadavg()[0]
    advice = None if load < 0.5 * (os.cpu_count() or 1) else "other programs keep the processor busy: look at `top` there"
    yield Measure("load", load, advice=advice)


def examine_limits(*, ranks_here: int) -> Iterator[Measure]:
    yield from _examine_space(ranks_here=ranks_here)
    yield wanted(
        "open files",
        _limit(resource.RLIMIT_NOFILE),
        "",
        at_least=LEAST_FILES,
        rule="none less",
        advice=f"workers and shards need more than {LEAST_FILES}: ulimit -n 65536 (under Slurm in the job's script)",
    )
    yield wanted(
        "processes",
        _limit(resource.RLIMIT_NPROC),
        "",
        at_least=LEAST_PROCESSES,
        rule="none less",
        advice="ranks, workers and threads count against it: ulimit -u 65536, docker --pids-limit",
    )
    yield wanted(
        "size of a file at most",
        _limit(resource.RLIMIT_FSIZE) / GIB,
        "GiB",
        at_least=LEAST_FILE_GIB,
        severity="problem",
        advice="checkpoints and shards are larger: ulimit -f unlimited. Slurm gives jobs the limits of the shell that submits",
    )
    if torch.cuda.is_available():
        yield wanted(
            "memory that may be locked",
            _limit(resource.RLIMIT_MEMLOCK) / GIB,
            "GiB",
            at_least=LEAST_LOCKED_GIB * ranks_here,
            severity="problem",
            advice="batches are page-locked for the copy to the GPU: ulimit -l unlimited, docker --ulimit memlock=-1",
        )


def _examine_space(*, ranks_here: int) -> Iterator[Measure]:
    """Yield what batches and compiled kernels are kept in: shared memory and the temporary folder."""
    shared = _free("/dev/shm")
    if shared is not None:
        yield wanted(
            "/dev/shm free",
            shared / GIB,
            "GiB",
            at_least=LEAST_SHARED_GIB * ranks_here,
            advice=f"{ranks_here} ranks keep their batches there, some GiB each: docker --shm-size=64g, or --ipc=host; under "
            "Slurm ask for more memory",
        )
    folder = os.environ.get("TMPDIR", "/tmp")
    temporary = _free(folder)
    if temporary is not None:
        is_closed = bool(os.statvfs(folder).f_flag & os.ST_NOEXEC)
        advice = "compiled kernels cannot be loaded from there: set TMPDIR to a folder that is mounted without noexec"
        yield Measure("temporary folder", "noexec" if is_closed else "executable", advice=advice if is_closed else None)
        yield wanted(
            "temporary folder free", temporary / GIB, "GiB", at_least=1.0, advice="compiled kernels go there: set TMPDIR"
        )


def _limit(which: int) -> float:
    soft = resource.getrlimit(which)[0]
    return float("inf") if soft == resource.RLIM_INFINITY else float(soft)


def _free(path: str) -> int | None:
    try:
        state = os.statvfs(path)
    except OSError:
        return None
    return state.f_bavail * state.f_frsize


def examine_gpus() -> Iterator[Measure]:
    count = torch.cuda.device_count()
    yield Measure("GPUs", count, rule="same")
    names = sorted({torch.cuda.get_device_name(number) for number in range(count)})
    advice = None if len(names) == 1 else "GPUs of several kinds in one machine"
    yield Measure("GPU", ", ".join(names), rule="same", advice=advice)
    yield Measure("CUDA of torch", torch.version.cuda or torch.version.hip or "none", rule="same")
    nccl: Any = importlib.import_module("torch.cuda.nccl")
    yield Measure("NCCL", ".".join(map(str, nccl.version())), rule="same")
    free = min(torch.cuda.mem_get_info(number)[0] for number in range(count)) / GIB
    total = min(torch.cuda.get_device_properties(number).total_memory for number in range(count)) / GIB
    yield wanted(
        "GPU memory free",
        free,
        "GiB",
        at_least=0.95 * total,
        rule="none less",
        advice=f"another program holds memory of the {total:.0f} GiB: `nvidia-smi` names it",
    )
    yield from read_smi(ask_smi())


def ask_smi() -> str:
    """Return what nvidia-smi says of `SMI_FIELDS`, a line a GPU; or what is wrong with it, on the first line.

    Drivers before 535 have another name for the reasons that hold a GPU back; a field that a driver does not know is asked for
    no more, and its cells are empty.
    """
    asked = {field: field for field in SMI_FIELDS.values()}  # by which name each field is asked for
    while True:
        command = ["nvidia-smi", f"--query-gpu={','.join(asked.values())}", "--format=csv,noheader,nounits"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        except FileNotFoundError:
            return ""
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"{PROBLEM}{error}"
        said = done.stdout + done.stderr
        refused = next((field for field, name in asked.items() if f'"{name}" is not a valid field' in said), None)
        if refused is None:
            break
        old = OLD_NAMES.get(refused, refused)
        if asked[refused] == old:
            del asked[refused]
        else:
            asked[refused] = old
    if done.returncode != 0:
        return PROBLEM + (said.strip().splitlines() or [f"ended with code {done.returncode}"])[0]
    rows = [dict(zip(asked, line.split(","), strict=False)) for line in done.stdout.splitlines()]
    return "\n".join(",".join(row.get(field, "") for field in SMI_FIELDS.values()) for row in rows)


def read_smi(text: str) -> Iterator[Measure]:
    """Yield what nvidia-smi says of a machine's GPUs: a line each, of the values of `SMI_FIELDS`."""
    if text.startswith(PROBLEM):
        advice = (
            "the driver and its library do not match, or a container has lost its GPUs: start the container or the node again"
        )
        yield Measure("nvidia-smi", text.removeprefix(PROBLEM), advice=advice)
        return
    rows = [dict(zip(SMI_FIELDS, (cell.strip() for cell in line.split(",")), strict=False)) for line in text.splitlines()]
    rows = [row for row in rows if len(row) == len(SMI_FIELDS)]
    if not rows:
        return
    yield Measure("driver", ", ".join(sorted({row["driver"] for row in rows})), rule="same")
    for name, unit in (("largest GPU clock", "MHz"), ("GPU temperature", "C")):
        values = [float(row[name]) for row in rows if row[name].replace(".", "", 1).isdigit()]
        if values and name == "GPU temperature":
            hot = "a GPU is hot, and will be slowed down: look at its cooling"
            yield Measure(name, max(values), unit, advice=hot if max(values) > HOT else None)
        elif values:
            yield Measure(name, min(values), unit, rule="none less")
    errors = [float(row["uncorrected memory errors"]) for row in rows if row["uncorrected memory errors"].isdigit()]
    if errors:
        advice = None if sum(errors) == 0 else "a GPU's memory has failed: take the machine out (nvidia-smi -q -d ECC)"
        yield Measure("uncorrected memory errors", sum(errors), advice=advice, severity="problem")
    slowed = sorted({name for row in rows for name in _reasons(row["GPU slowed down by"])})
    advice = "a GPU is held back by its hardware: look at cooling and power" if slowed else None
    yield Measure("GPU slowed down by", ", ".join(slowed) or "nothing", advice=advice)


def _reasons(text: str) -> list[str]:
    try:
        bits = int(text, 16)
    except ValueError:  # "[N/A]"
        return []
    return [name for bit, name in SLOWED_DOWN.items() if bits & bit]
