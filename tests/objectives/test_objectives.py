"""Objectives on a tiny model against torch's losses and sums written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.models import Model
from pipeline.models.vit.section import ViT
from pipeline.objectives import Objective
from pipeline.objectives.multi_label import MultiLabel
from pipeline.objectives.sigmoid import Sigmoid
from pipeline.objectives.softmax import Softmax
from pipeline.section import members_of

CONFIG = ViT(name="Ti/16", image_size=32, num_classes=5, depth=1, width=8, num_heads=2).resolve()
LABELS = torch.tensor([0, 4, 2, 2, 1, 3])


def make_batch(labels: Tensor = LABELS, ends: Tensor | None = None) -> dict[str, Any]:
    size = len(labels) if ends is None else len(ends)
    images = torch.randint(0, 256, (size, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return {
        "images": images,
        "labels": labels,
        "label_ends": torch.arange(1, size + 1) if ends is None else ends,
        "positions": torch.arange(size),
    }


def make_model() -> nn.Module:
    model = CONFIG.build()
    model.init_weights(torch.Generator().manual_seed(0))
    nn.init.normal_(model.head.weight, std=0.5, generator=torch.Generator().manual_seed(1))
    return model.eval()


def loss_of(section: Any, batch: dict[str, Any], **options: Any) -> Tensor:
    return section.build(CONFIG, seed=0, class_names=options.get("class_names"))(make_model(), batch).loss


def test_there_is_a_family() -> None:
    assert "vit" in members_of(Model)


def test_each_says_whether_it_has_parameters() -> None:
    found = {}
    section: Any
    for name, section in members_of(Objective).items():
        objective = section.model_validate({"name": name}).build(CONFIG, seed=0, class_names=None)
        assert section.has_parameters == bool(list(objective.parameters())), name
        found[name] = section.has_parameters
    assert found == {"softmax": False, "sigmoid": False, "multi_label": False, "masked_patches": True}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax_is_torchs_cross_entropy(smoothing: float) -> None:
    batch = make_batch()
    expected = F.cross_entropy(make_model()(batch["images"]), LABELS, label_smoothing=smoothing)
    torch.testing.assert_close(loss_of(Softmax(label_smoothing=smoothing), batch), expected)


def test_whole_labels_of_mixed_images_are_no_distribution() -> None:
    mixing = {"mixup_alpha": 0.2, "labels": "whole"}
    with pytest.raises(ValueError, match=r"mixing\.labels=whole .* set mixing\.labels=shares, or name=sigmoid"):
        Softmax(mixing=mixing)  # type: ignore[arg-type]
    assert Softmax(mixing={**mixing, "mixup_alpha": 0}).mixing.labels == "whole"  # type: ignore[arg-type]
    assert Sigmoid(mixing=mixing).mixing.is_on  # type: ignore[arg-type]


def test_the_mean_over_classes_is_torchs_default() -> None:
    batch = make_batch()
    expected = F.binary_cross_entropy_with_logits(make_model()(batch["images"]), F.one_hot(LABELS, 5).float())
    torch.testing.assert_close(loss_of(Sigmoid(reduction="mean"), batch), expected)


def test_several_labels_are_binary_targets() -> None:
    labels, ends = torch.tensor([0, 3, 4, 1]), torch.tensor([2, 2, 4])  # two labels, none, two
    batch = make_batch(labels, ends)
    targets = torch.tensor([[1.0, 0, 0, 1, 0], [0, 0, 0, 0, 0], [0, 1, 0, 0, 1]])
    logits = make_model()(batch["images"])
    expected = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / 3
    torch.testing.assert_close(loss_of(MultiLabel(), batch), expected)
    smooth = F.binary_cross_entropy_with_logits(logits, targets * 0.9 + 0.02, reduction="sum") / 3
    torch.testing.assert_close(loss_of(MultiLabel(label_smoothing=0.1), batch), smooth)


def test_hit_at_1_counts_images_with_labels() -> None:
    metric = MultiLabel().metrics(CONFIG)["train/hit_at_1"]
    logits = torch.tensor([[3.0, 1, 2], [1, 2, 3], [1, 2, 3]])
    metric.update(logits, torch.tensor([[1.0, 0, 1], [1, 1, 0], [0, 0, 0]]))
    assert metric.compute() == 0.5


def test_ancestors_are_labels_too(tmp_path: Any) -> None:
    file = tmp_path / "hierarchy.txt"
    file.write_text("poodle dog  # a comment\n\ndog canine\ncanine animal\n3 animal\n")
    names = ("poodle", "dog", "animal", "tree", "cat")  # `canine` is no class
    section = MultiLabel(hierarchy=str(file))
    targets = section.make_targets(CONFIG, class_names=names)
    labels, ends = torch.tensor([0, 4, 1, 3]), torch.tensor([1, 1, 4])
    assert targets(labels, ends).tolist() == [[1, 1, 1, 0, 0], [0, 0, 0, 0, 0], [0, 1, 1, 1, 1]]


BAD = {
    "dog": "'dog' is not two words",
    "0 7": "7 is no class; model.num_classes=5",
    "0 1\n1 0": "class 0 is its own ancestor",
    "cat animal": "no class has an ancestor",
}


@pytest.mark.parametrize("text", BAD)
def test_a_bad_hierarchy_is_refused_in_words(text: str, tmp_path: Any) -> None:
    file = tmp_path / "hierarchy.txt"
    file.write_text(text)
    with pytest.raises(ConfigError, match=BAD[text]):
        MultiLabel(hierarchy=str(file)).check(CONFIG, class_names=None)
    with pytest.raises(ConfigError, match="cannot be read"):
        MultiLabel(hierarchy=str(tmp_path / "none.txt")).check(CONFIG, class_names=None)


def test_mixed_pairs_have_the_loss_of_mixed_images_and_targets() -> None:
    section = Softmax(mixing={"mixup_alpha": 0.8, "cutmix_alpha": 1.0}, label_smoothing=0.1)  # type: ignore[arg-type]
    objective: Any = section.build(CONFIG, seed=0, class_names=None)
    batch, model = make_batch(), make_model()
    images, targets = objective.mixer(batch["images"].float(), F.one_hot(LABELS, 5).float(), positions=batch["positions"])
    assert not torch.equal(images, batch["images"].float())
    logits = model(images / 127.5 - 1)
    expected = -((targets * 0.9 + 0.02) * logits.log_softmax(dim=1)).sum(dim=1).mean()
    output = objective(model, batch)
    torch.testing.assert_close(output.loss, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(output.targets, LABELS)
