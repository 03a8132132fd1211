"""Check and measure a machine with a GPU within a budget, the most valuable first: `bash run.sh` of the bundle calls it.

    python -m tests.gpu.run --budget 14 --out results

Every part has its output in OUT/NAME.txt, and figures in OUT/NAME.json where it has some. OUT/report.md holds all tables, and
is written again after each part: what was measured is there whenever this ends.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.gpu.photos import write_photos

REPOSITORY = Path(__file__).parents[2]
LEAST_S = 20.0  # a part is not begun with less


@dataclass(frozen=True)
class Part:
    """Describes one part.

    Attributes:
        most_s: it is ended then, whatever is left of the budget.
        says: it takes `--budget` itself, and so ends in time.
    """

    name: str
    title: str
    command: tuple[str, ...]
    most_s: float
    says: bool = False


@dataclass(frozen=True)
class Ended:
    """Says how a part ended."""

    name: str
    title: str
    seconds: float
    outcome: str  # done, failed with code N, ended after N s, not reached


def make_parts(out: Path, *, data: Path, scale: str) -> list[Part]:
    """Return the parts in order of value.

    Args:
        scale: `full`, or `tiny` to try the whole on a CPU.
    """
    tiny = scale == "tiny"
    workers = max(1, min(6, len(os.sched_getaffinity(0)) // 2))  # most of a test is the start of its trainings
    sizes = ["--image-size", "32", "--batch", "4"] if tiny else []
    rounds = ["--rounds", "1", "--steps", "1"] if tiny else ["--rounds", "4", "--steps", "8"]
    large, huge, coarse = ("Ti/16", "Ti/16", "Ti/32") if tiny else ("L/16", "H/14", "L/32")

    def benchmark(name: str, title: str, *arguments: str, most_s: float) -> Part:
        command = ("-m", "pipeline", "benchmark", "train", *arguments, *sizes, *rounds, "--json", str(out / f"{name}.json"))
        return Part(name, title, command, most_s, says=True)

    return [
        Part(
            "preflight",
            "Is the machine fit?",
            ("-m", "pipeline", "preflight", "--folder", str(out / "runs"), "--json", str(out / "preflight.json")),
            90,
        ),
        benchmark(
            "l16", "L/16 next to timm's and transformers' models", "--models", large, "--profile", str(out / "l16-trace.json"),
            most_s=240,
        ),
        benchmark("h14", "H/14 next to timm's and transformers' models", "--models", huge, most_s=200),
        Part(
            "tests",
            "Tests of what the device can change",
            ("-m", "pytest", "-m", "gpu", "tests/gpu", "-q", "-p", "no:cacheprovider", "--numprocesses", str(workers), "--dist",
             "load", "--junitxml", str(out / "tests.xml")),
            300,
        ),
        benchmark(
            "float8", "Float8: each linear layer, and trainings", "--models", *dict.fromkeys((large, huge)), "--measure",
            "float8", most_s=240,
        ),
        benchmark("choices", "Settings side by side, L/16", "--models", large, "--measure", "choices", most_s=300),
        benchmark(
            "loader", "L/16 with the loader", "--models", large, "--measure", "loader", "--data", str(data), "--workers", "12",
            most_s=120,
        ),
        benchmark("l32", "L/32", "--models", coarse, most_s=120),
        Part(
            "probes",
            "Solvers of the probes",
            ("-m", "pipeline", "benchmark", "eval", "--images", "2000" if tiny else "20000", "--rounds", "1",
             "--json", str(out / "probes.json")),
            120,
        ),
    ]  # fmt: skip


def run_part(part: Part, *, left_s: float, out: Path) -> Ended:
    """Run a part, for so long at most."""
    limit = min(part.most_s, left_s)
    command = [sys.executable, *part.command]
    if part.says:
        command += ["--budget", f"{max(0.5, (limit - LEAST_S) / 60):.2f}"]
    begin = time.monotonic()
    with (out / f"{part.name}.txt").open("w") as output:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, stdout=output, stderr=subprocess.STDOUT, env=os.environ, start_new_session=True
        )
        try:
            code = process.wait(timeout=limit)
            outcome = "done" if code == 0 else f"failed with code {code}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            outcome = f"ended after {limit:.0f} s"
    return Ended(part.name, part.title, time.monotonic() - begin, outcome)


def make_report(ended: list[Ended], out: Path, *, budget: float) -> str:
    """Return what was found, as Markdown."""
    commit = REPOSITORY / "COMMIT"
    version = commit.read_text().strip() if commit.exists() else "a working tree"
    lines = [f"# Measured on {time.strftime('%Y-%m-%d')}, version {version}, budget {budget:g} minutes", ""]
    lines += ["| part | outcome | seconds |", "|---|---|---|"]
    lines += [f"| {part.title} | {part.outcome} | {part.seconds:.0f} |" for part in ended]
    for part in ended:
        path = out / f"{part.name}.txt"
        if path.exists():
            lines += ["", f"## {part.title}", "", *_readable(path.read_text(errors="replace"))]
    return "\n".join(lines) + "\n"


def _readable(text: str) -> list[str]:
    """Return the lines of an output that are not a progress bar's: tables as they are, the rest as code."""
    found, is_code = [], False
    for line in text.splitlines():
        if " turn " in line and "%" in line and "left" in line:
            continue
        is_table = line.startswith(("|", "## "))
        if line.strip() and is_table == is_code:
            found.append("```" if is_code else "\n```")
            is_code = not is_code
        found.append(f"#{line}" if line.startswith("## ") else line)
    return [*found, "```"] if is_code else found


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.gpu.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budget", type=float, default=14.0, metavar="MINUTES", help="for everything (default: 14)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--scale", choices=["full", "tiny"], default="full", help="tiny: try it on a CPU")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="parts to run")
    arguments = parser.parse_args()
    begin, out = time.monotonic(), arguments.out
    out.mkdir(parents=True, exist_ok=True)
    data = out / "photos"
    if not data.exists():
        write_photos(data, shards=12, images_per_shard=16 if arguments.scale == "tiny" else 512)
    ended: list[Ended] = []
    for part in make_parts(out, data=data, scale=arguments.scale):
        if arguments.only and part.name not in arguments.only:
            continue
        left_s = 60 * arguments.budget - (time.monotonic() - begin)
        print(f"[gpu] {part.title} ({left_s:.0f} s left)", flush=True)
        ended.append(
            run_part(part, left_s=left_s, out=out) if left_s >= LEAST_S else Ended(part.name, part.title, 0.0, "not reached")
        )
        print(f"[gpu] {ended[-1].outcome} in {ended[-1].seconds:.0f} s", flush=True)
        (out / "report.md").write_text(make_report(ended, out, budget=arguments.budget))
        (out / "summary.json").write_text(json.dumps([asdict(each) for each in ended], indent=1) + "\n")
    print(f"[gpu] {out / 'report.md'}", flush=True)
    return int(any(each.outcome.startswith("failed") for each in ended))


if __name__ == "__main__":
    sys.exit(main())
