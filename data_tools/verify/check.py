"""Decode every sample as training would, and say what is wrong with which: a table, a report and a skip list.

FOLDER/
  skip.tsv        samples to leave out, for `index --skip`
  verify.json     counts and examples by kind of defect
  .verify/        what was found in each shard, so that a killed command goes on where it stopped
"""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import PIL
import simplejpeg

from data_tools.failures import WorkerKilledError
from data_tools.inspect_image import Finding, inspect_image
from data_tools.parallel import Workers, remember, write_json
from data_tools.shards import Shard, ShardList, is_whole, shard_version
from data_tools.verify.findings import KINDS, Verification, describe
from pipeline.data.shards.class_names import class_names_of
from pipeline.data.shards.folder import UnreachableError
from pipeline.data.shards.sample import IMAGE_EXTENSIONS, LABEL_EXTENSIONS, find_member, parse_labels
from pipeline.data.shards.skips import Skip, read_skips, write_skips
from pipeline.data.shards.tar import TarSample, find_defect
from pipeline.errors import DataError

RULES_VERSION = 3  # of what is looked for: findings of another version are computed again
MAX_IMAGE_BYTES = 1 << 30
EXAMPLES_PER_KIND = 5


@dataclass(frozen=True)
class VerifyOutputs:
    """Names the files that findings are written to."""

    skip_list: Path
    report: Path
    work: Path


def default_outputs(shards: ShardList, *, skip_list: str | None, report: str | None, work: str | None) -> VerifyOutputs:
    """Return where findings go: next to the shards, or into the current folder for a URL, unless an option says otherwise."""
    folder, prefix = shards.output_folder, shards.output_prefix
    return VerifyOutputs(
        skip_list=Path(skip_list) if skip_list else folder / f"{prefix}skip.tsv",
        report=Path(report) if report else folder / f"{prefix}verify.json",
        work=Path(work) if work else folder / ".verify",
    )


def verify_shards(
    shards: ShardList, *, outputs: VerifyOutputs, workers: Workers, skip_lists: Sequence[str] = ()
) -> Verification:
    """Check every sample of some shards, and write the skip list and the report.

    Args:
        skip_lists: files of samples that are left out already; they are not checked, and go into the new list too.

    Raises:
        DataError: findings cannot be written, or a worker was killed.
    """
    classes = class_names_of(shards.folder)
    known: dict[str, set[str]] = defaultdict(set)
    given = {skip for file in skip_lists for skip in read_skips(file)}
    for skip in given:
        known[skip.shard].add(skip.key)
    write_json(outputs.work / "about.json", {"folder": shards.folder, "is": "what `verify` found; may be deleted"})
    look = partial(_verify_shard, shards.folder, outputs.work, None if classes is None else len(classes))
    tasks = [(name, frozenset(known[name])) for name in shards.names]
    start = time.perf_counter()
    try:
        done = workers.map(
            look,
            tasks,
            description="verify shards",
            unit="shard",
            name_task=lambda task: task[0],
            count_images=lambda _, result: result["num_samples"],
            are_kept=True,
        )
        results = {task[0]: result for task, result in done}
    except WorkerKilledError as error:
        raise _name_samples(error, outputs.work) from error
    except MemoryError as error:
        raise DataError(f"{error}; what is finished is kept") from error
    for name in shards.compressed:
        results[name] = _unread(f"{name} is compressed; range reads need plain tars: `gunzip` (or `zstd -d`) it first")
    found = _summarise(shards.folder, results, elapsed_s=time.perf_counter() - start)
    write_json(outputs.report, describe(found, skip_list=outputs.skip_list))
    try:
        write_skips(outputs.skip_list, {*given, *found.skips})
    except OSError as error:
        raise DataError(f"skip list {outputs.skip_list} cannot be written: {error}") from error
    return found


