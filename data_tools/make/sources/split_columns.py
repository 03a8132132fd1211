"""Read splits from columns: which columns of a list or table give each row's split, and what they say of a row.

A column of values (split: train, test) gives it by itself. Columns of yes and no (is_train: 1, 0; or train, val and test, of
which one is 1) give it together: `train` where is_train is yes and `not-train` where it is no, because it is unknown whether
those rows are for validation or for test. `--source-split COLUMN=VALUE` names the column too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data_tools import splits
from pipeline.errors import DataError

YES, NO = frozenset({"1", "1.0", "true", "t", "yes", "y"}), frozenset({"0", "0.0", "false", "f", "no", "n"})
ANSWER = "choose one with --source-split"


@dataclass(frozen=True)
class Teller:
    """Names the columns that give each row's split.

    Attributes:
        names: names of the columns.
        flags: each column's split, where they hold yes and no; none if the one column holds splits.
        counts: rows by split; "" for those that none of several flags names.
    """

    names: tuple[str, ...]
    flags: tuple[str, ...]
    counts: Mapping[str, int]

    def split(self, values: Sequence[str]) -> str:
        """Return the split of a row.

        Args:
            values: the row's values in these columns.
        """
        return _split(self.flags, [_truth(value) for value in values]) if self.flags else values[0]

    @property
    def source(self) -> str:
        named = ", ".join(map(repr, self.names))
        return f"column {named}" if len(self.names) == 1 else f"columns {named}"


@dataclass(frozen=True)
class Chosen:
    """Says which rows to take.

    Attributes:
        taken: names of splits, as the teller gives them; None for all.
    """

    teller: Teller
    taken: frozenset[str] | None

    def holds(self, values: Sequence[str]) -> bool:
        """Return whether to take a row, by its values in the teller's columns."""
        return self.taken is None or self.teller.split(values) in self.taken


def flag_of(name: str) -> str | None:
    """Return the split that a column of yes and no is about, by its name: is_train, for_test, val; None if it has none."""
    plain = name.strip().lower()
    found = splits.FLAG.fullmatch(plain)
    text = plain if found is None else found[1]
    return splits.split_of(text) if splits.is_split(text) else None


