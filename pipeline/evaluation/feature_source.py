"""Give the features of a split: from the cache, or computed by this process and its replicas, which do other work too."""

from __future__ import annotations

from typing import Any

from pipeline.data.images.crop import EvalTransform
from pipeline.data.shards.index import ShardIndex
from pipeline.evaluation.clock import Clock
from pipeline.evaluation.feature_cache import FeatureCache, key_of_features
from pipeline.evaluation.feature_kinds import FeatureKind
from pipeline.evaluation.features import Features, FeatureShare, join
from pipeline.evaluation.reading import Reading
from pipeline.evaluation.replicas import Replicas, Share
from pipeline.run.weights import Weights


class FeatureSource:
    """Gives features of splits.

    Args:
        cache: None: nothing is kept.
        num_replicas: processes that share a split's images.

    Attributes:
        num_computed: splits that were computed, not found.
        clock: counts what the time goes to.

    Raises:
        ConfigError: there are fewer GPUs than replicas.
    """

    def __init__(self, reading: Reading, *, cache: FeatureCache | None, num_replicas: int) -> None:
        self.reading = reading
        self.num_computed = 0
        self.clock = Clock()
        self._cache = cache
        self._replicas = Replicas(num_replicas, reading, self.clock)

    def features(
        self, weights: Weights, index: ShardIndex, *, kind: FeatureKind, transform: EvalTransform, description: str
    ) -> Features:
        """Return the features of a split, on CPU.

        Raises:
            EvaluationError: a replica has died, or failed, or the model has no such features.
            DataError: shards are damaged.
        """
        key = key_of_features(weights.header, index, kind=kind, transform=transform, precision=self.reading.precision)
        found = None if self._cache is None else self._cache.find(key)
        if found is None:
            self.num_computed += 1
            share = FeatureShare(index, transform=transform, kind=kind, description=description)
            found = join(self.shared(weights, share), num_samples=index.num_samples)
            if self._cache is not None:
                self._cache.keep(key, found)
        return found

    def shared(self, weights: Weights, share: Share) -> list[Any]:
        """Return what each process has returned for its blocks of a set.

        Raises:
            EvaluationError: a replica has died, or failed.
        """
        return self._replicas.do(weights, share)

    def close(self) -> None:
        """End the other processes."""
        self._replicas.close()
