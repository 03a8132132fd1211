"""Fine-tune a checkpoint on a downstream set by the command `finetune`, and take its test accuracy."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from pydantic import Field, field_validator

from pipeline.errors import EvaluationError
from pipeline.evaluation.measured import Measured
from pipeline.evaluation.protocols.base import ModelProtocol, Setting, Subject
from pipeline.files import write_whole
from pipeline.json_text import parse_json
from pipeline.launch.children import last_line, run_logged

TABLE_NAME = "finetune.json"  # that the command leaves in its run folder
_REMEDY = "; the next evaluation tries it again"


class FineTune(ModelProtocol):
    """Fine-tunes a checkpoint by a recipe, whose settings are chosen on a part of train, and takes the test accuracy."""

    protocol: Literal["finetune"] = "finetune"
    recipe: str = Field(description="configuration of `python -m pipeline finetune`: configs/finetune/paper_pets.yaml")
    overrides: tuple[str, ...] = Field(
        default=(), description="of the recipe's settings: ['trainer.duration=200 steps', 'trainer.devices=1']"
    )

    @field_validator("recipe")
    @classmethod
    def _is_whole(cls, path: str) -> str:
        """Make it absolute: an evaluator may start elsewhere than the training did."""
        return str(Path(path).expanduser().absolute())

    def settings(self) -> list[Setting]:
        return [Setting("fine-tuned")]

    def measure_model(self, subject: Subject, setting: Setting) -> Measured:
        """Measure a setting: the mean of top-1 over the recipe's seeds. A call that was killed resumes its trainings.

        Raises:
            EvaluationError: the fine-tuning failed.
        """
        del setting
        try:
            text = Path(self.recipe).read_bytes()
        except OSError as error:
            raise EvaluationError(f"recipe of the protocol finetune: {self.recipe}: {error.strerror or error}") from error
        digest = hashlib.blake2b(b"\0".join([text, *(line.encode() for line in self.overrides)]), digest_size=4).hexdigest()
        name = f"{subject.dataset}-{subject.weights.path.stem}-{digest}"
        folder = subject.scratch / name
        if not (folder / TABLE_NAME).exists() or not _has_finals(folder):
            self._run(subject, name=name)
        table = parse_json((folder / TABLE_NAME).read_bytes())
        results = [final["results"][f"{subject.dataset} top-1"]["value"] for final in table["finals"]]
        _keep_table_alone(folder)
        detail = {
            "recipe": Path(self.recipe).stem,
            "chosen": table["chosen"],
            "points": len(table["points"]),
            "values": results,
        }
        return Measured(fmean(results), detail)

    def _run(self, subject: Subject, *, name: str) -> None:
        test = {"name": subject.dataset, "shards": subject.places["test"], "class_map": "numbers"}
        command = [
            *(sys.executable, "-m", "pipeline", "finetune", self.recipe),
            f"init_from={subject.weights.path}",
            f"name={name}",
            f"output_dir={subject.scratch}",
            f"data.train={json.dumps([subject.places['train']])}",
            f"model.num_classes={_num_classes(subject)}",
            f"evaluation.validation={json.dumps([test])}",
            "evaluation.datasets=[]",
            "tracking.mode=disabled",
            *self.overrides,
        ]
        subject.scratch.mkdir(parents=True, exist_ok=True)
        log = subject.scratch / f"{name}.log"
        print(f"[eval] {name}: fine-tuning by {self.recipe}; {log} is its output", flush=True)
        with log.open("a", encoding="utf-8") as output:
            code = run_logged(command, environment=os.environ, output=output)
        if code:
            raise EvaluationError(f"fine-tuning ended with exit code {code}: {last_line(log)} ({log}){_REMEDY}")


def _num_classes(subject: Subject) -> int:
    """Return how many outputs a classifier of the set's class ids has.

    Raises:
        EvaluationError: a split has no labels.
    """
    counts = [split.class_counts for split in (subject.train, subject.test)]
    largest = [int(count.ids[-1]) for count in counts if count is not None and len(count.ids)]
    if len(largest) < len(counts):
        raise EvaluationError("fine-tuning needs a label of each image in both splits")
    return 1 + max(largest)


def _has_finals(folder: Path) -> bool:
    return bool(parse_json((folder / TABLE_NAME).read_bytes()).get("finals"))


def _keep_table_alone(folder: Path) -> None:
    """Remove the trainings, whose checkpoints are as large as the model with its optimizer. Their table is kept."""
    table: Any = (folder / TABLE_NAME).read_bytes()
    draft = folder.with_name(f".{folder.name}.part")
    draft.mkdir(exist_ok=True)
    write_whole(draft / TABLE_NAME, table)
    shutil.rmtree(folder)
    draft.replace(folder)
