"""Configurations are read to what they say, or refused in words."""

from __future__ import annotations

import contextlib
from pathlib import Path
from random import Random

import numpy as np
import yaml

from pipeline.config.read import load_config
from pipeline.config.resolve import resolve_run
from pipeline.data.shards.index import assemble_index, save_index
from pipeline.data.shards.scan import ShardEntry
from pipeline.errors import PipelineError
from tests.fuzz.fuzzer import BrokenLaw, Fuzzer, Outcome
from tests.fuzz.mutations import mutate_bytes
from tests.fuzz.values import DEPTHS, mutate_values, odd_value

RECIPES = Path(__file__).parents[3] / "configs"
SEPARATOR = b"\n#override "  # a comment line in the file is an override on the command line
MAX_MESSAGE = 20_000  # characters: what a person may still read
WORDS = (
    b"&a ", b"*a", b"<<: ", b"!!python/object/apply:os.system ", b"!!binary ", b"? ", b"- ", b": ", b"\t", b"---\n", b"...\n",
    b"%YAML 9.9\n", b"0x", b"0b", b"0o8", b"2001-99-99", b"2001-01-01 99:99:99", b"1:60", b"!!int x", b"!!timestamp 9",
    b"!!float .",
    b"!!set ", b"!!omap ", b"!!bool maybe", b"=", b"\xef\xbb\xbf", b"\xc2\x85", b"\xff", b"\0", b"|", b">", b"'", b'"', b"{",
    b"[", b"]",
    b"}", b",", b"#", b"!!null x", b"9" * 5000, b"null: ", b"1: ", b"~: ", b"[a]: ", b"extends: self.yaml\n", b"extends: .\n",
    b"extends: [a]\n", b"extends: \n", b"extends: 1\n",
)  # fmt: skip
KEYS = (
    "extends", "name", "model", "data", "train", "path", "weight", "evaluation", "datasets", "shots", "duration", "warmup",
    "seed", "optimizer", "betas", "test", "tracking", "project", "precision", "trainer", "max_steps", "global_batch_size",
)  # fmt: skip
NAMES = ("trainer.max_steps", "model.name", "data.train", "optimizer.betas", "evaluation.datasets", "seed", "name", "a.b.c", "",
         ".", "extends", "optimizer.betas.0", "evaluation.datasets.0.name", "model", "trainer.duration",
         "data.train.0.path")  # fmt: skip


def configurations(scratch: Path) -> Fuzzer:
    _write_index(scratch / "corpus")
    recipes = []
    for path in sorted(RECIPES.rglob("*.yaml"), key=lambda path: (path.parent != RECIPES, path)):
        if not path.stem.startswith("base") and path.parent.name != "suites":
            recipes.append(load_config(path).model_dump(mode="json", exclude_defaults=True))
    for recipe in recipes:
        recipe["data"]["train"] = str(scratch / "corpus")
        recipe["data"] |= {"cache_dir": None, "shrink_margin": None}
    recipes[0]["data"]["train"] = [{"path": str(scratch / "corpus"), "weight": 1.0, "first_class": 0}] * 2
    return Fuzzer(make=lambda random: _make(recipes, random), check=lambda data: _check(data, scratch / "self.yaml"))


def _write_index(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    blocks = np.arange(1000)  # of 30,000 samples: enough that the recipes' numbers fit
    none = np.zeros(0, np.int64)
    entry = ShardEntry(
        name="a.tar",
        num_bytes=1024 * len(blocks),
        block_offset=1024 * blocks,
        block_bytes=np.full(len(blocks), 1024),
        block_samples=np.full(len(blocks), 30_000, np.uint16),
        skipped_block=none,
        skipped_slot=none.astype(np.uint16),
        num_skipped=0,
        block_content=blocks.astype(np.uint64),
        images_of={3: 30_000 * len(blocks)},
        num_unlabelled=0,
        num_several=0,
    )
    save_index(assemble_index(str(folder), [entry]))


def _make(recipes: list[dict[str, object]], random: Random) -> bytes:
    values = random.choice(recipes)
    if random.random() < 0.7:
        values = mutate_values(values, random, words=KEYS)
    data = yaml.safe_dump(values, sort_keys=False, default_flow_style=random.choice((None, True, False))).encode(
        errors="replace"
    )
    chance = random.random()
    if chance < 0.3:
        data = mutate_bytes(data, random, words=WORDS)
    elif chance < 0.33:
        data = data.replace(b"null", _bomb(random), 1)
    for _ in range(random.choice((0, 0, 0, 0, 1, 2))):
        data += SEPARATOR + _override(random)
    return data


def _bomb(random: Random) -> bytes:
    """Make a value that is large, or deep, or both once its aliases are followed."""
    depth = random.choice(DEPTHS)
    if random.random() < 0.5:
        return b"[" * depth + b"]" * depth
    levels = [b"&a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"&a{i} [{', '.join([f'*a{i - 1}'] * 10)}]".encode() for i in range(1, random.choice((3, 12)))]
    return b"[" + b", ".join(levels) + b"]"


def _override(random: Random) -> bytes:
    name = random.choice(NAMES) if random.random() < 0.8 else random.choice(NAMES) + "." + random.choice(KEYS)
    data = f"{name}={odd_value(random, KEYS)}".encode(errors="replace")
    return (mutate_bytes(data, random, words=WORDS) if random.random() < 0.3 else data).replace(b"\n", b" ")


def _check(data: bytes, path: Path) -> Outcome:
    text, *overrides = data.split(SEPARATOR)
    path.write_bytes(text)
    arguments = [override.decode(errors="surrogateescape") for override in overrides]  # as a command line is decoded
    try:
        config = load_config(path, arguments)
        again = path.with_name("again.yaml")
        again.write_text(config.to_yaml())
        if (reread := load_config(again)) != config:
            fields = [name for name in type(config).model_fields if getattr(reread, name) != getattr(config, name)]
            raise BrokenLaw("a configuration reads back as another", details=", ".join(fields))
        with contextlib.redirect_stdout(None):
            resolve_run(config, world_size=1 + len(data) % 8)
    except PipelineError as error:
        if len(str(error)) > MAX_MESSAGE:
            raise BrokenLaw("a message is too long to be read", details=f"{len(str(error))}: {str(error)[:1000]}") from error
        return "refused"
    return "taken"