def _verify_shard(folder: str, work: Path, num_classes: int | None, task: tuple[str, frozenset[str]]) -> dict[str, Any]:
    """Return what is wrong with one shard, checked now or remembered."""
    name, known = task
    looked_at: list[str] = []

    def look() -> dict[str, Any]:
        looked_at.append(name)
        return check_shard(folder, name, num_classes=num_classes, known=known, mark=work / f"{name}.at")

    try:
        facts = (
            RULES_VERSION,
            PIL.__version__,
            simplejpeg.__version__,
            shard_version(folder, name),
            num_classes,
            sorted(known),
        )
        result = remember(look, path=work / f"{name}.json", facts=facts, is_final=is_whole)
    except UnreachableError as error:  # not remembered: it may be reachable the next time
        result = _unread(str(error))
    return {**result, "is_new": bool(looked_at), "is_known": result["broken"] is None and not looked_at}


@dataclass
class _Tally:
    """Counts what is found in one shard, while it is being read."""

    num_samples: int = 0
    num_readable: int = 0
    num_passed_over: int = 0
    is_empty: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))
    skips: list[tuple[str, str]] = field(default_factory=list)

    def add(self, key: str, found: Sequence[Finding]) -> None:
        self.num_samples += 1
        for kind, reason in {finding.kind: finding.reason for finding in reversed(found)}.items():
            self.counts[kind] += 1
            if len(self.examples[kind]) < EXAMPLES_PER_KIND:
                self.examples[kind].append((key, reason))
        left_out = [finding for finding in found if KINDS[finding.kind].effect != "kept"]
        if left_out:
            self.skips.append((key, "; ".join(f"{KINDS[kind].title}: {reason}" for kind, reason in left_out)))


def _unread(reason: str) -> dict[str, Any]:
    return {**_result(_Tally(), broken=reason), "is_new": False, "is_known": False}


def _result(tally: _Tally, *, broken: str | None) -> dict[str, Any]:
    return {**vars(tally), "broken": broken}


def check_shard(
    folder: str, name: str, *, num_classes: int | None, known: frozenset[str] = frozenset(), mark: Path
) -> dict[str, Any]:
    """Check every sample of a shard.

    Args:
        num_classes: number of classes in classes.txt, if it exists.
        known: keys to pass over.
        mark: file that holds the key of the current sample, for whoever finds this process killed.

    Raises:
        UnreachableError: it cannot be read.
    """
    tally, seen, repeated, broken = _Tally(), set[str](), list[str](), None
    with _marking(mark) as descriptor, Shard(folder, name) as shard:
        try:
            for sample in shard.samples():
                key = os.fsencode(sample.key)  # tars of other systems hold names that are not UTF-8
                os.pwrite(descriptor, len(key).to_bytes(4, "little") + key, 0)
                if sample.key in seen:
                    repeated.append(sample.key)
                seen.add(sample.key)
                if sample.key in known:
                    tally.num_passed_over += 1
                else:
                    found = list(_check_sample(shard, sample, num_classes))
                    tally.add(sample.key, found)
                    tally.num_readable += not any(
                        f.kind in ("no_image", "repeated_member") or KINDS[f.kind].effect == "replaced" for f in found
                    )
            tally.is_empty = not seen and shard.is_empty_tar()
        except UnreachableError:
            raise
        except DataError as error:
            broken = str(error)
    if broken is None and not seen and not tally.is_empty:
        broken = f"{name}: no samples; members must be named KEY.EXTENSION, for example 000017.jpg and 000017.cls"
    elif broken is None and repeated:
        broken = (
            f"{name}: {len(repeated)} keys come again ({repeated[0]!r} first): samples with the same key, or members apart "
            f"from each other; `python -m data_tools make` packs such tars again"
        )
    return _result(tally, broken=broken)


@contextmanager
def _marking(mark: Path) -> Iterator[int]:
    mark.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
        mark.unlink(missing_ok=True)


