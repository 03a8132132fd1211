"""Classifiers that are trained together are those that torch trains one by one, and test labels choose none of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from pipeline.data.class_counts import ClassCounts
from pipeline.errors import EvaluationError, ExitCode
from pipeline.evaluation.feature_kinds import REPRESENTATION, FeatureKind
from pipeline.evaluation.protocols.linear_sgd import Grid, Head, LinearSgd, draw_batches
from pipeline.evaluation.splits import Splits
from pipeline.run.checkpoint import RunFolder
from pipeline.run.evaluations import value_of
from pipeline.run.records import read_json_lines
from tests.helpers.evaluations import Call, add_weights

WIDTH, CLASSES, IMAGES = 6, 3, 60
FEW = LinearSgd(blocks=(1, 2), average=(False, True), learning_rates=(0.01, 0.1, 1.0), steps=60, batch_size=16)


def features(count: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Draw features of two blocks and an average, (count, 3 * WIDTH), and labels that the first of the blocks tells."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    centres = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(99))
    values = torch.randn(count, 3, WIDTH, generator=generator)
    values[:, 0] = centres[labels] + 0.5 * values[:, 0]
    return values.flatten(1), labels


def make_splits() -> Splits:
    train, train_labels = features(IMAGES, seed=0)
    test, test_labels = features(45, seed=1)
    return Splits(train, train_labels, test, test_labels, num_classes=CLASSES, facts={}, notes=())


def test_classifiers_of_a_grid_are_those_that_torch_trains_one_by_one() -> None:
    """The reference has a layer and a learning rate of its own for each head, as the authors' code has."""
    values, labels = features(IMAGES, seed=0)
    heads = [Head(n, average, rate) for n in (1, 2) for average in (False, True) for rate in (0.01, 0.3)]
    grid = Grid(heads, num_features=3 * WIDTH, last_blocks=2, num_classes=CLASSES, like=values)
    batches = list(islice(draw_batches(IMAGES, batch_size=16), 40))
    columns = {
        (1, False): slice(WIDTH, 2 * WIDTH),
        (1, True): slice(WIDTH, 3 * WIDTH),
        (2, False): slice(0, 2 * WIDTH),
        (2, True): slice(0, 3 * WIDTH),
    }
    layers = []
    for head in heads:
        kind = head.blocks, head.average
        layer = nn.Linear(len(range(*columns[kind].indices(3 * WIDTH))), CLASSES)
        with torch.no_grad():
            layer.weight.copy_(grid._weights[kind][:, :CLASSES].T)  # all of a kind begin alike
            layer.bias.zero_()
        layers.append(layer)
    optimizer = torch.optim.SGD(
        [{"params": layer.parameters(), "lr": h.learning_rate * 16 / 256} for layer, h in zip(layers, heads, strict=True)],
        momentum=0.9,
        weight_decay=0,
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40, eta_min=0)
    for batch in batches:
        read = values[batch]
        losses = [
            F.cross_entropy(layer(read[:, columns[head.blocks, head.average]]), labels[batch])
            for layer, head in zip(layers, heads, strict=True)
        ]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
        schedule.step()
    grid.fit(values, labels, batches, steps=40)
    for index, (layer, head) in enumerate(zip(layers, heads, strict=True)):
        kind = head.blocks, head.average
        place = slice((index % 2) * CLASSES, (index % 2 + 1) * CLASSES)
        torch.testing.assert_close(grid._weights[kind].detach()[:, place].T, layer.weight.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(grid._biases[kind].detach()[place], layer.bias.detach(), rtol=1e-5, atol=1e-6)
        predicted = layer(values[:, columns[kind]]).argmax(dim=1)
        assert torch.equal(grid.predict(values)[index], predicted)


def test_every_image_is_in_each_epoch_once() -> None:
    found = torch.cat(list(islice(draw_batches(10, batch_size=4), 5)))
    assert sorted(found[:10].tolist()) == sorted(found[10:].tolist()) == list(range(10))
    assert not torch.equal(found[:10], found[10:])
    assert [sorted(batch.tolist()) for batch in islice(draw_batches(3, batch_size=8), 2)] == [[0, 1, 2]] * 2


def test_a_part_of_train_chooses_and_test_labels_do_not() -> None:
    splits = make_splits()
    (setting,) = FEW.settings()
    found = FEW.measure(splits, setting)
    assert found.value > 0.8
    assert found.detail["blocks"] == 2, "the classes are in the block before the last"
    assert found.detail["classifiers"] == 12
    assert found.detail["held_out_images"] == 12
    shuffled = replace(splits, test_labels=splits.test_labels[torch.randperm(45, generator=torch.Generator().manual_seed(3))])
    other = FEW.measure(shuffled, setting)
    assert other.detail == found.detail
    assert other.value < 0.6
    assert FEW.measure(splits, setting) == found, "it draws nothing that another run would not"


def test_a_learning_rate_that_diverges_is_counted_and_never_chosen() -> None:
    splits = make_splits()
    huge = replace(splits, train=splits.train * 1e18, test=splits.test * 1e18)
    protocol = FEW.model_copy(update={"learning_rates": (1e-34, 1e10)})
    found = protocol.measure(huge, protocol.settings()[0])
    assert found.detail["diverged"] == 4
    assert found.detail["learning_rate"] == 1e-34
    protocol = FEW.model_copy(update={"learning_rates": (1e10,)})
    with pytest.raises(EvaluationError, match="all 4 classifiers diverged"):
        protocol.measure(huge, protocol.settings()[0])


def test_one_image_a_class_can_choose_nothing() -> None:
    few = Splits(torch.zeros(3, 3 * WIDTH), torch.arange(3), torch.zeros(2, 3 * WIDTH), torch.arange(2), 3, {}, ())
    with pytest.raises(EvaluationError, match="no class has two images"):
        FEW.measure(few, FEW.settings()[0])


def test_settings_that_are_odd_are_said() -> None:
    with pytest.raises(ValidationError, match=r"write blocks=\[1\]"):
        LinearSgd(blocks=(1, 1))  # type: ignore[call-arg]
    assert LinearSgd(blocks=(1,), average=(False,)).reads == REPRESENTATION  # type: ignore[call-arg]
    assert LinearSgd().reads == FeatureKind(4)  # type: ignore[call-arg]
    counts = ClassCounts.of_labels(torch.from_numpy(np.arange(300) % 3))
    (note,) = LinearSgd().notes(counts, class_names=None, path="protocols.linear_sgd")  # type: ignore[call-arg]
    assert "are 12,500 epochs of 300 train images" in note
    row = {"dataset": "a", "learning_rate": 0.1}
    assert "is at the end of the grid" in LinearSgd().warnings(row)[0]  # type: ignore[call-arg]
    assert LinearSgd().warnings({**row, "learning_rate": 0.05}) == []  # type: ignore[call-arg]


def test_an_evaluator_measures_what_runs_the_model_next_to_what_reads_features(
    folder: RunFolder, call: Call, write_config: Callable[..., object]
) -> None:
    """Protocols that read the same features share them; a model without as many blocks costs its own measurement alone."""
    add_weights(folder, 4)
    settings = (
        "evaluation.protocols={linear: {}, knn: {k: [3]}, attention_distance: {images: 10}, "
        "linear_sgd: {blocks: [1], steps: 20, batch_size: 8}, deep: {protocol: linear_sgd, steps: 20}}"
    )
    done = call("evaluate", str(folder.root), settings)
    assert done.code == ExitCode.ERROR
    rows = {(row["protocol"], row["measure"]): row for row in read_json_lines(folder.evaluations)}
    assert set(rows) == {
        ("linear", "linear"),
        ("knn", "3-nn"),
        ("attention_distance", "attention distance"),
        ("linear_sgd", "linear SGD"),
        ("deep", "deep linear SGD"),
    }
    assert "gives no tokens of its last 4 blocks" in rows["deep", "deep linear SGD"]["error"]
    assert rows["linear_sgd", "linear SGD"]["classifiers"] == 26
    distance = rows["attention_distance", "attention distance"]
    assert distance["images"] == 10
    assert 0 < (value := value_of(distance) or 0) < 1
    assert distance["by_block"] == [pytest.approx(value, abs=1e-4)]
    assert len(list(folder.features.iterdir())) == 4, "representation and last block, of train and of test"
    assert "kept features" not in done.text
    again = call("evaluate", str(folder.root), settings.replace("deep: {", "deep: {blocks: [1], "))
    assert again.code == 0, again.text
    assert "kept features" in again.text
