"""A configuration is compared with its data, its model and the number of ranks; what does not fit is refused in words."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.commands.train import run_training
from pipeline.config.read import load_config, parse_config
from pipeline.config.resolve import resolve_run
from pipeline.data.shards.index import load_index
from pipeline.errors import ConfigError, DataError
from pipeline.evaluation.datasets import open_dataset
from pipeline.evaluation.section import EvalDataset
from pipeline.launch.signals import StopRequest
from pipeline.models.vit.section import ViT

WriteConfig = Callable[..., Path]


UNFIT = [
    (
        ["trainer.global_batch_size=1"],
        "trainer.global_batch_size=1 is less than an image for each of the 2 ranks; use 2 or more",
    ),
    (["trainer.global_batch_size=9", "trainer.micro_batch_size=1"], "some have 5 images a step, some 4, which cannot be"),
    (["model.image_size=30"], "model.image_size=30 is not divisible by the patch size 8 of Ti/8; use 24 or 32"),
    (["model.name=XL/8"], "model.name='XL/8' is not a model"),
    (["model.num_heads=5"], "model.width=32 is not divisible by model.num_heads=5"),
    (
        ["schedule.warmup=12 steps"],
        "schedule.warmup=12 steps must be shorter than the whole run, trainer.duration=12 steps; shorten",
    ),
    (["checkpoint.every=2 images"], "checkpoint.every=2 images is less than one step of 8 images"),
]


@pytest.mark.parametrize(("overrides", "message"), UNFIT, ids=[overrides[0] for overrides, _ in UNFIT])
def test_numbers_that_do_not_fit_are_answered_in_words(write_config: WriteConfig, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_run(load_config(write_config(), overrides), world_size=2)
    assert message in str(caught.value)


def test_missing_shards_are_answered_in_words(tmp_path: Path, write_config: WriteConfig) -> None:
    with pytest.raises(DataError, match=r"data folder '/nowhere' does not exist"):
        resolve_run(load_config(write_config(), ["data.train=/nowhere"]), world_size=2)
    with pytest.raises(DataError, match=r"does not exist or holds no shards; check the path, or make shards with"):
        resolve_run(load_config(write_config(), [f"data.train={tmp_path}"]), world_size=2)
    (tmp_path / "a.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"holds no index; make one with `python -m data_tools index"):
        resolve_run(load_config(write_config(), [f"data.train={tmp_path}"]), world_size=2)
    (tmp_path / "index.safetensors").write_bytes(b"truncated")
    with pytest.raises(DataError, match=r"index\.safetensors is damaged .*; make it again with `python -m data_tools index"):
        resolve_run(load_config(write_config(), [f"data.train={tmp_path}"]), world_size=2)
    with pytest.raises(DataError, match=r"data folder 'foo://bar'.*foo"):
        resolve_run(load_config(write_config(), ["data.train=foo://bar"]), world_size=2)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("shard-000.tar", r"shard-000\.tar names one tar, not a folder .*{corpus} has an index: give {corpus}$"),
        ("shard-{000..002}.tar", r"names tars, not a folder .*: give {corpus}$"),
        ("*.tar", r"names tars, not a folder .*: give {corpus}$"),
        ("*", r"/\* is a pattern, .*: give the folder of the shards, as {corpus}$"),
        ("a.csv", r"a\.csv is a file; pack its images with `python -m data_tools make .*a\.csv FOLDER` and give FOLDER$"),
        ("a.tar.gz", r"a\.tar\.gz is a compressed tar; .*give that folder$"),
        ("a.zip", r"a\.zip is a file, not a folder of shards; unpack it"),
        ("other.safetensors", r"other\.safetensors is a file; .*\{{url: FOLDER, index: .*other\.safetensors\}}$"),
    ],
)
def test_a_path_that_is_no_folder_of_shards_has_advice_of_its_own(
    name: str, said: str, corpus: Path, tmp_path: Path, write_config: WriteConfig
) -> None:
    """This holds for a mixture's part and for an evaluation set; data.train=x.tar by itself names a tar without an index."""
    folder = Path(shutil.copytree(corpus, tmp_path / "corpus"))
    for other in ("a.csv", "a.tar.gz", "a.zip", "other.safetensors"):
        (folder / other).write_bytes(b"x")
    match = said.format(corpus=folder)
    with pytest.raises(DataError, match=match):
        resolve_run(load_config(write_config(), [f"data.train=[{{path: '{folder}/{name}'}}]"]), world_size=2)
    dataset = EvalDataset.model_validate(
        {"name": "a", "train": str(folder), "test": {"url": f"{folder}/{name}", "index": "zz"}}
    )
    with pytest.raises(DataError, match=f"evaluation set 'a': .*{match}"):
        open_dataset(dataset)


