"""Fuzz what `data_tools` keeps between calls: listings, hashes of images, notes of shards, make.json, results by shard."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from data_tools.dedup.hash_store import HashedShard, ImageSet, load_shard, save_shard, stored_facts
from data_tools.dedup.matching import HashTable
from data_tools.dedup.perceptual_hash import NUM_CROPS, NUM_FRAMES, VIEW_BYTES
from data_tools.make.output import WORK_NAME, Output
from data_tools.make.record import MakeRecord
from data_tools.make.sources.listing import Member, load_listing
from data_tools.make.sources.listing_builder import ListingBuilder
from data_tools.parallel import remember
from pipeline.errors import DataError
from tests.fuzz.folders import pack, unpack, write_folder
from tests.fuzz.fuzzer import BrokenLaw, Fuzzer, Outcome
from tests.fuzz.safetensors_files import mutate_file
from tests.fuzz.values import json_bytes, mutate_values

REQUEST = {"kind": "folder", "seed": 0, "order": "shuffled", "val_fraction": None}
REPORT = {"kind": "folder", "num_samples": 4, "num_shards": 1, "block_samples": 32, "samples_of": {}, "left_out": []}
NOTE = {"num_samples": 4, "num_reencoded": 0, "left_out": [{"sample": "a", "reason": "b"}]}
RECORD = {
    "request": REQUEST,
    "stamp": "s",
    "source": "d",
    "times": "1f",
    "shards": {"shard-000000.tar": NOTE},
    "report": REPORT,
}
RESULT = {"key": "k", "result": {"samples": 4, "findings": [["a", "b"]]}}
SHARD = "shard-000000.tar"
KEYS = (*RECORD, *NOTE, *REPORT, "about", "facts", "digest", "keys", "place", "frames", "dtype", "shape", "data_offsets", SHARD)


def stores(scratch: Path) -> Fuzzer:
    folder = scratch / "seeds"
    folder.mkdir(exist_ok=True)
    builder = ListingBuilder()
    for number in range(5):
        builder.add(f"{number}\udc80", labels=["cat", "dog"][: 1 + number % 2], members=[Member("png", 0, number * 9, 9)])
    listing = builder.build(layout="ranges", files=("images",))
    listing.save(folder / "listing")
    views = np.zeros((3, NUM_FRAMES, VIEW_BYTES), np.uint8)
    table = HashTable(views, views, np.zeros((3, NUM_CROPS, VIEW_BYTES), np.uint8), np.ones(3, np.float32))
    pairs = np.ones((3, 2), np.int64)
    save_shard(folder, HashedShard(SHARD, "facts", ["a", "b", "c"], pairs, pairs, table, [("d", "truncated")], 1))
    seeds = {"listing": (folder / "listing").read_bytes(), "hashes": (folder / f"{SHARD}.safetensors").read_bytes()}
    return Fuzzer(
        make=lambda random: _make(seeds, random), check=lambda data: _check(data, scratch / "store", listing.digest())
    )


def _make(seeds: dict[str, bytes], random: Random) -> bytes:
    kind = random.choice(("listing", "hashes", "record", "note", "result"))
    if kind in seeds:
        return pack({kind: mutate_file(seeds[kind], random, change=_change_header)})
    values = {"record": RECORD, "note": NOTE, "result": RESULT}[kind]
    return pack({kind: json_bytes(mutate_values(values, random, words=KEYS), random)})


def _change_header(header: dict[str, Any], random: Random) -> Any:
    """Change the header, or the JSON in it."""
    facts = header["__metadata__"]
    name = random.choice(sorted(facts))
    if random.random() < 0.5 or name == "digest":
        return mutate_values(header, random, words=KEYS)
    return {**header, "__metadata__": {**facts, name: json.dumps(mutate_values(json.loads(facts[name]), random, words=KEYS))}}


def _check(data: bytes, root: Path, digest: str) -> Outcome:
    write_folder(root, data)
    (kind,) = unpack(data)
    try:
        if kind == "listing":
            listing = load_listing(root / kind)
            if listing.digest() != digest:
                raise BrokenLaw("a listing is read that was never written")
            return "taken"
        if kind == "hashes":
            return _check_hashes(root)
        return _check_record(root, kind)
    except DataError:
        return "refused"


def _check_hashes(root: Path) -> Outcome:
    (root / "hashes").rename(root / f"{SHARD}.safetensors")
    if stored_facts(root, SHARD) != "facts":
        return "refused"
    shard = load_shard(ImageSet(path="p", folder="p", shards=(SHARD,), work=root), SHARD)
    if (
        not len(shard.keys)
        == len(shard.byte_ranges)
        == len(shard.size)
        == len(shard.hashes.frames)
        == len(shard.hashes.is_featureless)
    ):
        raise BrokenLaw("the hashes of a shard do not fit together")
    return "taken"


def _check_record(root: Path, kind: str) -> Outcome:
    shard = root / SHARD
    if kind == "result":
        result = remember(lambda: {"samples": 4}, path=root / "result", facts=("a",))
        return "taken" if isinstance(result, dict) else "refused"
    if kind == "record":
        (root / "record").rename(root / "make.json")
    else:
        (root / ".make").mkdir()
        (root / "note").rename(root / ".make" / f"{SHARD}.json")
    output = Output(str(root), ("",), work=root / WORK_NAME)
    record = MakeRecord(output, REQUEST)
    shard.touch()
    note = record.note(SHARD, output.tar_sizes())
    if note is not None:
        str(note["num_samples"] + note["num_reencoded"])
        list(note["left_out"])
    if record.report is not None:
        str(record.report["num_shards"] + record.report["block_samples"])
    record.claim("d", times=0x1F, stamp="s")
    return "refused" if note is None else "taken"
