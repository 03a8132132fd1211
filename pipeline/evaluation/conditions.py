"""Say under which conditions a result of some weights on some data counts."""

from __future__ import annotations

from pipeline.distributed.precision import EvaluationPrecision
from pipeline.evaluation.section import EvaluationSection
from pipeline.evaluation.tasks import MeasuredUnder
from pipeline.exchange.pretrained import Preprocessing
from pipeline.run.weights import WeightsHeader


def preprocessing_of(section: EvaluationSection) -> Preprocessing:
    """Return what images go through, by the settings."""
    return Preprocessing(short_side=section.short_side, aspect="stretch" if section.resize == "square" else "keep")


def measured_under(
    header: WeightsHeader, data: str | None, *, preprocessing: Preprocessing, precision: EvaluationPrecision
) -> MeasuredUnder:
    """Return the conditions of a measurement.

    Args:
        data: fingerprint of the set; None where it cannot be opened.
    """
    return MeasuredUnder(
        weights=header.digest,
        data=data,
        short_side=preprocessing.pixels(header.model),
        precision=precision,
        weights_kind=None if header.kind == "raw" else header.kind,
        aspect=None if preprocessing.aspect == "keep" else preprocessing.aspect,
        resize=None if preprocessing.resize == "bilinear_antialias" else preprocessing.resize,
    )
