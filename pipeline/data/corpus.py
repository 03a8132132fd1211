"""What a run trains on: one corpus, or a mixture of several with weights."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pipeline.data.index import ShardIndex, check_shards
from pipeline.data.order import RunOrder


@dataclass(frozen=True)
class Corpus:
    """One folder of shards in a mixture."""

    index: ShardIndex
    weight: float = 1.0
    first_class: int = 0  # added to every label: corpora with classes of their own lie one after another


@dataclass(frozen=True)
class Mixture:
    """All corpora of a run, in the order in which their samples are numbered."""

    corpora: tuple[Corpus, ...]

    @property
    def is_one_corpus(self) -> bool:
        return len(self.corpora) == 1

    @property
    def num_samples(self) -> int:
        return sum(corpus.index.num_samples for corpus in self.corpora)

    @cached_property
    def first_sample(self) -> list[int]:
        """Number of each corpus's first sample."""
        sizes = [corpus.index.num_samples for corpus in self.corpora]
        return np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(int).tolist()

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything the sample order depends on."""
        if self.is_one_corpus and self.corpora[0].first_class == 0:
            return self.corpora[0].index.fingerprint
        parts = [f"{c.index.fingerprint} {c.weight!r} {c.first_class}" for c in self.corpora]
        return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()

    def make_order(self, *, seed: int, num_streams: int) -> RunOrder:
        """The order of a run over these corpora."""
        return RunOrder(
            [corpus.index.block_samples for corpus in self.corpora], weights=[corpus.weight for corpus in self.corpora],
            seed=seed, num_streams=num_streams,
        )  # fmt: skip

    def check_shards(self) -> None:
        """Compare every shard's size with its index.

        Raises:
            DataError: naming the first missing shards and those of another size.
        """
        for corpus in self.corpora:
            check_shards(corpus.index)
