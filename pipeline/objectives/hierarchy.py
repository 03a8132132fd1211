"""Read a hierarchy of classes: an image of a class is an image of the class's ancestors too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeline.errors import ConfigError

Node = int | str  # a class, or a name that is none
MAX_DIGITS = 10


@dataclass(frozen=True)
class Hierarchy:
    """Holds each class and its ancestors: `members[ends[c - 1] : ends[c]]` are those of class c, itself the first."""

    members: Tensor  # (M,) int64
    ends: Tensor  # (C,) int64

    @property
    def num_with_ancestors(self) -> int:
        """Return the classes that have an ancestor among the classes."""
        return int((torch.diff(self.ends, prepend=self.ends.new_zeros(1)) > 1).sum())

    def with_ancestors(self, labels: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        """Return labels (L,) and ends (B,) of images, each label followed by its class's ancestors.

        An ancestor of two labels of an image comes twice.
        """
        members, class_ends = self.members.to(labels.device), self.ends.to(labels.device)
        counts = torch.diff(class_ends, prepend=class_ends.new_zeros(1))
        found = counts[labels]  # (L,) classes that each label becomes
        last = found.cumsum(0)
        total = int(last[-1]) if len(last) else 0
        inside = torch.arange(total, device=labels.device) - torch.repeat_interleave(last - found, found)
        expanded = members[torch.repeat_interleave(class_ends[labels] - found, found) + inside]
        return expanded, torch.cat([last.new_zeros(1), last])[ends]


def read_hierarchy(path: str, *, num_classes: int, class_names: Sequence[str] | None) -> Hierarchy:
    """Read lines of two words, a class and a parent of it: class numbers, or names as in classes.txt. `#` begins a comment.

    A name that is no class may lie between two classes: WordNet has many such. A class then has the ancestors beyond it.

    Raises:
        ConfigError: the file cannot be read, a line is not two words, a number is no class, a class is its own ancestor, or
            no class has an ancestor.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"objective.hierarchy={path} cannot be read: {error}") from error
    numbers = {name: number for number, name in enumerate(class_names or ())}
    parents: dict[Node, list[Node]] = {}
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].split()
        if words and len(words) != 2:
            raise ConfigError(f"{path}:{number}: {line[:60]!r} is not two words, a class and its parent")
        if words:
            child, parent = (_node(word, numbers, num_classes=num_classes, place=f"{path}:{number}") for word in words)
            parents.setdefault(child, []).append(parent)
    closures = [_ancestors(number, parents, path=path) for number in range(num_classes)]
    if not any(len(closure) > 1 for closure in closures):
        known = f"numbers are 0 to {num_classes - 1}" + ("" if class_names is None else f", names are {class_names[0]!r}, ...")
        raise ConfigError(f"{path}: no class has an ancestor among the classes; {known}")
    return Hierarchy(
        members=torch.tensor([member for closure in closures for member in closure]),
        ends=torch.tensor([len(closure) for closure in closures]).cumsum(0),
    )


def _node(word: str, numbers: Mapping[str, int], *, num_classes: int, place: str) -> Node:
    if word in numbers:
        return numbers[word]
    if not (word.isascii() and word.isdigit()):
        return word
    if len(word) > MAX_DIGITS or int(word) >= num_classes:
        raise ConfigError(f"{place}: {word[:40]} is no class; model.num_classes={num_classes}, and they count from 0")
    return int(word)


def _ancestors(number: int, parents: Mapping[Node, Sequence[Node]], *, path: str) -> list[int]:
    """Return a class, then those of its ancestors that are classes, each once."""
    found: dict[Node, None] = {number: None}
    waiting = list(parents.get(number, ()))
    while waiting:
        ancestor = waiting.pop()
        if ancestor == number:
            raise ConfigError(f"{path}: class {number} is its own ancestor; remove one of the lines of that circle")
        if ancestor not in found:
            found[ancestor] = None
            waiting += parents.get(ancestor, ())
    return [node for node in found if isinstance(node, int)]
