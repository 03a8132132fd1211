"""Read what `preflight` has measured between machines."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ConfigError

ALL_REDUCE = "all-reduce"  # `preflight` calls it so


@dataclass(frozen=True)
class Network:
    """Holds a rate that was measured between machines.

    Attributes:
        gb_per_s: bytes that each machine sends in an all-reduce over all ranks, in 10^9 a second.
    """

    gb_per_s: float
    num_machines: int


def read_network(path: Path) -> Network:
    """Return the rate of the all-reduce in a file of `preflight --json`.

    The bus bandwidth of an all-reduce is what leaves a machine in one ring, or in several that share the bytes. One all-reduce
    has latency and contention in it, which a data sheet has not.

    Raises:
        ConfigError: it cannot be read, is of something else, or of one machine, whose ranks need no network.
    """
    try:
        machines = json.loads(path.read_text())["machines"]
        rates = [m["value"] for machine in machines for m in machine["measures"] if m["name"] == ALL_REDUCE]
        count, rate = len(machines), float(min(rates)) if rates else None
    except OSError as error:
        raise ConfigError(f"--measured {path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"--measured {path} is no file of `preflight --json` ({type(error).__name__}: {error}): write it with "
            "`srun ... python -m pipeline preflight --json FILE`"
        ) from error
    if count < 2 or rate is None or not (math.isfinite(rate) and rate > 0):
        raise ConfigError(
            f"--measured {path}: {count} machine{'s' * (count != 1)} and no rate between machines; run preflight on the nodes "
            "of a job, under srun (slurm/preflight.sh)"
        )
    return Network(rate, count)
