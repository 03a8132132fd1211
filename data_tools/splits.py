"""Recognise splits (train, val, test ...) in names of folders, files and columns, and refuse to mix them.

A name is cut into words at separators, at changes of case and between letters and digits; a split is one of these words:
`flowers-train.arrow`, `train2017`, `TestImages`, `imagenet22k-validation-0001.tar`. The rest of the name, without numbers and
words like `images`, is its family: `flowers-train` and `flowers-test` are of one, `test_tube` is of another.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pipeline.errors import DataError

# Every spelling maps to the split that it means: two spellings of one split are not two splits.
SPLITS = {
    "train": "train", "training": "train", "trn": "train",
    "val": "val", "valid": "val", "validation": "val", "validate": "val", "dev": "val", "devel": "val", "minival": "val",
    "test": "test", "testing": "test", "tst": "test",
    "eval": "eval", "evaluation": "eval",
    "holdout": "holdout", "heldout": "holdout",
    "trainval": "trainval", "testdev": "testdev",
    "unlabeled": "unlabeled", "unlabelled": "unlabeled",
}  # fmt: skip
PAIRS = {("train", "val"): "trainval", ("test", "dev"): "testdev", ("held", "out"): "holdout", ("hold", "out"): "holdout"}
GENERIC = frozenset(
    {
        "set", "sets", "data", "dataset", "image", "images", "img", "imgs", "photo", "photos", "picture", "pictures",
        "folder", "split", "splits", "part", "shard", "shards", "jpg", "jpeg", "png", "of", "new", "all", "full", "file",
        "files", "raw", "cropped", "resized",
    }
)  # fmt: skip
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_]+")
GLUED = re.compile(rf"({'|'.join(sorted(SPLITS, key=len, reverse=True))})(s|sets?|data|images?|imgs?|splits?|files?)")
CACHE = re.compile(r"(cache-[0-9a-f]{8,})(?![0-9a-f])")
OF_MANY = re.compile(r"(.+)-\d{5}-of-\d{5}(?!\d)")
COLUMNS = frozenset(
    {"split", "splits", "subset", "partition", "fold", "folds", "usage", "set", "phase", "split_name", "data_split"}
)
FLAG = re.compile(r"(?:is|in|for)[_ ]?(.+)")
UNNAMED = "unnamed"  # what to type for files and rows whose names contain no split
DIGITS = re.compile(r"\d+")
NUMBERED_PART = re.compile(
    r"(?:parts?|shards?|chunks?|batch(?:es)?|buckets?|volumes?|vol|disk|data|images?|imgs?|jpe?gs?|photos?|folds?|splits?|sets?|subsets?|"
    r"archive|zip|tars?)[-_. ]?\d+",
    re.IGNORECASE,
)
MAX_SPLIT_VALUES = 20
LISTS = frozenset({".txt", ".csv", ".tsv", ".json", ".jsonl", ".lst", ".mat"})
FOLDERS_OF_LISTS = frozenset(
    {"meta", "metadata", "split", "splits", "list", "lists", "annotation", "annotations", "label", "labels", "imagesets"}
)
CACHE_ENTRIES = 1 << 16


Unmarked = Literal["refuse", "allow"]


@dataclass(frozen=True)
class SplitName:
    """Holds a name that contains a split word.

    Attributes:
        split: what the word means.
        word: as it is written, in lower case.
        family: what else the name says, without numbers and generic words.
        part: the part of a path that holds the name.
    """

    split: str
    word: str
    family: tuple[str, ...]
    part: Literal["folder", "file"] = "file"


def parse_split(name: str) -> SplitName | None:
    """Return the split in a name; None if there is none."""
    words = _words(name)
    for word, width in words:
        split = _meaning(word)
        if split is not None:
            others = (w for w, _ in words if not w.isdecimal() and w not in GENERIC and len(w) > 1 and _meaning(w) != split)
            return SplitName(split, word if width == 1 else split, tuple(others))
    return None


def split_of(name: str) -> str | None:
    """Return the split that a name means, by its spelling; None if it names none."""
    found = parse_split(name)
    return None if found is None else found.word


def meaning(text: str) -> str:
    """Return what a split's name means. `validation` and `VAL` mean the same. Other words mean themselves."""
    found = parse_split(text)
    return text.strip().lower() if found is None or found.family else found.split


