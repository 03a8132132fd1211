"""The comparison of the probes' solvers: what others' solvers give, and the table from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import Ridge  # type: ignore[import-not-found]

from pipeline.benchmark.probes.compare import forecast, make_tables
from pipeline.benchmark.probes.features import Sizes, make_features
from pipeline.benchmark.probes.peers import few_shot_by_eigenvalues
from pipeline.evaluation.protocols.few_shot import L2_PENALTY
from pipeline.evaluation.protocols.ridge import BIAS_FEATURE, STD_EPS
from tests.conftest import run_command

SMALL = Sizes(images=300, width=24, classes=5, tests=200)


@pytest.mark.parametrize("count", [10, 200])  # fewer images than features, and more
def test_the_algorithm_by_eigenvalues_solves_the_ridge_regression(count: int) -> None:
    data = make_features(SMALL)
    support = np.arange(count)
    x = data.train[support].astype(np.float64)
    mean, std = x.mean(axis=0), x.std(axis=0) + STD_EPS
    widen = lambda values: np.pad((values - mean) / std, ((0, 0), (0, 1)), constant_values=BIAS_FEATURE)  # noqa: E731
    model = Ridge(alpha=L2_PENALTY, fit_intercept=False).fit(widen(x), 2 * np.eye(5)[data.train_labels[support]] - 1)
    theirs = model.predict(widen(data.test)).argmax(axis=1)
    assert (few_shot_by_eigenvalues(data, support, dtype=np.float64) == theirs).all()


def test_the_tables_say_what_was_measured() -> None:
    few_shot = [
        {"solver": "ours", "seconds": 2.0, "different_predictions": 0, "accuracy": 0.5},
        {"solver": "theirs", "seconds": 5.0, "different_predictions": 3, "accuracy": 0.25},
    ]
    logistic = [
        {"solver": "ours", "seconds": 1.0, "objectives": [1.0, 2.0], "accuracies": [0.5, 0.5]},
        {"solver": "theirs", "seconds": 4.0, "objectives": [1.1, 1.5], "accuracies": [0.5, 0.51]},
    ]
    sizes = {"images": 300, "width": 24, "classes": 5, "tests": 200}
    text = make_tables({"sizes": sizes, "few_shot": few_shot, "logistic": logistic, "left_out": "scikit-learn is left out"})
    assert "| theirs | 5 | 2.50 | 3 of 2,400 | 25.00 % |" in text
    assert "| ours | 1 | 1.00 | 3.3e-01 | 0 of 200 |" in text
    assert "| theirs | 4 | 4.00 | 1.0e-01 | 2 of 200 |" in text
    assert text.endswith("scikit-learn is left out")
    assert forecast(SMALL).startswith("300 train and 200 test images, 24 features, 5 classes")


@pytest.mark.slow
def test_from_the_command_line(tmp_path: Path) -> None:
    sizes = ("--images", "200", "--features-per-image", "16", "--classes", "4", "--tests", "100", "--rounds", "1")
    done = run_command("benchmark", "eval", *sizes, "--json", str(tmp_path / "r.json"))
    assert done.returncode == 0, done.stdout
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["sizes"] == {"images": 200, "width": 16, "classes": 4, "tests": 100}
    assert [row["different_predictions"] for row in found["few_shot"] if "fp32" not in row["solver"]] == [0, 0]
    ours, *theirs = found["logistic"]
    assert len(theirs) == 2
    for values in zip(ours["objectives"], *(row["objectives"] for row in theirs), strict=True):
        assert values[0] <= min(values) * (1 + 1e-6)
    plan = run_command("benchmark", "eval", "--classes", "1")
    assert plan.returncode
    assert "--classes 2 to --images" in plan.stdout
