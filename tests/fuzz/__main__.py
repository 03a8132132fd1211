"""Fuzz every reader of foreign bytes with damaged ones.

    python -m tests.fuzz [TARGET ...] [--share 0.1] [--minutes N] [--seed S]

A reader must return what is right, or refuse with an error of its own. It must not crash, hang, use memory beyond a bound, or
raise a foreign exception. The program prints a table. Inputs that break this are kept in a folder, and the exit code is then 1.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

from tests.fuzz.campaign import Campaign, Result, campaign
from tests.fuzz.sanitizers import NoSanitizerError, build_module
from tests.fuzz.targets import TARGETS

PROGRESS_S = 15.0  # time between lines that say how far it is
MEMORY = Path("/dev/shm")  # files there cost a tenth of those on a disk, and an input is a file or several


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; all if none is named")
    parser.add_argument("--share", type=float, default=1.0, help="of each target's executions (1)")
    parser.add_argument("--minutes", type=float, help="end each target after this time")
    parser.add_argument("--seed", type=int, default=0, help="(0)")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (2)")
    parser.add_argument("--out", type=Path, default=Path("fuzz-findings"), help="folder of failing inputs (fuzz-findings)")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.targets) - set(TARGETS)):
        parser.error(f"no target {unknown[0]!r}; there are {', '.join(TARGETS)}")
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as folder:
        names = arguments.targets or list(TARGETS)
        campaigns, left_out = plan(names, seed=arguments.seed, share=arguments.share, folder=Path(folder), out=arguments.out)
        limit_s = None if arguments.minutes is None else 60 * arguments.minutes
        results = run(campaigns, jobs=arguments.jobs, limit_s=limit_s)
    for name, reason in left_out.items():
        print(f"{name} was not run: {reason}")
    print_faults(results)
    sys.exit(1 if left_out or any(result.faults for result in results) else 0)


def plan(names: list[str], *, seed: int, share: float, folder: Path, out: Path) -> tuple[list[Campaign], dict[str, str]]:
    """Return the campaigns, and why targets cannot be run."""
    campaigns, left_out = [], {}
    for name in names:
        target, module = TARGETS[name], None
        executions = max(1, round(share * target.executions))
        if target.sanitized is not None:
            try:
                module = build_module(folder / "build", target.sanitized)
            except NoSanitizerError as error:
                left_out[name] = str(error)
                continue
        campaigns.append(campaign(name, seed=seed, executions=executions, folder=folder, out=out.absolute(), module=module))
    return campaigns, left_out


def run(campaigns: list[Campaign], *, jobs: int, limit_s: float | None) -> list[Result]:
    print(f"{'target':<16}{'executions':>12}{'a second':>10}{'taken':>10}{'refused':>10}{'findings':>10}", flush=True)
    results: list[Result] = []
    with ThreadPoolExecutor(jobs) as pool:
        running = {pool.submit(one.run, limit_s=limit_s): one for one in campaigns}
        while running:
            done, _ = wait(running, timeout=PROGRESS_S, return_when=FIRST_COMPLETED)
            for future in done:
                del running[future]
                results.append(future.result())
                print_row(results[-1])
            if not done:
                begun = [one for one in running.values() if one.number_now()]
                print(
                    "  at " + ", ".join(f"{one.name} {one.number_now():,} of {one.executions:,}" for one in begun), flush=True
                )
    return results


def print_row(result: Result) -> None:
    a_second = round(result.executions / max(result.seconds, 1e-9))
    print(
        f"{result.target:<16}{result.executions:>12,}{a_second:>10,}{result.taken:>10,}{result.refused:>10,}"
        f"{result.faults.total():>10,}",
        flush=True,
    )


def print_faults(results: list[Result]) -> None:
    for result in results:
        for fault, count in result.faults.most_common():
            print(f"{result.target}: {count} x {fault}")
        for path in result.kept:
            print(f"  {path}")


if __name__ == "__main__":
    main()
