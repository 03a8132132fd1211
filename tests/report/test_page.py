"""The page of a report has everything in it; its numbers, its print and its tables are those of the run folder."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from pipeline.build.samples import draw_first_images
from pipeline.config.read import load_config
from pipeline.report.charts import draw_chart, list_charts, to_inline_svg
from pipeline.report.run_data import RunData, read_run, read_runs
from pipeline.report.tables import curves_as_json, points_of
from pipeline.run.checkpoint import RunFolder
from pipeline.run.records import append_json_lines
from tests.conftest import Outcome

Call = Callable[..., Outcome]


def write_run(root: Path, *, steps: int = 5, offset: float = 0.0) -> Path:
    """Write a folder as a training and its evaluator do. One loss is not finite."""
    root.mkdir(parents=True)
    metrics = [
        {
            "step": 10 * n,
            "images_seen": 640 * n,
            "exaflops": 0.5 * n,
            "train/loss": None if n == 3 else 4.0 / n + offset,
            "train/learning_rate": 1e-3,
            "speed/images_per_s": 100.0 + n,
        }
        for n in range(1, steps + 1)
    ]
    append_json_lines(root / "metrics.jsonl", metrics)
    rows = [
        {
            "step": step,
            "dataset": "pets & <cats>",
            "protocol": "few_shot",
            "measure": "5-shot",
            "seed": seed,
            "images_seen": 64 * step,
            "accuracy": 0.01 * step + 0.02 * seed + offset,
            "reference": {"value": 0.9, "by": "authors at the end"},
        }
        for step in (20, 50)
        for seed in (0, 1, 2)
    ]
    append_json_lines(root / "evaluations.jsonl", rows)
    (root / "config.yaml").write_text("model: {name: L/16, image_size: 224}\ntrainer: {global_batch_size: 64}\n")
    (root / "alerts.jsonl").write_text(
        json.dumps({"step": 30, "kind": "loss", "change": "raised", "text": "the loss is not <finite>"}) + "\n"
    )
    return root


class Tags(HTMLParser):
    """Collects elements, and checks that they are nested."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in ("meta", "img", "input", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_fetches_nothing(tmp_path: Path, call: Call) -> None:
    root = write_run(tmp_path / "run")
    outcome = call("report", str(root), "--html")
    assert outcome.code == 0
    text = (root / "report.html").read_text()
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert all(address.startswith(("data:", "#")) for address in tags.addresses)
    assert not re.search(r"@import|url\(http|src=\"http", text)
    for words in (
        "Training loss",
        "pets &amp; &lt;cats&gt; 5-shot",
        "the loss is not &lt;finite&gt;",
        "L/16",
        "authors at the end",
    ):
        assert words in text
    assert "52.0 % ± 2.0" in text  # of step 50: 50, 52 and 54 %
    assert "prefers-color-scheme" in text
    assert "#000000" not in re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)


def test_several_runs_are_drawn_over_each_other(tmp_path: Path, call: Call) -> None:
    runs = [write_run(tmp_path / name / "run", offset=offset) for name, offset in (("a", 0.0), ("b", 0.1))]
    page = tmp_path / "page.html"
    assert call("report", *map(str, runs), "--html", str(page)).code == 0
    text = page.read_text()
    assert "a/run" in text
    assert "b/run" in text
    refused = call("report", *map(str, runs))
    assert refused.code == 2
    assert "--html" in refused.text


def test_figures_for_print_have_the_files_numbers(tmp_path: Path, call: Call) -> None:
    root, out = write_run(tmp_path / "run"), tmp_path / "print"
    assert call("report", str(root), "--print", str(out), "--axis", "exaflops").code == 0
    names = {path.name for path in out.iterdir()}
    assert {"training_loss.png", "training_loss.svg", "training_loss.pdf", "pets_cats_5_shot.svg", "curves.csv"} <= names
    assert Image.open(out / "training_loss.png").width == pytest.approx(975, abs=1)  # 3.25 inches at 300 dots
    svg = ElementTree.parse(out / "training_loss.svg").getroot()
    assert float(svg.attrib["width"].removesuffix("pt")) == pytest.approx(3.25 * 72, abs=0.5)
    lines = list(csv.DictReader(io.StringIO((out / "curves.csv").read_text())))
    loss = {int(line["step"]): line["value"] for line in lines if line["curve"] == "train/loss"}
    assert loss == {10: "4.0", 20: "2.0", 30: "", 40: "1.0", 50: "0.8"}
    (shot,) = [line for line in lines if line["curve"] == "pets & <cats> 5-shot" and line["step"] == "50"]
    assert (float(shot["value"]), float(shot["low"]), float(shot["high"])) == pytest.approx((0.52, 0.5, 0.54))
    assert (float(shot["images_seen"]), float(shot["exaflops"]), shot["seeds"]) == (3200, pytest.approx(2.5), "3")


def test_curves_are_the_same_on_every_axis(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run"))
    by_step, by_images, by_flops = (run.curve("train/loss", axis) for axis in ("step", "images", "exaflops"))
    assert by_images[0] == [64 * step for step in by_step[0]]
    assert by_flops[0] == [pytest.approx(0.05 * step) for step in by_step[0]]
    assert math.isnan(by_step[1][2])  # the loss was not finite
    assert len(list(points_of([run]))) == 3 * 5 + 2


def test_an_evaluated_model_has_a_page_without_curves_of_training(tmp_path: Path) -> None:
    root = write_run(tmp_path / "model")
    (root / "metrics.jsonl").unlink()
    (root / "config.yaml").unlink()
    run = read_run(root)
    (chart,) = list_charts([run])
    assert chart.is_accuracy
    assert draw_chart(chart, [run], "exaflops") is None  # nothing says how much compute it took
    figure = draw_chart(chart, [run], "images")
    assert figure is not None
    assert "currentColor" in to_inline_svg(figure, description="x")
    json.dumps(curves_as_json([run]))


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs: list[RunData] = read_runs([write_run(tmp_path / "a" / "run"), write_run(tmp_path / "b" / "run")])
    assert [run.name for run in runs] == ["a/run", "b/run"]


@pytest.mark.slow
def test_a_real_run_has_its_images_and_figures_in_the_page(reference: RunFolder, tmp_path: Path, call: Call) -> None:
    root = tmp_path / "run"
    shutil.copytree(reference.root, root, ignore=shutil.ignore_patterns("wandb", "checkpoints"))
    assert call("figures", str(root), "--all-steps", "--count", "2").code == 0
    assert call("report", str(root), "--html").code == 0
    text = (root / "report.html").read_text()
    assert "Training images as the model saw them" in text
    assert "What the output attends to" in text
    assert text.count("data-n=") >= 2


def test_its_training_images_are_the_first_of_the_run_itself(reference: RunFolder) -> None:
    """The order belongs to the whole batch: a run of smaller batches sees other images."""
    config = load_config(reference.config)
    whole = draw_first_images(config, count=100)  # the whole batch of eight
    part = Image.open(io.BytesIO(draw_first_images(config, count=5)))  # four divide it
    sheet = Image.open(io.BytesIO(whole))
    width, height = part.width // 2, part.height // 2
    tiles = [(number % 3 * width, number // 3 * height) for number in range(4)]  # of three in a row
    for number, (left, top) in enumerate(tiles):
        ours = part.crop((number % 2 * width, number // 2 * height, (number % 2 + 1) * width, (number // 2 + 1) * height))
        assert ours.tobytes() == sheet.crop((left, top, left + width, top + height)).tobytes()
