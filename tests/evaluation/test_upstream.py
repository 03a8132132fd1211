"""Held-out images of the corpus: the objective's loss and its accuracy, against plain computations and scikit-learn's."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score  # type: ignore[import-not-found]
from torch import Tensor

from data_tools.index import index_folder
from data_tools.parallel import LocalWorkers
from pipeline.data.images.crop import EvalTransform
from pipeline.data.images.decode import decode_image
from pipeline.data.shards.index import load_index
from pipeline.data.shards.reader import BlockReader
from pipeline.errors import DataError
from pipeline.evaluation.held_out import Corpus, examine_held_out, open_held_out, read_class_map
from pipeline.evaluation.section import HeldOutSection, ReferenceSection
from pipeline.evaluation.upstream import _add_states, _states_of
from pipeline.files import write_whole
from pipeline.models.vit.model import VisionTransformer, ViTConfig
from pipeline.objectives import MaskedPatches
from pipeline.objectives.accuracy import HitAt1, MeanAveragePrecision, top_k
from pipeline.run.checkpoint import RunFolder
from pipeline.run.records import read_json_lines
from pipeline.run.weights import OBJECTIVE_PREFIX, load_weights, save_weights
from tests.conftest import Outcome, encode, make_image, run_command, write_tar
from tests.evaluation.test_requirements import make_split
from tests.helpers.evaluations import MODEL, add_weights

Call = Callable[..., Outcome]
LOSS_ERROR = 1e-6  # relative: fp32 sums of 40 losses in another order
SIZE = 18  # short side of 16 px images: 16 * 256 / 224


@pytest.fixture
def folder(tmp_path: Path, write_config: Callable[..., Path]) -> RunFolder:
    """Give a run folder whose evaluator has no downstream sets."""
    folder = RunFolder(tmp_path / "runs" / "tiny")
    folder.root.mkdir(parents=True, exist_ok=True)
    write_whole(folder.config, write_config(evaluation={"datasets": [], "precision": "fp32"}).read_bytes())
    write_whole(folder.wandb_id, b"abc123")
    return folder


def images_of(shards: str) -> tuple[Tensor, Tensor]:
    """Return images (N, 3, 16, 16) and labels (N,) of a set, by a plain loop."""
    index, transform = load_index(shards), EvalTransform(image_size=16, short_side=SIZE)
    reader = BlockReader(index, capacity=1)
    samples = [sample for block in range(index.num_blocks) for sample in reader.read(block)]
    return torch.stack([transform(decode_image(s.image)) for s in samples]), torch.tensor([s.label for s in samples])


def rows_of(folder: RunFolder) -> dict[str, dict[str, Any]]:
    return {row["measure"]: row for row in read_json_lines(folder.evaluations)}


def test_loss_and_accuracy_are_those_of_a_plain_loop(folder: RunFolder, downstream: dict[str, str], call: Call) -> None:
    """Label smoothing and mixing, which are the training's, take no part."""
    add_weights(folder, 4)
    shards, precise = downstream["train"], "evaluation.batch_size=7"
    assert call("evaluate", str(folder.root), f"evaluation.validation={shards}", precise).code == 0
    images, labels = images_of(shards)
    with torch.no_grad():
        logits = load_weights(folder.weights_of(4)).model(images)
    rows = rows_of(folder)
    assert list(rows) == ["loss", "top-1"]  # four classes: top-5 would say nothing
    assert rows["loss"]["loss"] == pytest.approx(float(F.cross_entropy(logits, labels)), rel=LOSS_ERROR)
    assert rows["top-1"]["accuracy"] == pytest.approx(float((logits.argmax(dim=1) == labels).double().mean()), abs=1e-6)
    assert rows["top-1"]["test_images"] == rows["loss"]["test_images"] == 40
    assert "ci95" in rows["top-1"]
    assert "ci95" not in rows["loss"]
    text = folder.config.read_text()
    smoothing = text.replace("name: softmax", "name: softmax\n  label_smoothing: 0.3\n  mixing: {mixup_alpha: 1.0}")
    assert smoothing != text
    write_whole(folder.config, smoothing.encode())
    folder.evaluations.unlink()
    assert call("evaluate", str(folder.root), f"evaluation.validation={shards}", precise).code == 0
    assert rows_of(folder)["loss"]["loss"] == rows["loss"]["loss"]


