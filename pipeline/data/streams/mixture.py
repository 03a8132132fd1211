"""Describe what a run trains on: one corpus, or a mixture of several with weights."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from braceexpand import braceexpand

from pipeline.data.order import RunOrder, share_streams
from pipeline.data.shards.folder import is_remote
from pipeline.data.shards.index import ShardIndex, check_shards
from pipeline.data.shards.index_location import INDEX_NAME
from pipeline.data.wrong_path import advise_on_tar
from pipeline.errors import DataError


@dataclass(frozen=True)
class Corpus:
    """Describes one folder of shards in a mixture."""

    index: ShardIndex
    weight: float = 1.0
    first_class: int = 0  # added to every label: corpora with classes of their own follow one another


@dataclass(frozen=True)
class Mixture:
    """Holds all corpora of a run, in the order in which their samples are numbered."""

    corpora: tuple[Corpus, ...]

    @property
    def is_one_corpus(self) -> bool:
        return len(self.corpora) == 1

    @property
    def num_samples(self) -> int:
        return sum(corpus.index.num_samples for corpus in self.corpora)

    @cached_property
    def first_sample(self) -> list[int]:
        """Return the number of each corpus's first sample."""
        sizes = [corpus.index.num_samples for corpus in self.corpora]
        return np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(int).tolist()

    @cached_property
    def fingerprint(self) -> str:
        """Return a hash of everything the sample order depends on, and of all keys and labels."""
        return self._join([corpus.index.fingerprint for corpus in self.corpora])

    @property
    def order_fingerprint(self) -> str:
        """Return a hash of what the sample order alone depends on, for runs that began before indexes knew labels."""
        return self._join([corpus.index.order_fingerprint for corpus in self.corpora])

    def _join(self, fingerprints: list[str]) -> str:
        if self.is_one_corpus and self.corpora[0].first_class == 0:
            return fingerprints[0]
        parts = [f"{text} {c.weight!r} {c.first_class}" for text, c in zip(fingerprints, self.corpora, strict=True)]
        return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()

    def make_order(self, *, seed: int, num_streams: int, repeats: int = 1) -> RunOrder:
        """Return the order of a run over these corpora."""
        return RunOrder(
            [corpus.index.block_samples for corpus in self.corpora],
            weights=[corpus.weight for corpus in self.corpora],
            seed=seed,
            num_streams=num_streams,
            repeats=repeats,
        )

    def describe(self, *, num_streams: int, repeats: int = 1) -> str:
        """Return the corpora in words."""
        sizes = [corpus.index.num_samples for corpus in self.corpora]
        repeated = f", each {repeats} times" if repeats > 1 else ""
        if self.is_one_corpus:
            return f"{sizes[0]} images an epoch{repeated}"
        parts = zip(self._shares(num_streams), self.corpora, sizes, strict=True)
        return "a mixture: " + ", ".join(
            f"{share:.3%} from {c.index.folder} ({size} images{repeated})" for share, c, size in parts
        )

    def epochs_per_image(self, *, num_streams: int, repeats: int = 1) -> dict[str, float]:
        """Return what one image of the run is of a pass over each corpus: `epoch`, or `epoch/NAME` in a mixture."""
        names = [f"epoch/{Path(corpus.index.folder).name}" for corpus in self.corpora]
        if self.is_one_corpus:
            names = ["epoch"]
        elif len(set(names)) < len(names):
            names = [f"{name}-{number}" for number, name in enumerate(names, start=1)]
        parts = zip(names, self._shares(num_streams), self.corpora, strict=True)
        return {name: share / (repeats * corpus.index.num_samples) for name, share, corpus in parts}

    def _shares(self, num_streams: int) -> list[float]:
        counts = share_streams([corpus.weight for corpus in self.corpora], num_streams)
        return [count / num_streams for count in counts]

    def check_shards(self) -> None:
        """Compare every shard's size with its index.

        Raises:
            DataError: shards are missing or have another size; the message names the first.
        """
        for corpus in self.corpora:
            check_shards(corpus.index)


@dataclass(frozen=True)
class UnindexedShards:
    """Names tars that cannot be indexed: the output of commands (`pipe:`), standard input (`-`), or tars named one by one."""

    urls: tuple[str, ...]

    STDIN = "-"

    @staticmethod
    def is_one(text: str) -> bool:
        """Return whether a setting names such tars rather than an indexed folder."""
        return text == UnindexedShards.STDIN or text.startswith("pipe:") or text.endswith(".tar")

    @staticmethod
    def parse(text: str) -> UnindexedShards:
        """Parse one URL, or many in brace notation: `pipe:zstd -dc /data/{000..999}.tar.zst`."""
        return UnindexedShards(tuple(braceexpand(text)))

    @property
    def fingerprint(self) -> str:
        """Return a hash of the URLs. Their contents are unknown."""
        return hashlib.blake2b("\n".join(self.urls).encode(), digest_size=16).hexdigest()

    @property
    def advice(self) -> str:
        """Return how to make the order exact, and to give epochs a known length."""
        first = self.urls[0]
        if first == self.STDIN or first.startswith("pipe:"):
            return "with plain tars in a folder, `python -m data_tools index FOLDER` and data.train=FOLDER make it exact"
        return f"an index makes it exact. {advise_on_tar(first, index_name=INDEX_NAME, give='type data.train=')}"

    def describe(self, *, num_streams: int, repeats: int = 1) -> str:
        """In words, what is lost without an index."""
        del num_streams, repeats  # belong to an exact order
        return (
            f"{len(self.urls)} tars without an index ({self.urls[0]}, ...). Order is approximate: shards are drawn at random "
            "with replacement and samples pass a shuffle buffer, so nothing says that each is seen once an epoch, and a "
            f"resumed run sees other images than one that was never stopped: {self.advice}"
        )

    def epochs_per_image(self, *, num_streams: int, repeats: int = 1) -> dict[str, float]:
        """Return nothing: how many samples there are is not known."""
        del num_streams, repeats
        return {}

    def check_shards(self) -> None:
        """Check that local files exist. Output of commands and servers is unknown before it is read.

        Raises:
            DataError: local tars are missing; the message names the first.
        """
        local = [url for url in self.urls if url != self.STDIN and not url.startswith("pipe:") and not is_remote(url)]
        if missing := [path for path in local if not Path(path).is_file()]:
            more = f" and {len(missing) - 1} more of {len(local)} tars" if len(missing) > 1 else ""
            raise DataError(
                f"data.train: {missing[0]}{more} does not exist; name the tars as {{000..999}} does, or give their folder"
            )