def _words(name: str) -> list[tuple[str, int]]:
    """Return words in lower case, those that make up a split together as one, and how many words each consists of."""
    words = [word.lower() for word in WORD.findall(name)]
    joined: list[tuple[str, int]] = []
    index = 0
    while index < len(words):
        two = (words[index], words[index + 1]) if index + 1 < len(words) else ("", "")
        pair = PAIRS.get(two) or PAIRS.get((SPLITS.get(two[0], ""), SPLITS.get(two[1], "")))
        joined.append((words[index], 1) if pair is None else (pair, 2))
        index += 1 if pair is None else 2
    return joined


def _meaning(word: str) -> str | None:
    glued = GLUED.fullmatch(word)
    return SPLITS.get(glued[1] if glued else word)


def split_of_file(name: str) -> str:
    """Return the split that a table's or tar's name contains; "" if none.

    Hugging Face's NAME-00000-of-00002 contains it whatever NAME is. A `map` leaves `cache-HASH` there: the same rows once more.
    """
    if cache := CACHE.match(name):
        return cache[1]
    if word := split_of(name.partition(".")[0] if "." in name else name):
        return word
    return match[1] if (match := OF_MANY.match(name)) else ""


def lists_next_to(folder: Path) -> list[Path]:
    """Return split lists next to a folder of all images: CUB's train_test_split.txt, Food-101's meta/train.txt."""
    path = folder.absolute()
    if path.name.lower() not in GENERIC:
        return []
    found: list[Path] = []
    try:
        for child in sorted(path.parent.iterdir()):
            inner = [child] if child.is_file() else sorted(child.iterdir()) if child.name.lower() in FOLDERS_OF_LISTS else []
            found += [path for path in inner if path.suffix.lower() in LISTS and parse_split(path.stem) is not None]
    except OSError:  # an unreadable file says nothing
        return []
    return found


def select_shards(names: Sequence[str], split: str | None, *, source: object) -> list[str]:
    """Return those tars of a folder that are to be indexed as one corpus.

    Args:
        split: what the user asked for; several with commas between them.

    Raises:
        DataError: several splits and no choice, or a choice of what is not there.
    """
    wanted = None if split is None else parse_wanted(split)
    groups = group_files(names)
    counts = {found: len(of_split) for found, of_split in groups.items()}
    taken = choose(
        counts,
        wanted,
        source=source,
        unit="tars",
        answer="index one of them with --source-split, or move each to a folder of its own",
    )
    check_found(wanted, counts, source=source)
    return [name for name in names if taken is None or split_of_file(name) in taken]


def parse_wanted(text: str) -> tuple[str, ...]:
    """Return the splits that a user names, with commas between them."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def is_cache(name: str) -> bool:
    """Return whether a `map` of Hugging Face's library left a table."""
    return CACHE.match(name) is not None