def test_it_is_shown_with_what_others_have_reached(folder: RunFolder, downstream: dict[str, str], call: Call) -> None:
    add_weights(folder, 0)
    add_weights(folder, 4)
    validation = f"evaluation.validation=[{{name: held, shards: {downstream['test']}}}]"
    expected = "evaluation.references={held top-1: {percent: 49.9, source: 'issue #62'}}"
    outcome = call("evaluate", str(folder.root), validation, expected, "tracking.mode=offline")
    assert "[eval] step 4: held loss " in outcome.text
    status = call("status", str(folder.root)).text
    assert "; authors at the end: 49.9 %" in status
    assert "; min over 2 checkpoints" in status
    assert "; max over 2 checkpoints" in status
    report = call("report", str(folder.root)).text
    assert "49.9 (authors at the end)" in report
    values = {found["measure"]: found for found in json.loads(call("status", str(folder.root), "--json").text)["evaluations"]}
    losses = [row["loss"] for row in read_json_lines(folder.evaluations) if "loss" in row]
    assert values["held loss"]["best"] == min(losses)
    assert values["held loss"]["newest"] == losses[-1]
    assert "nothing to do" in call("evaluate", str(folder.root), validation, expected).text


def test_a_set_whose_classes_are_numbered_otherwise_is_compared_by_their_names(
    folder: RunFolder, tmp_path: Path, call: Call
) -> None:
    """Three of the model's four classes, in another order: the largest of their logits counts."""
    add_weights(folder, 4)
    write_whole(folder.classes, b"ant\nbee\ncat\ndog\n")
    shards = make_split(tmp_path / "val", [0, 1, 2, 2, 1, 0, 0], names="dog\nbee\nant\n")
    outcome = call("evaluate", str(folder.root), f"evaluation.validation={shards}")
    assert "val: its 3 classes are found among the model's by name" in outcome.text
    images, labels = images_of(shards)
    with torch.no_grad():
        logits = load_weights(folder.weights_of(4)).model(images)[:, [3, 1, 0]]
    assert list(rows_of(folder)) == ["top-1"]  # a loss over some of the classes is not the objective's
    assert rows_of(folder)["top-1"]["accuracy"] == pytest.approx(float((logits.argmax(dim=1) == labels).double().mean()))
    # The same by a file of numbers is another measurement only if it maps otherwise.
    mapping = tmp_path / "map.tsv"
    mapping.write_text("dog\tdog\nbee\tbee\nant\tant\n")
    by_file = f"evaluation.validation=[{{shards: {shards}, class_map: {mapping}}}]"
    assert "nothing to do" in call("evaluate", str(folder.root), by_file).text
    mapping.write_text("0\t0\n1\t1\n2\t2\n")
    call("evaluate", str(folder.root), by_file)
    assert len(read_json_lines(folder.evaluations)) == 2


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("0\t0\n1\t9\n2\t1\n", "line 2: '9' is not one of the model's classes: a number below 4"),
        ("0 1 2\n", "line 1: '0 1 2' is not SET'S CLASS <tab> MODEL'S CLASS"),
        ("0\t0\n2\t1\n", "has no line for class 1 of the set"),
        ("0\t0\n0\t1\n", "line 2: class '0' was mapped before"),
        ("0\t0\n1\t0\n", "maps several classes to the model's class 0"),
        ("bee\t0\n", "line 1: 'bee' is not one of the set's classes: a number"),
        ("", "has no line for class 0"),
    ],
)
def test_a_bad_class_map_is_refused_in_words(tmp_path: Path, lines: str, words: str) -> None:
    path = tmp_path / "map.tsv"
    path.write_text(lines)
    with pytest.raises(DataError, match=words.replace("(", r"\(")):
        read_class_map(str(path), own=None, names=None, num_classes=4)


def test_sets_that_do_not_fit_the_training_are_refused_before_it_begins(tmp_path: Path) -> None:
    shards = make_split(tmp_path / "val", [0, 1, 2])
    section = HeldOutSection.model_validate(shards)
    assert section.name == "val"
    known = Corpus(3, ("ant", "bee", "cat"), "one")
    assert open_held_out(section, known).columns is None
    with pytest.raises(DataError, match="label 2, and there are 2 classes to compare with"):
        open_held_out(section, Corpus(2, None, "one"))
    with pytest.raises(DataError, match=r"1 of its 3 classes are none of the corpus' 3 \(cat; see classes.txt"):
        open_held_out(section, Corpus(3, ("ant", "bee", "dog"), "one"))
    with pytest.raises(DataError, match="numbered otherwise than the corpus', and a class map is for images with one label"):
        open_held_out(section, Corpus(3, ("cat", "bee", "ant"), "several"))
    (note,) = open_held_out(section, Corpus(3, None, "one")).notes
    assert "no classes.txt of the training corpus" in note
    notes = examine_held_out(section, known, trained_on=load_index(shards).fingerprint)
    assert notes == ["validation set 'val': these are the training images, so nothing is held out"]


