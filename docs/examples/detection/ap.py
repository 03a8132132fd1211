"""Measure the average precision of a detector on a folder, as COCO defines it."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import torch
from detection.data import Resized
from torch import Tensor

from pipeline.errors import ConfigError

MOST_FOUND = 100  # in an image, as COCO counts


def make_metric() -> Any:
    """Return torchmetrics' measure of average precision.

    Raises:
        ConfigError: it lacks a library.
    """
    try:
        from torchmetrics.detection import MeanAveragePrecision

        return MeanAveragePrecision(box_format="xywh", backend="pycocotools")
    except ImportError as error:
        raise ConfigError(f"AP cannot be measured: {error}; docs/detection.md says what to install") from error


@torch.no_grad()
def measure(model: Any, data: Resized, *, batch_size: int, device: str) -> dict[str, float]:
    """Return AP (mean over IoU 0.50 to 0.95), AP50 and AP75, in percent."""
    metric = make_metric()
    model.eval()
    for first in range(0, len(data), batch_size):
        numbers = range(first, min(first + batch_size, len(data)))
        items = [data[number, 0] for number in numbers]
        outputs = model(pixel_values=torch.stack([pixels for pixels, _ in items]).to(device))
        found = [
            best(logits.cpu(), boxes.cpu(), item["size"], has_background=model.config.model_type != "deformable_detr")
            for logits, boxes, (_, item) in zip(outputs.logits, outputs.pred_boxes, items, strict=True)
        ]
        images = [data.images[number] for number in numbers]
        metric.update(found, [{"boxes": image.boxes, "labels": image.labels, "iscrowd": image.crowd} for image in images])
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports each of its stages
        values = metric.compute()
    return {name: 100 * float(values[key]) for name, key in {"AP": "map", "AP50": "map_50", "AP75": "map_75"}.items()}


def best(logits: Tensor, boxes: Tensor, size: Tensor, *, has_background: bool) -> dict[str, Tensor]:
    """Return the objects found in an image, the surest first, as torchmetrics takes them.

    Args:
        logits: (Q, C), or (Q, C + 1) where the last class is background and each query names one object.
        boxes: (Q, 4) centre x and y, width and height, as parts of the image.
        size: (2,) width and height in pixels.
    """
    if has_background:
        scores, labels = logits.softmax(dim=1)[:, :-1].max(dim=1)
        queries = torch.arange(len(logits))
    else:  # a query may name several classes: the rule of Deformable DETR
        scores = logits.sigmoid().flatten()
        queries, labels = (index.flatten() for index in torch.meshgrid(*map(torch.arange, logits.shape), indexing="ij"))
    order = scores.argsort(descending=True, stable=True)[:MOST_FOUND]
    centre, extent = boxes[queries[order]].split(2, dim=1)
    corners = torch.cat([(centre - extent / 2) * size, extent * size], dim=1)
    return {"scores": scores[order], "labels": labels[order], "boxes": corners}
