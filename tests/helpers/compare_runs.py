"""Compare two runs: have they seen the same images and learnt the same?

    python -m tests.helpers.compare_runs RUN_DIR RUN_DIR

The exit code is 0 where digests, losses, gradient norms and weights are equal, to the last bit, at every step that both
runs have.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline.run.evaluations import read_digest
from pipeline.run.folder import RunFolder
from pipeline.run.records import read_metrics

COMPARED = ("data/digest", "train/loss", "train/gradient_norm")


def find_differences(one: RunFolder, other: RunFolder) -> tuple[list[int], list[str]]:
    """Return the steps that were compared, and what differs, the earliest step first."""
    lines = [{row["step"]: row for row in read_metrics(folder.metrics)} for folder in (one, other)]
    steps = sorted(lines[0].keys() & lines[1].keys())
    values = [(step, key, *(rows[step].get(key) for rows in lines)) for step in steps for key in COMPARED]
    saved = sorted(set(one.weight_steps()) & set(other.weight_steps()))
    values += [(step, "weights", *(read_digest(folder.weights_of(step)) for folder in (one, other))) for step in saved]
    return sorted({*steps, *saved}), [f"step {step}: {key} {a} and {b}" for step, key, a, b in sorted(values) if a != b]


def main(folders: list[str]) -> int:
    one, other = (RunFolder(Path(folder)) for folder in folders)
    steps, differences = find_differences(one, other)
    if not steps:
        print(f"nothing to compare: {one.root} and {other.root} have no step in common")
        return 2
    if differences:
        print(f"differences: {len(differences)}; first at {differences[0]}")
        return 1
    print(f"equal at steps {', '.join(map(str, steps))}: {', '.join(COMPARED)}, weights")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