def test_a_set_that_cannot_be_opened_costs_its_own_results_alone(
    folder: RunFolder, downstream: dict[str, str], tmp_path: Path, call: Call
) -> None:
    add_weights(folder, 4)
    sets = f"evaluation.validation=[{{name: good, shards: {downstream['test']}}}, {{name: gone, shards: {tmp_path / 'no'}}}]"
    outcome = call("evaluate", str(folder.root), sets)
    assert outcome.code == 2
    assert "validation set 'gone': " in outcome.text
    assert "gone loss, top-1 at step 4: " in outcome.text
    rows = read_json_lines(folder.evaluations)
    assert [row["measure"] for row in rows if row.get("accuracy") is None and row.get("loss") is None] == ["loss", "top-1"]
    assert {row["dataset"] for row in rows if row.get("accuracy") is not None} == {"good"}


def test_mean_average_precision_is_scikit_learns() -> None:
    """Ties included; a class without images is left out. Images come in two parts."""
    generator = np.random.default_rng(0)
    scores = np.round(generator.normal(size=(60, 7)), 1).astype(np.float32)  # many are equal
    truth = generator.random((60, 7)) < 0.2
    truth[:, 4] = False
    metric = MeanAveragePrecision()
    for part in (slice(0, 25), slice(25, 60)):
        metric.update(torch.from_numpy(scores[part]), torch.from_numpy(truth[part]).float())
    classes = [c for c in range(7) if truth[:, c].any()]
    expected = np.mean([average_precision_score(truth[:, c], scores[:, c]) for c in classes])
    assert float(metric.compute()) == pytest.approx(expected, abs=1e-6)
    hit = HitAt1()
    hit.update(torch.from_numpy(scores), torch.from_numpy(truth).float())
    labelled = truth.any(axis=1)
    assert float(hit.compute()) == pytest.approx(truth[np.arange(60), scores.argmax(axis=1)][labelled].mean())


@pytest.fixture
def masked(folder: RunFolder) -> tuple[RunFolder, MaskedPatches, dict[str, Tensor]]:
    """Give a run of masked patches, with weights whose objective has been trained a little."""
    section = MaskedPatches.model_validate({"name": "masked_patches"})
    objective = section.build(MODEL, seed=3, class_names=None)
    objective.init_weights(7)
    model = VisionTransformer(MODEL)
    model.init_weights(torch.Generator().manual_seed(1))
    own = {f"{OBJECTIVE_PREFIX}{name}": tensor for name, tensor in objective.state_dict().items()}
    save_weights(folder.weights_of(4), {**model.state_dict(), **own}, model=MODEL, step=4, images_seen=32)
    write_whole(folder.config, folder.config.read_bytes().replace(b"name: softmax", b"name: masked_patches"))
    return folder, section, objective.state_dict()


def test_masked_patches_are_predicted_by_the_trained_objective(
    masked: tuple[RunFolder, MaskedPatches, dict[str, Tensor]], downstream: dict[str, str], call: Call
) -> None:
    """Patches are masked by the image's place in the set: batches change nothing. Labels are not read."""
    folder, section, state = masked
    shards = downstream["test"]
    call("evaluate", str(folder.root), f"evaluation.validation={shards}", "evaluation.batch_size=5")
    objective = section.build(MODEL, seed=3, class_names=None).eval()
    objective.load_state_dict(state)
    images, _ = images_of(shards)
    with torch.no_grad():
        output = objective(load_weights(folder.weights_of(4)).model, {"images": images, "positions": torch.arange(len(images))})
    rows = rows_of(folder)
    assert list(rows) == ["loss", "patch accuracy"]
    assert rows["loss"]["loss"] == pytest.approx(float(output.loss), rel=LOSS_ERROR)
    right = (output.predictions.argmax(dim=1) == output.targets).double().mean()
    assert rows["patch accuracy"]["accuracy"] == pytest.approx(float(right), abs=1e-6)


def test_merged_metrics_are_those_of_all_images() -> None:
    """As three processes count them, each some blocks."""
    generator = torch.Generator().manual_seed(0)
    scores, targets = torch.randn(60, 7, generator=generator), (torch.rand(60, 7, generator=generator) < 0.3).float()
    for kind, truth in ((MeanAveragePrecision, targets), (HitAt1, targets), (partial(top_k, 7, k=2), targets.argmax(dim=1))):
        whole, *parts = (kind() for _ in range(4))
        whole.update(scores, truth)
        for number, part in enumerate(parts):
            part.update(scores[number::3], truth[number::3])
        for part in parts[1:]:
            _add_states(parts[0], _states_of(part))
        assert torch.equal(parts[0].compute(), whole.compute())
        fresh = kind()
        _add_states(fresh, _states_of(kind()))  # a process without images
        _add_states(fresh, _states_of(whole))
        assert torch.equal(fresh.compute(), whole.compute())