def _name_samples(error: WorkerKilledError, work: Path) -> DataError:
    """Return the same error, with the samples that the workers died at."""
    samples = []
    for name, _ in error.tasks:
        mark = work / f"{name}.at"
        data = mark.read_bytes() if mark.exists() else b""
        if data:
            samples.append(f"{name} {os.fsdecode(data[4 : 4 + int.from_bytes(data[:4], 'little')])!r}")
    if not samples:
        return error
    return DataError(
        f"{error}. It was at sample {' and '.join(samples)}; if it dies there again, name that sample in a skip list "
        f"(lines of shard, key and reason, separated by tabs, below such a line of titles) and give it as --skip"
    )


def _check_sample(shard: Shard, sample: TarSample, num_classes: int | None) -> Iterator[Finding]:
    defect = find_defect(sample)
    if defect is not None:  # it is unknown which of two members is meant
        yield Finding(defect.kind, f"it {defect.reason}")
    if defect is not None and defect.kind == "repeated_member":
        return
    image, label = find_member(sample, IMAGE_EXTENSIONS), find_member(sample, LABEL_EXTENSIONS)
    extensions = [member.extension for member in sample.members]
    if image is None:
        yield Finding("no_image", f"it has {', '.join(extensions)}")
    elif image.length > MAX_IMAGE_BYTES:
        yield Finding("oversized", f"{image.length} bytes")
    else:
        try:
            yield from inspect_image(shard.read(image), extension=image.extension)
        except MemoryError as error:
            raise MemoryError(
                f"{shard.name}: not enough memory to decode sample {sample.key!r}; try fewer --workers"
            ) from error
        if sum(extension in IMAGE_EXTENSIONS for extension in extensions) > 1:
            yield Finding("several_images", f"it has {', '.join(extensions)}; {image.extension} is used")
    if label is None:
        yield Finding("no_label", f"it has {', '.join(extensions)}")
        return
    text = shard.read(label)
    try:
        numbers = parse_labels(text, shard=shard.name, key=sample.key)
    except DataError:
        yield Finding("bad_label", repr(text[:40].decode(errors="replace")))
        return
    outside = [number for number in numbers if number < 0 or (num_classes is not None and number >= num_classes)]
    if outside:
        named = "classes count from 0" if num_classes is None else f"classes.txt names 0 to {num_classes - 1}"
        yield Finding("label_outside", f"{outside[0]}; {named}")


def _summarise(folder: str, results: dict[str, dict[str, Any]], *, elapsed_s: float) -> Verification:
    counts: Counter[str] = Counter()
    examples: dict[str, list[Skip]] = defaultdict(list)
    for name, result in sorted(results.items()):
        counts.update(result["counts"])
        for kind, found in result["examples"].items():
            room = EXAMPLES_PER_KIND - len(examples[kind])
            examples[kind] += [Skip(name, key, reason) for key, reason in found[:room]]
    # A broken shard is repaired or removed before it is indexed: what to skip in it is found out then.
    whole = {name: result for name, result in sorted(results.items()) if result["broken"] is None}
    new = sum(result["num_readable"] for result in results.values() if result["is_new"])
    num_readable = sum(result["num_readable"] for result in results.values())
    return Verification(
        folder=folder,
        num_shards=len(results),
        num_samples=sum(result["num_samples"] for result in results.values()),
        num_readable=num_readable,
        num_empty_shards=sum(result["is_empty"] for result in results.values()),
        num_known_shards=sum(result["is_known"] for result in results.values()),
        num_passed_over=sum(result["num_passed_over"] for result in results.values()),
        counts={kind: counts[kind] for kind in KINDS if counts[kind]},
        examples={kind: examples[kind] for kind in KINDS if counts[kind]},
        broken_shards={name: result["broken"] for name, result in sorted(results.items()) if result["broken"] is not None},
        skips=[Skip(name, key, reason) for name, result in whole.items() for key, reason in result["skips"]],
        images_per_s=new / elapsed_s if new else None,
    )
