"""Read single variables of launchers as numbers and addresses, and name them in messages."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pipeline.errors import ConfigError

Environment = Mapping[str, str]
LOOPBACK = ("localhost", "127.", "::1", "[::1]")


def count_or_zero(text: object) -> int:
    """Return a number that may be missing or invalid; then it is 0."""
    return int(text) if isinstance(text, str) and text.strip().isdigit() else 0


def number(env: Environment, name: str) -> int:
    """Return a variable that must be a whole number of 0 or more.

    Raises:
        ConfigError: it is not.
    """
    text = env[name].strip()
    if not re.fullmatch(r"-?\d{1,9}", text) or int(text) < 0:
        raise ConfigError(f"{name}={env[name]!r} in the environment is not a whole number of 0 or more; {way_out([name])}")
    return int(text)


def first_number(env: Environment, *names: str) -> int | None:
    """Return the first of these variables that is set; None if none is. It must be a number, as for `number`."""
    return next((number(env, name) for name in names if env.get(name)), None)


def read_master(env: Environment, *, num_nodes: int) -> tuple[str, int]:
    """Return host and port of rank 0, from MASTER_ADDR and MASTER_PORT.

    Raises:
        ConfigError: the port is no port, or other machines cannot reach the host.
    """
    host, port = env["MASTER_ADDR"].strip("[]"), number(env, "MASTER_PORT")  # an IPv6 address as it is written in a URL
    if not 0 < port < 65536:
        raise ConfigError(f"MASTER_PORT={port} is not a port: set one from 1024 to 65535, the same for all ranks")
    if num_nodes > 1 and host.startswith(LOOPBACK):
        raise ConfigError(
            f"MASTER_ADDR={host} is every machine's own address, but the ranks are on {num_nodes} machines: set it to the name "
            "of the machine of rank 0"
        )
    return host, port


def name_values(env: Environment, names: list[str]) -> str:
    """Return variables with their values, for messages."""
    return enumerate_names([f"{name}={env[name]}" for name in names])


def enumerate_names(names: list[str]) -> str:
    """Return names with commas and an "and" between them."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def unset(names: list[str]) -> str:
    """Return the command that starts a training without these variables."""
    return f"env {' '.join(f'-u {name}' for name in names)} python -m pipeline train ..."


def way_out(names: list[str]) -> str:
    """Return the sentence that names the command of `unset`."""
    return f"To start without: {unset(names)}"
