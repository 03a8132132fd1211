"""Measure the solvers of the few-shot and linear probes, and others' on the same features, in one process with one thread.

    python -m pipeline.benchmark.probes.measure SETTINGS

measures and prints JSON.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.benchmark.probes.features import FeatureSet, Sizes, make_features, read_feature_set
from pipeline.benchmark.probes.peers import few_shot_by_eigenvalues, logistic_by_scikit_learn, why_no_scikit_learn
from pipeline.evaluation.protocols.classifier import row_norms
from pipeline.evaluation.protocols.few_shot import L2_PENALTY, order_images
from pipeline.evaluation.protocols.linear import CHOICE_TOLERANCE, PENALTIES, fit_path
from pipeline.evaluation.protocols.ridge import fit_nested

SHOTS, SEEDS = (1, 5, 10, 25), (0, 1, 2)
OURS = "ours"
TOLERANCES = (1e-5, 1e-6, 1e-7, 1e-8, 1e-9)  # of scikit-learn's largest gradient, until the objective is low enough

Result = dict[str, Any]


def measure_few_shot(data: FeatureSet, *, rounds: int) -> list[Result]:
    """Return CPU seconds of all shots and seeds, medians of interleaved rounds, and how predictions differ."""
    labels, train, test = (torch.from_numpy(values) for values in (data.train_labels, data.train, data.test))
    orders = [order_images(labels, seed=seed) for seed in SEEDS]
    supports = [[order.support(shots) for shots in SHOTS] for order in orders]

    def ours() -> list[NDArray[Any]]:
        norms, found = row_norms(test), []
        for nested in supports:
            fits = fit_nested(train, labels, supports=nested, num_classes=data.sizes.classes, l2=L2_PENALTY)
            found += [fitted.predict(test, norms=norms).numpy() for fitted in fits]
        return found

    def by_eigenvalues(dtype: type[np.floating[Any]]) -> list[NDArray[Any]]:
        return [few_shot_by_eigenvalues(data, support.numpy(), dtype=dtype) for nested in supports for support in nested]

    contenders: dict[str, Callable[[], list[NDArray[Any]]]] = {
        OURS: ours,
        "big_vision's algorithm, numpy fp32": lambda: by_eigenvalues(np.float32),
        "big_vision's algorithm, numpy fp64": lambda: by_eigenvalues(np.float64),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    predicted: dict[str, list[NDArray[Any]]] = {}
    for _ in range(rounds):
        for name, run in contenders.items():
            begin = time.process_time()
            predicted[name] = run()
            seconds[name].append(time.process_time() - begin)
    return [
        {
            "solver": name,
            "seconds": statistics.median(seconds[name]),
            "different_predictions": sum(int((a != b).sum()) for a, b in zip(found, predicted[OURS], strict=True)),
            "accuracy": float(np.mean([(classes == data.test_labels).mean() for classes in found])),
        }
        for name, found in predicted.items()
    ]


def measure_logistic(data: FeatureSet) -> list[Result]:
    """Return CPU seconds of the path of penalties, and objectives and accuracies reached."""
    train, labels = torch.from_numpy(data.train), torch.from_numpy(data.train_labels)
    path = PENALTIES[::-1]
    mean, std = data.train.mean(axis=0, dtype=np.float64), data.train.std(axis=0, dtype=np.float64)
    std = np.where(std > 1e-12 * np.abs(mean), std, 1.0)
    standard, test = (data.train - mean) / std, (data.test - mean) / std

    def judge(name: str, fits: Iterable[tuple[NDArray[Any], NDArray[Any]]]) -> Result:
        begin = time.process_time()
        found = list(fits)
        seconds = time.process_time() - begin
        return {
            "solver": name,
            "seconds": seconds,
            "objectives": [
                _objective(standard, data.train_labels, *fit, penalty=p) for fit, p in zip(found, path, strict=True)
            ],
            "accuracies": [float(((test @ w + b).argmax(axis=1) == data.test_labels).mean()) for w, b in found],
        }

    fits = fit_path(train, labels, num_classes=data.sizes.classes, penalties=path, tolerance=CHOICE_TOLERANCE)
    rows = [judge(OURS, ((fitted.weight.numpy(), fitted.bias.numpy()) for fitted in fits))]
    if why_no_scikit_learn() is not None or data.sizes.classes < 3:
        return rows
    for dtype in ("float32", "float64"):
        features = standard.astype(dtype)
        for tolerance in TOLERANCES:
            name = f"scikit-learn lbfgs, {dtype}, tol {tolerance:g}"
            fits = logistic_by_scikit_learn(features, data.train_labels, penalties=path, tolerance=tolerance)
            row = judge(name, fits)
            excess = max(b / a - 1 for a, b in zip(rows[0]["objectives"], row["objectives"], strict=True))
            if excess <= CHOICE_TOLERANCE or tolerance == TOLERANCES[-1]:
                rows.append(row)
                break
    return rows


def _objective(x: NDArray[Any], labels: NDArray[Any], weight: NDArray[Any], bias: NDArray[Any], *, penalty: float) -> float:
    logits = x @ weight + bias
    largest = logits.max(axis=1)
    logs = np.log(np.exp(logits - largest[:, None]).sum(axis=1)) + largest
    return float((logs - logits[np.arange(len(x)), labels]).mean() + 0.5 * penalty * np.square(weight).sum())


def measure(*, sizes: dict[str, int], features: list[str] | None, rounds: int, only: list[str]) -> Result:
    """Measure what is asked for; see `pipeline.benchmark.probes.compare`."""
    torch.set_num_threads(1)
    data = make_features(Sizes(**sizes)) if features is None else read_feature_set(*map(Path, features))
    found: Result = {"sizes": asdict(data.sizes)}
    if "few_shot" in only:
        found["few_shot"] = measure_few_shot(data, rounds=rounds)
    if "logistic" in only:
        found["logistic"] = measure_logistic(data)
        found["left_out"] = why_no_scikit_learn()
    return found


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