class Survey:
    """Counts what columns hold, row by row.

    Args:
        names: names of the columns, or "number 3" where a list has no header.
        has_names: whether those are names.
        wanted: what the user chose.
    """

    def __init__(self, names: Sequence[str], *, has_names: bool, wanted: Sequence[str] | None) -> None:
        self._names, self._has_names = tuple(names), has_names
        self._explicit = _find_explicit(names, wanted or ())
        self._wanted = [word for word in wanted or () if self._explicit is None]
        self._values: list[Counter[str]] = [Counter() for _ in names]
        self._flags = [i for i, name in enumerate(names) if has_names and flag_of(name) is not None]
        self._joint: Counter[tuple[bool | None, ...]] = Counter()  # what those say together

    def add(self, cells: Sequence[str]) -> None:
        """Count a row's values in these columns."""
        for column, (cell, values) in enumerate(zip(cells, self._values, strict=True)):
            if len(values) <= splits.MAX_SPLIT_VALUES or cell in values or self._is_explicit(column):
                values[cell] += 1
        if self._flags:
            self._joint[tuple(_truth(cells[i]) for i in self._flags)] += 1

    def _is_explicit(self, column: int) -> bool:
        return self._explicit is not None and self._names[column] == self._explicit[0]

    def choose(self, *, source: object) -> Chosen | None:
        """Return the rows to take; None where no column gives splits.

        Raises:
            DataError: several splits and no choice, a choice of what is not there, or a row of two splits.
        """
        if self._explicit is not None:
            return self._choose_explicit(*self._explicit, source=source)
        if strange := [word for word in self._wanted if "=" in word]:
            column = strange[0].partition("=")[0]
            raise DataError(
                f"--source-split {strange[0]}: {source} has no column "
                f"{column!r}{_others(self._names) if self._has_names else ''}"
            )
        tellers = self._find_tellers(source)
        if not tellers:
            return None
        found = (teller for teller in tellers if self._wanted and all(_matches(teller, [word]) for word in self._wanted))
        teller = next(found, tellers[0])
        where = f"{teller.source} of {source}"
        if taken := _matches(teller, self._wanted):
            splits.check_found([word for word in self._wanted if not _matches(teller, [word])], teller.counts, source=where)
            return Chosen(teller, frozenset(taken))
        taken = splits.choose(teller.counts, self._wanted or None, source=where, unit="rows", answer=ANSWER)
        splits.check_found(self._wanted, teller.counts, source=where)
        return Chosen(teller, None if taken is None else frozenset(taken))

    def _choose_explicit(self, name: str, wanted: Sequence[str], *, source: object) -> Chosen:
        counts = self._values[self._names.index(name)]
        taken: set[str] = set()
        for word in wanted:
            same = {text for text in counts if text.lower() == word.lower()}
            if not same and _is_flag(counts) and _truth(word) is not None:
                same = {text for text in counts if _truth(text) == _truth(word)}
            if not same:
                shown = ", ".join(map(str, list(counts)[: splits.MAX_SPLIT_VALUES]))
                raise DataError(f"column {name!r} of {source} holds no {word!r}; it holds {shown}")
            taken |= same
        return Chosen(Teller((name,), (), counts), frozenset(taken))

    def _find_tellers(self, source: object) -> list[Teller]:
        """Return columns that are named so, then those of yes and no, then those whose values are nothing but splits."""
        flags = [i for i in self._flags if _is_flag(self._values[i])]
        few = [i for i, values in enumerate(self._values) if i not in flags and len(values) <= splits.MAX_SPLIT_VALUES]
        named = [i for i in few if self._has_names and splits.is_split_column(self._names[i])]
        others = [i for i in few if i not in named and splits.are_splits(self._values[i])]
        found = [Teller((self._names[i],), (), self._values[i]) for i in named]
        if flags:
            found.append(self._join(flags, source))
        return found + [Teller((self._names[i],), (), self._values[i]) for i in others]

    def _join(self, flags: Sequence[int], source: object) -> Teller:
        of = tuple(flag_of(self._names[i]) or "" for i in flags)
        names = tuple(self._names[i] for i in flags)
        counts: Counter[str] = Counter()
        for truths, count in self._joint.items():
            row = [truth for i, truth in zip(self._flags, truths, strict=True) if i in flags]
            if len({split for split, truth in zip(of, row, strict=True) if truth}) > 1:
                both = [f"{name}=1" for name, truth in zip(names, row, strict=True) if truth]
                raise DataError(
                    f"{source}: {count} rows are of several splits at once ({' and '.join(both)}); choose by one column, as "
                    f"--source-split {both[0]}"
                )
            counts[_split(of, row)] += count
        return Teller(names, of, counts)


def _find_explicit(names: Sequence[str], wanted: Sequence[str]) -> tuple[str, list[str]] | None:
    """Return the column that a choice names, and its values.

    Raises:
        DataError: a choice by several columns.
    """
    by_name = {name.lower(): name for name in names}
    found = [
        (by_name[column.strip().lower()], value.strip())
        for column, equals, value in (word.partition("=") for word in wanted)
        if equals and column.strip().lower() in by_name
    ]
    if not found:
        return None
    if len({name for name, _ in found}) > 1 or len(found) < len(wanted):
        raise DataError(
            f"--source-split {','.join(wanted)}: rows are chosen by one column alone, as {found[0][0]}={found[0][1]}"
        )
    return found[0][0], [value for _, value in found]


def _others(names: Sequence[str]) -> str:
    return f"; it has {', '.join(names)}" if names else ""


def _matches(teller: Teller, wanted: Sequence[str]) -> set[str]:
    """Return wanted splits. Those of one flag may also be wanted by its values: 1, true."""
    found = splits.matches(teller.counts, wanted)
    if len(teller.flags) == 1:
        said = [truth for word in wanted if (truth := _truth(word)) is not None]
        found |= {split for truth in said if (split := _split(teller.flags, [truth])) in teller.counts}
    return found


def _split(flags: Sequence[str], truths: Sequence[bool | None]) -> str:
    if len(flags) == 1:
        return flags[0] if truths[0] else f"not-{flags[0]}"
    return next((split for split, truth in zip(flags, truths, strict=True) if truth), "")


def _truth(text: str) -> bool | None:
    """Return what a value of yes and no means; None for other values."""
    plain = text.strip().lower()
    return True if plain in YES else False if plain in NO else None


def _is_flag(values: Mapping[str, int]) -> bool:
    return bool(values) and all(_truth(value) is not None for value in values)