def test_outputs_that_are_not_finite_are_a_failure_with_its_reason(
    folder: RunFolder, downstream: dict[str, str], call: Call
) -> None:
    model = VisionTransformer(MODEL)
    model.init_weights(torch.Generator().manual_seed(0))
    huge = {name: 1e30 * tensor for name, tensor in model.state_dict().items()}
    save_weights(folder.weights_of(4), huge, model=MODEL, step=4, images_seen=32)
    outcome = call("evaluate", str(folder.root), f"evaluation.validation={downstream['test']}")
    assert outcome.code == 2
    assert "the model's outputs are not finite" in outcome.text


def test_a_reference_has_one_value() -> None:
    assert ReferenceSection.model_validate({"percent": 49.9}).describe() == "49.9 % (authors at the end)"
    assert ReferenceSection.model_validate({"loss": 2.5, "by": "us", "at": ""}).describe() == "2.5 (us)"
    for wrong in ({}, {"percent": 1.0, "loss": 1.0}):
        with pytest.raises(ValueError, match="either percent or loss"):
            ReferenceSection.model_validate(wrong)


def test_five_best_classes_where_there_are_more() -> None:
    from pipeline.objectives import Softmax

    small, large = (ViTConfig(**{**MODEL.to_dict(), "num_classes": classes}) for classes in (5, 6))
    softmax = Softmax.model_validate({})
    assert list(softmax.held_out_metrics(small)) == ["top-1"]
    metrics = softmax.held_out_metrics(large)
    logits, labels = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)), torch.arange(50) % 6
    for k in (1, 5):
        metrics[f"top-{k}"].update(logits, labels)
        among = (logits.topk(k, dim=1).indices == labels[:, None]).any(dim=1).double().mean()
        assert float(metrics[f"top-{k}"].compute()) == pytest.approx(float(among))


def test_one_of_several_labels_is_enough_and_images_without_do_not_count(folder: RunFolder, tmp_path: Path, call: Call) -> None:
    """ImageNet-ReaL has several labels an image, and none where none fits (arXiv 2006.07159)."""
    add_weights(folder, 4)
    labels = [[1], [0, 2], [], [3, 1, 0], [2], [0, 1, 2, 3], []]
    members = []
    for number, some in enumerate(labels):
        pixels = make_image(number, num_classes=4, size=24)
        members.append((f"{number:05d}.png", encode(pixels, format="PNG")))
        members.append((f"{number:05d}.json", json.dumps({"labels": some}).encode()))
    shards = tmp_path / "real"
    shards.mkdir()
    write_tar(shards / "shard-000.tar", members)
    index_folder(str(shards), block_samples=32, workers=LocalWorkers(1))
    reader, transform = BlockReader(load_index(str(shards)), capacity=1), EvalTransform(image_size=16, short_side=SIZE)
    images = torch.stack([transform(decode_image(sample.image)) for sample in reader.read(0)])
    with torch.no_grad():
        predicted = load_weights(folder.weights_of(4)).model(images).argmax(dim=1).tolist()
    right = [guess in some for guess, some in zip(predicted, labels, strict=True) if some]
    sets = f"{{name: real, shards: {shards}, labels: any_of}}"
    outcome = call("evaluate", str(folder.root), f"evaluation.validation=[{sets}]")
    assert outcome.code == 0, outcome.text
    rows = rows_of(folder)
    assert list(rows) == ["top-1"]
    assert rows["top-1"]["accuracy"] == pytest.approx(sum(right) / len(right))
    assert (rows["top-1"]["test_images"], rows["top-1"]["without_label"]) == (5, 2)
    assert "ci95" in rows["top-1"]
    # Blocks of two images each, which three processes share.
    folder.evaluations.unlink()
    index_folder(str(shards), block_samples=2, workers=LocalWorkers(1))
    shared = run_command("evaluate", str(folder.root), f"evaluation.validation=[{sets}]", "evaluation.replicas=3")
    assert shared.returncode == 0, shared.stdout
    same = ("accuracy", "test_images", "without_label", "ci95")
    assert [rows_of(folder)["top-1"][name] for name in same] == [rows["top-1"][name] for name in same]
    refused = call("evaluate", str(folder.root), f"evaluation.validation=[{sets.replace('any_of', 'as_trained')}]")
    assert "set labels: any_of" in refused.text
    without = Corpus(4, None, "none")
    with pytest.raises(DataError, match="the run's objective has none"):
        open_held_out(HeldOutSection.model_validate({"shards": str(shards), "labels": "any_of"}), without)