def group_files(names: Iterable[str]) -> dict[str, list[str]]:
    """Group file names by their split."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(split_of_file(name), []).append(name)
    return groups


def choose(
    counts: Mapping[str, int],
    wanted: Collection[str] | None,
    *,
    source: object,
    unit: str,
    answer: str,
    unmarked: Unmarked = "refuse",
) -> set[str] | None:
    """Return which of the found splits to take; None for all, where there is only one.

    Args:
        counts: counts by split, as the names spell it; "" for names without a split.
        wanted: the user's choice; it may be found elsewhere.
        unit: what is counted.
        answer: the advice: what to type.
        unmarked: `refuse` if names without a split next to those of one are a reason to ask.

    Raises:
        DataError: several splits and no choice.
    """
    taken = matches(counts, wanted or ())
    if taken:
        return taken
    different = {meaning(split) for split in counts if split or unmarked == "refuse"}
    if len(different) > 1 and wanted:
        check_found(wanted, counts, source=source)
    if len(different) > 1:
        raise DataError(f"{source} holds the splits {describe(counts, unit)}; {answer}")
    return None


def check_found(wanted: Collection[str] | None, found: Collection[str], *, source: object) -> None:
    """Refuse a choice of what does not exist.

    Raises:
        DataError: the message names it and what exists.
    """
    if missing := [word for word in wanted or () if not _matches(found, word)]:
        shown = ", ".join(_shown(split) for split in found)
        raise DataError(f"{source} holds no split {missing[0]!r}; it holds {shown or 'no splits'}")


def matches(splits: Collection[str], wanted: Iterable[str]) -> set[str]:
    """Return those splits that are wanted, by their spelling or else by their meaning."""
    return {split for word in wanted for split in _matches(splits, word)}


def _matches(splits: Collection[str], word: str) -> set[str]:
    if "=" in word:  # a choice for a column, which it names
        return set()
    if word.lower() == UNNAMED:
        return {split for split in splits if not split}
    exact = {split for split in splits if split.lower() == word.lower()}
    return exact or {split for split in splits if split and meaning(split) == meaning(word)}


def describe(counts: Mapping[str, int], unit: str) -> str:
    """Return the splits with their counts."""
    return ", ".join(
        f"{_shown(split)} ({counts[split]} {unit if counts[split] != 1 else unit.removesuffix('s')})" for split in counts
    )


def _shown(split: str) -> str:
    return split or UNNAMED


def is_split_column(name: str) -> bool:
    """Return whether a column's name says that it holds each row's split: split, subset, fold, is_train, is_valid ..."""
    plain = name.strip().lower()
    flag = FLAG.fullmatch(plain)
    return plain in COLUMNS or (flag is not None and (found := parse_split(flag[1])) is not None and not found.family)


def is_split(value: str) -> bool:
    """Return whether a value says a split and nothing else."""
    found = parse_split(value)
    return found is not None and not found.family


def are_splits(values: Collection[str]) -> bool:
    """Return whether values of a column, whatever its name, are splits: at least two, and nothing else."""
    if not 2 <= len(values) <= MAX_SPLIT_VALUES:
        return False
    named = [value for value in values if value.strip()]
    return all(is_split(value) for value in named) and len({meaning(value) for value in named}) > 1


def splits_among_classes(names: Sequence[str]) -> list[str]:
    """Return those of some class names (of folders, of tars) that are splits, not classes.

    Two splits of one family are splits whatever lies next to them. A single one, like the `train` among vehicles, is
    a class unless it is alone.
    """
    found = {name: one for name in names if (one := parse_split(name)) is not None}
    if len(found) == len(names) and (len(names) == 1 or not any(one.family for one in found.values())):
        return list(found)
    families: dict[tuple[str, ...], set[str]] = {}
    for one in found.values():
        families.setdefault(one.family, set()).add(one.split)
    return [name for name, one in found.items() if len(families[one.family]) > 1]


def numbered_parts(names: Collection[str]) -> list[str]:
    """Return names that number the parts of something (images_001, fold1, shard-0002); none if they are classes."""
    found = sorted(name for name in names if NUMBERED_PART.fullmatch(name))
    return found if len(found) > 1 or len(found) == len(names) else []


def parse_path(path: str) -> SplitName | None:
    """Return the split in a path's folders, the outermost first, or else in its file's name: `train_0001.jpg`, `x_val_17.png`.

    A file's name counts where nothing but a number follows the word.
    """
    *folders, name = path.replace("\\", "/").split("/")
    for folder in folders:
        found = _parse_cached(folder)
        if found is not None and not found.family:
            return replace(found, part="folder")
    stem = name.partition(".")[0]
    return _parse_stem(DIGITS.sub("0", stem)) if stem[-1:].isdigit() else None


@functools.lru_cache(maxsize=CACHE_ENTRIES)
def _parse_stem(stem: str) -> SplitName | None:
    found = parse_split(stem)
    return found if found is not None and re.search(rf"(?:^|[^a-z]){found.word}[^a-z]*\d$", stem.lower()) else None


_parse_cached = functools.lru_cache(maxsize=CACHE_ENTRIES)(parse_split)


def name_counts(found: Mapping[SplitName | None, int]) -> Counter[str]:
    """Return counts by split, as it is spelt; "" for none. Words that are splits in one family of names alone are none."""
    families: dict[tuple[str, ...], set[str]] = {}
    for one in found:
        if one is not None:
            families.setdefault(one.family, set()).add(one.split)
    counts: Counter[str] = Counter()
    for one, count in found.items():
        is_split = one is not None and (len(families[one.family]) > 1 or not one.family)
        counts[one.word if one is not None and is_split else ""] += count
    return counts


def unmarked_rule(found: Iterable[SplitName | None]) -> Unmarked:
    """Say what paths without a split are next to those with one: a folder `test` separates its files from the rest."""
    is_apart = any(one is not None and one.part == "folder" and one.split != "train" for one in found)
    return "refuse" if is_apart else "allow"


def path_in(path: str, taken: Collection[str]) -> bool:
    """Return whether a path is of one of these splits."""
    found = parse_path(path)
    return (found.word if found is not None else "") in taken
