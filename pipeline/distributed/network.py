"""Check the address at which the ranks meet, before a backend fails with an error of its own or waits."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Literal

from pipeline.errors import ConfigError

RESOLVE_PATIENCE_S = 60.0  # a name server may be busy while a thousand ranks start
VARIABLES = {"gloo": "GLOO_SOCKET_IFNAME", "nccl": "NCCL_SOCKET_IFNAME"}


def check_interfaces(
    backend: Literal["gloo", "nccl"], environment: Mapping[str, str] | None = None, found: Sequence[str] | None = None
) -> None:
    """Compare the interfaces that the environment names with those that exist.

    Args:
        found: names of this machine's interfaces.

    Raises:
        ConfigError: an interface does not exist, or none is left.
    """
    variable = VARIABLES[backend]
    value = (os.environ if environment is None else environment).get(variable, "")
    names = [name for _, name in socket.if_nameindex()] if found is None else list(found)
    wanted = [name for name in value.lstrip("^=").split(",") if name]
    if not wanted:
        return
    if backend == "gloo":
        missing = [name for name in value.split(",") if name not in names]  # whole names, and nothing else
        hint = f" (`^` and prefixes are NCCL's: {VARIABLES['nccl']})" if value.startswith(("^", "=")) else ""
    else:
        exact, exclude = value.startswith(("=", "^=")), value.startswith("^")
        fits = [name for name in names if any(name == other if exact else name.startswith(other) for other in wanted)]
        left = [name for name in names if name not in fits] if exclude else fits
        missing, hint = ([] if left else [value]), ""
    if missing:
        raise ConfigError(
            f"{variable}={value}: {socket.gethostname()} has no network interface {', '.join(missing)}; it has "
            f"{', '.join(names)}. Name one of them{hint}, or unset {variable}; under Slurm it is SITE_INTERFACE in "
            "slurm/site.env"
        )


def check_master(host: str, port: int, *, patience_s: float = RESOLVE_PATIENCE_S) -> None:
    """Check that the name of rank 0's machine is known here.

    torch would ask again until the collective timeout, with a warning each time.

    Raises:
        ConfigError: it is not known for `patience_s`.
    """
    end = time.monotonic() + patience_s
    while True:
        try:
            socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            return
        except (socket.gaierror, UnicodeError) as error:
            if time.monotonic() >= end:
                raise ConfigError(
                    f"MASTER_ADDR={host}, the machine of rank 0, is not known on {socket.gethostname()} ({error}): set it to a "
                    f"name or an address that every node knows (`getent hosts {host}` asks)"
                ) from error
        time.sleep(1.0)


def choose_interface(
    *, own: str, towards_master: str, addresses: Mapping[str, Sequence[str]], environment: Mapping[str, str] | None = None
) -> str | None:
    """Return gloo's interface where its own choice, the address of this machine's name, is one that no other machine reaches.

    Debian and Ubuntu give a machine without a fixed address the name 127.0.1.1. (127.0.0.1 may also mean that all ranks
    are here.)

    Args:
        own: the address of this machine's name.
        towards_master: the address from which this machine speaks to rank 0's.
        addresses: addresses of each interface.

    Returns:
        The interface; None where gloo's choice works, or the user has chosen.

    Raises:
        ConfigError: there are several such interfaces.
    """
    variable = VARIABLES["gloo"]
    if (os.environ if environment is None else environment).get(variable) or not own.startswith("127.") or own == "127.0.0.1":
        return None
    others = [name for name, found in addresses.items() if any(not address.startswith(("127.", "::1")) for address in found)]
    fits = [
        name for name in others if towards_master in addresses[name]
    ] or others  # none: this is rank 0's machine, by that name
    if len(fits) != 1:
        raise ConfigError(
            f"{socket.gethostname()} knows itself as {own}, which other machines do not reach, and has the interfaces "
            f"{', '.join(fits) or 'lo alone'}: name the one between the nodes by {variable} (under Slurm SITE_INTERFACE in "
            "slurm/site.env)"
        )
    return fits[0]


def choose_interface_here(host: str, port: int) -> str | None:
    """Choose the interface for this machine and the machine of rank 0."""
    import psutil

    try:
        own = socket.gethostbyname(socket.gethostname())
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, port))  # sends nothing
            towards = str(probe.getsockname()[0])
    except OSError:
        return None  # no IPv4, or a name without an address: gloo reports it
    found = {
        name: [entry.address for entry in entries if entry.family == socket.AF_INET]
        for name, entries in psutil.net_if_addrs().items()
    }
    return choose_interface(own=own, towards_master=towards, addresses=found)
