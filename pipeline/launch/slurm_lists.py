"""Parse Slurm's short forms: lists of nodes, and the numbers of tasks on them."""

from __future__ import annotations

import re

from pipeline.errors import ConfigError


def parse_tasks_per_node(listing: str) -> list[int]:
    """Parse Slurm's tasks of each node: `8`, `2(x3)` or `2(x3),1`.

    Raises:
        ConfigError: not of that form.
    """
    counts: list[int] = []
    for part in listing.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if found is None or int(found.group(1)) < 1:
            raise ConfigError(f"SLURM_TASKS_PER_NODE={listing} cannot be read; Slurm writes it as 8, 2(x3) or 2(x3),1")
        counts += [int(found.group(1))] * int(found.group(2) or 1)
    return counts


def first_node(listing: str) -> str:
    """Return the first name of a list of nodes, as `n[1-3,7]`, `gpu007,gpu009` or `rack[0-1]n[03-04]`."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", listing.strip())
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first.group(0)) if first else listing


def expand_nodes(listing: str) -> list[str]:
    """Return the names of a list of nodes."""
    names: list[str] = []
    for name in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", listing):
        found = [""]
        for piece in re.split(r"(\[[^\]]*\])", name.strip()):
            choices = _expand_ranges(piece[1:-1]) if piece.startswith("[") else [piece]
            found = [before + choice for before in found for choice in choices]
        names += found
    return names


def _expand_ranges(ranges: str) -> list[str]:
    choices: list[str] = []
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        is_range = first.isdigit() and last.isdigit()
        choices += [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)] if is_range else [part]
    return choices
