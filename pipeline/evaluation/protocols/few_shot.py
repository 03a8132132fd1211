"""Measure few-shot accuracy: regularised least squares from frozen features to -1/+1 class targets, in closed form.

This is the paper's few-shot measure (section 4.1, "Metrics"), with the settings of big_vision's `evaluators/fewshot_lsr.py`:
features standardised by the support set, a constant feature of 100 as bias, ridge penalty 2^10, support drawn by
`numpy.random.default_rng(seed)`. The older form of scenic's `train_lib/transfer/fewshot_utils.py` takes the first images of
each class instead of a draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from pipeline.data.class_counts import ClassCounts
from pipeline.evaluation.measured import Measured
from pipeline.evaluation.protocols.base import FeatureProtocol, Setting
from pipeline.evaluation.protocols.classifier import row_norms
from pipeline.evaluation.protocols.ridge import fit_nested
from pipeline.evaluation.requirements import short_classes, takes_all
from pipeline.evaluation.splits import Splits
from pipeline.section import Seed

L2_PENALTY = 2.0**10


class FewShot(FeatureProtocol):
    """Fits a ridge regression to a few images a class, drawn by each seed (paper, section 4.1)."""

    protocol: Literal["few_shot"] = "few_shot"
    shots: tuple[PositiveInt, ...] = Field(default=(1, 5, 10, 25), description="images a class")
    seeds: tuple[Seed, ...] = Field(default=(0, 1, 2), description="draws of the support set; form big_vision alone has them")
    form: Literal["big_vision", "scenic"] = Field(
        default="big_vision", description="big_vision: images of a class at random; scenic: its first ones in train, no draw"
    )
    l2: float = Field(default=L2_PENALTY, gt=0, description="ridge penalty of standardised features")

    @model_validator(mode="after")
    def _nothing_is_there_twice(self) -> Self:
        for key in ("shots", "seeds"):
            values = getattr(self, key)
            repeated = next((value for value in values if values.count(value) > 1), None)
            if repeated is not None:
                once = ",".join(str(value) for value in dict.fromkeys(values))
                raise ValueError(f"{key}: {repeated} is there {values.count(repeated)} times; write {key}=[{once}]")
        return self

    def settings(self) -> list[Setting]:
        form = "" if self.form == "big_vision" else f"{self.form} "
        penalty = "" if self.l2 == L2_PENALTY else f" l2 {self.l2:g}"
        seeds = self.seeds if self.form == "big_vision" else (None,)
        return [Setting(f"{form}{shots}-shot{penalty}", seed, (("shots", shots),)) for shots in self.shots for seed in seeds]

    def measure(self, splits: Splits, setting: Setting) -> Measured:
        """Measure a setting. If no class has more than `shots` images, all of train is every seed's support: one counts."""
        shots = int(dict(setting.parameters)["shots"])
        counts = ClassCounts.of_labels(splits.train_labels.cpu())
        key = self._key(counts, shots, setting.seed)
        if key not in splits.known:
            splits.known.update(self._measure_draw(splits, counts, setting.seed))
        return splits.known[key]

    def _key(self, counts: ClassCounts, shots: int, seed: int | None) -> tuple[Any, ...]:
        return ("few_shot", self.form, self.l2, shots, None if takes_all(counts, shots) else seed)

    def _measure_draw(self, splits: Splits, counts: ClassCounts, seed: int | None) -> dict[Any, Measured]:
        """Measure all shots of a draw that are not known yet: larger supports add to the sums of smaller ones."""
        keys = {shots: self._key(counts, shots, seed) for shots in sorted(self.shots)}
        missing = {key: shots for shots, key in keys.items() if key not in splits.known}
        order = order_images(splits.train_labels.cpu(), seed=seed)
        supports = [order.support(shots).to(splits.train.device) for shots in missing.values()]
        fits = fit_nested(splits.train, splits.train_labels, supports=supports, num_classes=splits.num_classes, l2=self.l2)
        norms = row_norms(splits.test)
        found = {}
        for (key, shots), support, fitted in zip(missing.items(), supports, fits, strict=True):
            detail = {
                "short_classes": len(short_classes(counts, shots)),
                "support": "all" if takes_all(counts, shots) else "drawn",
                "support_images": len(support),
            }
            found[key] = Measured(fitted.accuracy(splits.test, splits.test_labels, norms=norms), detail)
        return found

    def notes(self, train: ClassCounts, *, class_names: Sequence[str] | None, path: str) -> list[str]:
        short = [shots for shots in self.shots if short_classes(train, shots)]
        if not short:
            return []
        smallest = int(train.images.argmin())
        count, label = int(train.images[smallest]), int(train.ids[smallest])
        name = f" ({class_names[label]})" if class_names is not None and label < len(class_names) else ""
        whole = [shots for shots in short if takes_all(train, shots)]
        parts = [f"{len(short_classes(train, shots))} of {len(train.ids)} classes at {shots}-shot" for shots in short]
        seeds = f"; at {', '.join(map(str, whole))} that is all of train, whatever the seed" if whole else ""
        enough = [shots for shots in self.shots if shots not in short] or [count]
        return [
            f"class {label}{name} has {count} train image{'s' * (count != 1)}, and {path}.shots asks for {_listed(short)}. "
            "A class with "
            f"fewer gives all that it has ({', '.join(parts)}){seeds}. Shots that every class has: "
            f"{path}.shots='[{', '.join(map(str, enough))}]'"
        ]

    def warnings(self, row: dict[str, Any]) -> list[str]:
        found = []
        if row.get("short_classes"):
            found.append(f"{row['dataset']}: {row['short_classes']} classes have fewer than {row['shots']} train images")
        if row.get("support") == "all":
            found.append(
                f"{row['dataset']} {row['shots']}-shot: no class has more images, so it takes all "
                f"{row['support_images']} of train: no spread over seeds"
            )
        return found


def _listed(numbers: list[int]) -> str:
    *others, last = map(str, numbers)
    return f"{', '.join(others)} and {last}" if others else last


@dataclass(frozen=True)
class ImageOrder:
    """Holds the images of train in the order in which supports take them: the first image of each class, the second, ..."""

    indices: Tensor  # (N,) indices into the train split
    ranks: np.ndarray  # (N,) place of each within its class, rising

    def support(self, shots: int) -> Tensor:
        """Return the indices of up to `shots` images a class. A smaller support is a prefix of a larger one."""
        return self.indices[: int(np.searchsorted(self.ranks, shots))]


def order_images(labels: Tensor, *, seed: int | None) -> ImageOrder:
    """Order images (N,) at random under `seed`, as big_vision draws them; None: as they are, as scenic takes them."""
    array = labels.numpy()
    by_class = np.argsort(array, kind="stable")
    counts = np.unique(array, return_counts=True)[1]
    starts = np.cumsum(counts) - counts
    if seed is not None:
        generator = np.random.default_rng(seed)
        by_class = np.concatenate([generator.permutation(members) for members in np.split(by_class, starts[1:])])
    ranks = np.arange(len(array)) - np.repeat(starts, counts)
    order = np.argsort(ranks, kind="stable")
    return ImageOrder(torch.from_numpy(by_class[order]), ranks[order])