def test_classes_the_shards_name_must_fit_the_head(corpus: Path, tmp_path: Path, write_config: WriteConfig) -> None:
    folder = Path(shutil.copytree(corpus, tmp_path / "corpus"))
    (folder / "classes.txt").write_text("".join(f"class {i}\n" for i in range(7)))
    with pytest.raises(
        ConfigError, match=r"model\.num_classes=4, but .*/classes\.txt names 7 classes; set model\.num_classes=7"
    ):
        resolve_run(load_config(write_config(), [f"data.train={folder}"]), world_size=2)


def test_labels_must_fit_the_head(corpus: Path, tmp_path: Path, write_config: WriteConfig) -> None:
    """Shards have no classes.txt: their index knows the largest label."""
    largest = load_index(str(corpus)).max_label
    assert largest is not None
    (folder := tmp_path / "corpus").mkdir()
    for path in corpus.iterdir():
        if path.name != "classes.txt":
            (folder / path.name).symlink_to(path)
    overrides = [f"data.train={folder}", f"model.num_classes={largest}"]
    with pytest.raises(ConfigError, match=rf"the largest label in .* is {largest} .*; set model\.num_classes={largest + 1} or"):
        resolve_run(load_config(write_config(), overrides), world_size=2)


def test_a_training_opens_its_evaluation_sets_first(corpus: Path, write_config: WriteConfig) -> None:
    sets = f"evaluation.datasets=[{{name: a, train: {corpus}, test: /nowhere}}]"
    with pytest.raises(DataError, match=r"evaluation set 'a': data folder '/nowhere' does not exist"):
        run_training(str(write_config()), [sets, "trainer.devices=1"], StopRequest())


def test_the_image_size_may_be_smaller_than_a_patch_only_in_error() -> None:
    with pytest.raises(ConfigError, match="use 16"):
        ViT(name="B/16", image_size=8, num_classes=2).resolve()


@pytest.mark.parametrize(
    ("world_size", "micro", "expected"),
    [(2, None, (4, 1)), (2, 3, (2, 2)), (2, 9, (4, 1)), (8, 3, (1, 1)), (1, 3, (3, 3)), (3, None, (3, 1)), (3, 2, (2, 2)),
     (5, None, (2, 1)), (8, 1, (1, 1))],
)  # fmt: skip
def test_a_share_is_computed_in_as_few_parts_as_fit(
    write_config: Callable[..., Path], world_size: int, micro: int | None, expected: tuple[int, int]
) -> None:
    resolved = resolve_run(load_config(write_config(trainer={"micro_batch_size": micro})), world_size=world_size)
    assert (resolved.micro_batch_size, resolved.accumulation_steps) == expected


def test_an_index_may_lie_elsewhere_than_its_shards(corpus: Path, tmp_path: Path, write_config: WriteConfig) -> None:
    folder = Path(shutil.copytree(corpus, tmp_path / "shards"))
    (folder / "index.safetensors").rename(tmp_path / "kept.safetensors")
    shards = f"{{url: {folder}, index: {tmp_path / 'kept.safetensors'}}}"
    config = load_config(
        write_config(), [f"data.train={shards}", f"evaluation.datasets=[{{name: a, train: {shards}, test: {folder}}}]"]
    )
    assert resolve_run(config, world_size=2).total_steps > 0
    written = config.model_dump(mode="json")
    assert parse_config(written, source="what it wrote") == config
    assert written["evaluation"]["datasets"] == [
        {"name": "a", "train": {"path": str(folder), "index": str(tmp_path / "kept.safetensors")}, "test": str(folder)}
    ]
    with pytest.raises(ConfigError, match=r"unknown key data\.train\.0\.indx; did you mean data\.train\.0\.index\?"):
        load_config(write_config(), [f"data.train={{url: {folder}, indx: x}}"])
