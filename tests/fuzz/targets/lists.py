"""Fuzz texts that people write: CSV files, class lists and maps, skip lists, labels."""

from __future__ import annotations

from pathlib import Path
from random import Random

from data_tools.make.classes import Numbering, number_classes, read_class_list, read_class_map
from data_tools.make.sources.csv_file import CsvOptions, list_csv
from data_tools.make.sources.labels import fields_of, read_member
from pipeline.data.shards.class_names import parse_class_names
from pipeline.data.shards.sample import MAX_LABEL, parse_label
from pipeline.data.shards.skips import read_skips, write_skips
from pipeline.errors import DataError
from tests.conftest import encode, make_image
from tests.fuzz.fuzzer import BrokenLaw, Fuzzer, Outcome
from tests.fuzz.mutations import mutate_bytes
from tests.fuzz.values import json_bytes, mutate_values

MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\xff\xfe\0\0", b"\0\0\xfe\xff")
WORDS = (*MARKS, b"\r", b"\r\n", b"\n\n", b"\t", b",", b";", b"|", b'"', b'""', b"\0", b"\xe9", b"\xe2\x80\xa8", b"\xc2\x85",
         b" ", b"train", b"val", b"split", b"image", b"label", b"a.png", b"../", b"007", b"1.0", b"-1", b"nan", b"9" * 5000,
         b"A" * 140_000, b"\xd9\xa3", b"{", b"[", b'"label": ')  # fmt: skip
SEEDS = {
    "csv": (
        b"image,label\na.png,cat\nb.png,dog\n",
        b"a.png;0\nb.png;1\n",
        b"filename\tclass\tsplit\na.png\tcat\ttrain\nb.png\tdog\tval\n",
        b"path,label,fold\r\na.png,0,1\r\nb.png,1 2,2\r\n",
        b'"a.png","cat, or dog"\n',
    ),
    "classes": (
        b"cat\ndog\nbird\n",
        b"\xef\xbb\xbfcat\r\ndog\r\n",
        "caf\u00e9\nna\u00efve\n".encode(),
        "caf\u00e9\n".encode("utf-16"),
    ),
    "map": (b"cat\tanimal\ndog\tanimal\ncar\tthing\n", b"0\t1\n1\t0\n", b"cat\t0\ndog\t7\n"),
    "skips": (
        b"shard\tkey\treason\n000.tar\ta\tdamaged\n000.tar\tb\tcopy\n",
        b"\xef\xbb\xbfshard\tkey\treason\r\nx.tar\t1\tz\r\n",
    ),
    "labels": (
        b"7",
        b"007",
        b" 12\n",
        b"cat",
        b'{"label": 3}',
        b'{"label": "4", "labels": [4, 5]}',
        b"[1, 2]",
        b'"cat"',
        b"7.0",
        b"1e3",
    ),
}
SEPARATOR = b":"


def lists(scratch: Path) -> Fuzzer:
    for number, name in enumerate(("a.png", "b.png")):
        (scratch / name).write_bytes(encode(make_image(number, num_classes=2, size=8), format="PNG"))
    return Fuzzer(make=_make, check=lambda data: _check(data, scratch))


def _make(random: Random) -> bytes:
    kind = random.choice(sorted(SEEDS))
    data = random.choice(SEEDS[kind])
    if kind == "labels" and random.random() < 0.5:
        data = json_bytes(
            mutate_values({"label": 3, "labels": [3, 4], "other": {"label": None}}, random, words=("label",)), random
        )
    elif random.random() < 0.9:
        data = mutate_bytes(data, random, words=WORDS)
    if random.random() < 0.1:
        data = random.choice(MARKS) + data
    return kind.encode() + SEPARATOR + data


def _check(data: bytes, folder: Path) -> Outcome:
    kind, _, text = data.partition(SEPARATOR)
    path = folder / "list"
    path.write_bytes(text)
    checks = {
        b"csv": _check_csv,
        b"classes": _check_classes,
        b"map": _check_map,
        b"skips": _check_skips,
        b"labels": _check_label,
    }
    try:
        checks[kind](text, path)
    except DataError:
        return "refused"
    return "taken"


def _check_csv(text: bytes, path: Path) -> None:
    encoding = (None, "cp1252", "latin-1")[len(text) % 3]
    listing = list_csv(str(path), CsvOptions(encoding=encoding))
    for sample in map(listing.sample, range(len(listing))):
        if not (path.parent / sample.name).is_file() or not sample.labels:
            raise BrokenLaw("a row is taken that names no file or no label", details=str(sample))
    number_classes(listing, Numbering())


def _check_classes(text: bytes, path: Path) -> None:
    names = read_class_list(str(path))
    if len(set(names)) != len(names) or not all(name.strip() for name in names):
        raise BrokenLaw("class names that are not all different", details=repr(names))
    if b"\0" not in text and list(names) != parse_class_names(text, source="list"):
        raise BrokenLaw("two readers find different class names", details=repr(names))


def _check_map(text: bytes, path: Path) -> None:
    targets = read_class_map(str(path))
    (path.parent / "a.csv").write_bytes(b"a.png,cat\nb.png,dog\n")
    listing, _ = number_classes(list_csv(str(path.parent / "a.csv"), CsvOptions()), Numbering(targets=targets, unmapped="drop"))
    if any(label < 0 for label in listing.labels.tolist()):
        raise BrokenLaw("a label that is no class", details=str(listing.labels))


def _check_skips(text: bytes, path: Path) -> None:
    skips = read_skips(path)
    again = path.with_name("again")
    write_skips(again, skips)
    if read_skips(again) != sorted(skips):
        raise BrokenLaw("a skip list reads back as another", details=repr(skips))


def _check_label(text: bytes, path: Path) -> None:
    fields_of(text)
    texts: list[str] | None = None
    for extension in ("cls", "json"):
        try:
            texts = read_member(text, extension, field=None)
        except ValueError:
            texts = None
    label = parse_label(text, shard="x.tar", key="a")
    if abs(label) > MAX_LABEL:
        raise BrokenLaw("a label out of range", details=str(label))
    if texts is not None and len(texts) == 1 and label >= 0 and texts[0].isdigit() and int(texts[0]) != label:
        raise BrokenLaw("make and a training read different labels", details=f"{texts}, {label}")
