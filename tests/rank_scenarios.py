"""Run by tests on real ranks: trains several configurations one after another in one process group.

    torchrun --nproc-per-node=2 -m tests.rank_scenarios SCENARIOS.json

SCENARIOS.json lists configuration files; each run leaves its own run folder, which the test reads.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pipeline import build
from pipeline.config import load_config
from pipeline.interruption import StopRequest
from pipeline.planning import make_plan
from pipeline.quiet import quiet_libraries
from pipeline.start import agree_on_start
from pipeline.world import World, die_with_parent, init_process_group


def main(listing: Path) -> None:
    die_with_parent()
    world = World.from_environment()
    quiet_libraries(is_first=world.is_first)
    init_process_group(world, timeout_s=600)
    for path in json.loads(listing.read_text()):
        plan = make_plan(load_config(path), world_size=world.size)
        start = agree_on_start(plan, world, device=build.device_of(world))
        build.make_training(plan, world=world, stop=StopRequest(), start=start).run()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
