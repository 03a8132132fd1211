"""Fuzz everything that reads a run folder: status, report, claims, results and the search for a checkpoint.

Only two may refuse: the search, where no checkpoint can be trusted, and the report, where there is nothing to draw.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import save

from pipeline.errors import CheckpointError, ConfigError
from pipeline.monitor.status import read_status
from pipeline.monitor.status_text import BLOCKS, Style, describe, tabulate, to_json
from pipeline.report.report import write_report
from pipeline.run.checkpoint import MODEL_FILE, CheckpointMeta, describe_files, files_of
from pipeline.run.checkpoint_search import find_latest
from pipeline.run.claims import read_owner
from pipeline.run.evaluations import read_results
from pipeline.run.folder import RunFolder
from tests.fuzz.folders import pack, unpack, write_folder
from tests.fuzz.fuzzer import BrokenLaw, Fuzzer, Outcome
from tests.fuzz.values import json_bytes, mutate_values

PLAIN = Style(colours=False, blocks=BLOCKS)
DIGEST = "0123456789abcdef"
PICTURES = 500  # one of so many inputs is drawn too, which takes two seconds
OWNER = {
    "host": "node1", "pid": 77, "machine": "boot", "pid_namespace": "pid:[1]", "process_start": "5", "slurm_job_id": "7",
    "slurm_restart": "0", "since": 1.7e9, "token": "abc",
}  # fmt: skip
META = {
    "format": 2, "step": 8, "images_seen": 64, "num_updates": 8, "skipped_steps": 0, "callbacks": {"Metrics": {"seen": 64}},
    "world_size": 2, "zero_stage": 2, "wandb_id": "abc", "data_fingerprint": "f", "order_version": 1,
    "versions": {"torch": "2"},
}  # fmt: skip
STATES: dict[str, Any] = {
    "heartbeat.json": {
        "phase": "running", "time": 1.7e9, "started": 1.6e9, "step": 12, "total_steps": 100, "global_batch_size": 8,
        "world_size": 2,
        "num_nodes": 1, "pid": 77, "host": "node1", "machine": "boot", "pid_namespace": "n", "process_start": "5",
        "slurm_job_id": None, "alerts": ["slow"], "by": None, "folder_inode": 5,
    },
    "complete.json": {"step": 12},
    "stragglers.json": {
        "rank": 1, "ratio": 1.5, "cost": 0.1, "measured": ["forward"],
        "nodes": [{"host": "node1", "median_s": 1.0, "slowest_rank": 1, "slowest_s": 2.0, "slowest_data_wait_s": 0.5}],
    },
    "lock.json": OWNER,
    "claims/step_00000008@bars.json": OWNER,
    "checkpoints/step_00000008/manifest.json": {},
    "checkpoints/step_00000008/meta.json": META,
}  # fmt: skip
METRICS = [
    {"step": step, "time": 1.7e9 + step, "images_seen": 8 * step, "train/loss": 2.0 / step, "speed/images_per_s": 9.0,
     "speed/step_time_s": 1.0, "speed/data_wait_fraction": 0.1, "speed/mfu": 0.3, "data/unreadable": 0, "learning_rate": 1e-3}
    for step in range(1, 9)
]  # fmt: skip
RESULTS = [
    {"step": step, "images_seen": 8 * step, "dataset": "bars", "protocol": protocol, "shots": shots, "seed": seed,
     "accuracy": 0.5, "ci95": 0.1, "test_images": 22, "unreadable": 0, "weights": DIGEST}
    for step in (4, 8) for protocol, shots, seed in (("few_shot", 5, 0), ("few_shot", 5, 1), ("linear", None, None))
]  # fmt: skip
KEYS = tuple({key for state in STATES.values() for key in state} | METRICS[0].keys() | RESULTS[0].keys() | {"bytes", "blake2b"})


def run_folders(scratch: Path) -> Fuzzer:
    return Fuzzer(make=_make, check=lambda data: _check(data, scratch / "run"))


def _make(random: Random) -> bytes:
    header = json.dumps({"__metadata__": {"digest": DIGEST}}).encode()
    files = {name: json.dumps(state).encode() for name, state in STATES.items()}
    files["weights/step_00000008.safetensors"] = len(header).to_bytes(8, "little") + header
    files["metrics.jsonl"], files["evaluations.jsonl"] = _lines(METRICS, random, 0.0), _lines(RESULTS, random, 0.0)
    files["config.yaml"] = b"name: run\n"
    for _ in range(random.choice((1, 1, 2, 4))):
        name = random.choice((*STATES, "metrics.jsonl", "evaluations.jsonl", "metrics.jsonl", "evaluations.jsonl"))
        if name in STATES:
            files[name] = json_bytes(mutate_values(STATES[name], random, words=KEYS), random)
        else:
            files[name] = _lines(METRICS if name.startswith("metrics") else RESULTS, random, 0.3)
        if random.random() < 0.05:
            files.pop(name)
    manifest = "checkpoints/step_00000008/manifest.json"
    files[f"checkpoints/step_00000008/{MODEL_FILE}"] = save(
        {"head.bias": torch.tensor([random.choice((0.0, 0.0, 0.0, float("nan")))])}
    )
    if random.random() < 0.7 and files.get(manifest) == b"{}":  # whole: what meta.json holds is what counts
        files[manifest] = b"whole"
    return pack(files)


def _lines(rows: list[dict[str, Any]], random: Random, share: float) -> bytes:
    """Return lines of JSON, a share of them damaged."""
    lines = []
    for row in copy.deepcopy(rows):
        damaged = random.random() < share
        lines.append(json_bytes(mutate_values(row, random, words=KEYS), random) if damaged else json.dumps(row).encode())
    return b"\n".join(lines) + random.choice((b"\n", b"\n", b"", b"\r\n"))


def _check(data: bytes, root: Path) -> Outcome:
    write_folder(root, data)
    manifest = root / "checkpoints" / "step_00000008" / "manifest.json"
    if unpack(data).get(manifest.relative_to(root).as_posix()) == b"whole":
        manifest.write_text(json.dumps(describe_files(manifest.parent, files_of(manifest.parent))))
    status = read_status(root)
    json.loads(to_json([status]))
    "\n".join([*describe([status], style=PLAIN), *tabulate([status, status], style=PLAIN)]).encode(errors="surrogatepass")
    for claim in (root / "lock.json", root / "claims" / "step_00000008@bars.json"):
        str(read_owner(claim))
    read_results(RunFolder(root))
    if sum(data) % PICTURES == 0:
        try:
            write_report(root)
        except ConfigError:
            pass
    try:
        found = find_latest(RunFolder(root)).newest
    except CheckpointError:
        return "refused"
    if found is None:
        return "refused"
    _check_meta(found.meta)
    return "taken"


def _check_meta(meta: CheckpointMeta) -> None:
    """Check the meta.json of a checkpoint that a launch would resume from."""
    for name in ("step", "images_seen", "num_updates", "skipped_steps", "world_size", "order_version", "zero_stage"):
        if type(getattr(meta, name)) is not int or getattr(meta, name) < 0:
            raise BrokenLaw(f"a checkpoint is resumed from whose {name} is not a count", details=repr(getattr(meta, name)))
    if not isinstance(meta.wandb_id, str) or not isinstance(meta.data_fingerprint, str) or not isinstance(meta.callbacks, dict):
        raise BrokenLaw("a checkpoint is resumed from whose meta.json has other types", details=repr(meta))
