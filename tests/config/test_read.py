"""Configurations inherit, and a wrong one is refused in words."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config.read import load_config
from pipeline.config.values import fit_to_schema
from pipeline.config.yaml_text import parse_yaml
from pipeline.errors import ConfigError
from tests.conftest import Outcome, run_command

WriteConfig = Callable[..., Path]


def test_overrides_replace_single_values(write_config: WriteConfig) -> None:
    config = load_config(
        write_config(), ["trainer.global_batch_size=16", "data.num_streams=3", "optimizer.learning_rate=1e-4", "name=other"]
    )
    assert (config.trainer.global_batch_size, config.data.num_streams, config.optimizer.learning_rate, config.name) == (
        16,
        3,
        1e-4,
        "other",
    )
    assert config.trainer.zero_stage == 2  # its neighbours stay


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "+1e-3", "1.e-3", ".1e-2", "1.0e-3", "1_0e-4"])
def test_a_number_with_an_exponent_is_a_number_where_anything_may_stand(text: str) -> None:
    """YAML 1.1 takes 1e-3 for a text, which options for a library would pass on as one."""
    options = fit_to_schema(parse_yaml(f"{{init_values: {text}, list: [{text}], quoted: '{text}'}}"), dict[str, Any])
    assert options == {"init_values": 1e-3, "list": [1e-3], "quoted": text}


def test_a_word_that_looks_like_a_number_with_an_exponent_stays_a_text_where_one_belongs(write_config: WriteConfig) -> None:
    config = load_config(write_config(), ["name=1e3", "output_dir=7e5", "trainer.global_batch_size=1e1"])
    assert (config.name, config.output_dir, config.trainer.global_batch_size) == ("1e3", "7e5", 10)


def test_a_file_extends_another(tmp_path: Path, write_config: WriteConfig) -> None:
    write_config("parent")
    child = tmp_path / "child.yaml"
    child.write_text("extends: parent.yaml\nname: child\ntrainer: {global_batch_size: 4}\n")
    config = load_config(child)
    assert (config.name, config.trainer.global_batch_size, config.trainer.zero_stage) == ("child", 4, 2)


def test_what_is_shown_loads_again_unchanged(tmp_path: Path, write_config: WriteConfig, call: Callable[..., Outcome]) -> None:
    shown = call("show-config", str(write_config()))
    again = tmp_path / "again.yaml"
    again.write_text(shown.text)
    assert load_config(again) == load_config(write_config())
    assert yaml.safe_load(shown.text)["schedule"]["warmup"] == "2 steps"


BAD = [
    ("trainer.globl_batch_size=8", "unknown key trainer.globl_batch_size; did you mean trainer.global_batch_size?"),
    ("optimiser.learning_rate=1", "unknown key optimiser; did you mean optimizer?"),
    ("trainer.learning_rate=1", "unknown key trainer.learning_rate; did you mean optimizer.learning_rate?"),
    (
        "evaluation.datasets=[{name: a, train: b, tests: c}]",
        "unknown key evaluation.datasets.0.tests; did you mean evaluation.datasets.0.test?",
    ),
    ("trainer.global_batch_size=many", "trainer.global_batch_size='many': Input should be a valid integer"),
    ("trainer.zero_stage=4", "trainer.zero_stage=4: Input should be 0, 1, 2 or 3"),
    ("model.dropout=1.5", "model.dropout=1.5: Input should be less than 1"),
    ("schedule.warmup=10", "schedule.warmup=10: 10 is not a duration; write a number and a unit"),
    ("schedule.warmup=3 days", "'3 days' is not a duration"),
    ("trainer.hang_timeout_s=1200", "trainer.hang_timeout_s=1200 must be below trainer.collective_timeout_s=1200"),
    (
        "data.read_patience_s=900",
        "data.read_patience_s=900 must be below trainer.hang_timeout_s=900: a store that cannot be reached",
    ),
    ("name=a/b", "name='a/b': letters, digits, '.', '_' and '-' only"),
    ("data.min_area=", "data.min_area=None"),
    ("name=", "name is empty; type a value behind name="),
    ("seed=010", "seed=010: YAML reads this as octal, which is 8; write seed=10 or seed=8"),
    ("seed=on", "seed='on': Input should be a valid integer"),
    ("trainer.zero_stage=on", "trainer.zero_stage='on': Input should be 0, 1, 2 or 3"),
    ("trainer.global_batch_size=1:30", "trainer.global_batch_size=1:30: YAML reads this as 90"),
    ("evaluation.datasets=[{name:a,train:b,test:c}]", "name:a is; write a space after the colon"),
    ("trainer.devices=0", "trainer.devices"),
    ("optimizer.learning_rate=.inf", "optimizer.learning_rate=inf: Input should be a finite number"),
    ("evaluation.protocols.few_shot.shots=[0]", "evaluation.protocols.few_shot.shots.0=0: Input should be greater than 0"),
    (
        "evaluation.protocols.few_shot.seeds=[-1]",
        "evaluation.protocols.few_shot.seeds.0=-1: Input should be greater than or equal to 0",
    ),
    (
        "evaluation.protocols.few_shot.seeds=[9223372036854775808]",
        "evaluation.protocols.few_shot.seeds.0=9223372036854775808: Input should be less than or equal to",
    ),
    ("seed=99999999999999999999", "seed=99999999999999999999: Input should be less than or equal to 9223372036854775807"),
    (
        "evaluation.protocols.few_shot.seeds=[0,1,0]",
        "evaluation.protocols.few_shot: seeds: 0 is there 2 times; write seeds=[0,1]",
    ),
    ("evaluation.protocols.few_shot.shots=[5,5]", "evaluation.protocols.few_shot: shots: 5 is there 2 times; write shots=[5]"),
    (
        "evaluation.protocols=[linear,linear]",
        "linear is there 2 times; write evaluation.protocols=[linear]",
    ),
    (
        "evaluation.datasets=[{name: a, train: b, test: c},{name: a, train: d, test: c}]",
        "evaluation: datasets: 2 sets are named 'a'; results are distinguished by name, so give each its own",
    ),
    (
        "evaluation.datasets=[{name: cars, train: b, test: c},{name: Cars, train: d, test: c}]",
        "evaluation: datasets: the names 'cars' and 'Cars' differ in case alone; rename one of the sets",
    ),
    (
        "evaluation.protocols.few_shot.shots=5",
        "evaluation.protocols.few_shot.shots=5: must be a list; type evaluation.protocols.few_shot.shots='[5]'",
    ),
    (
        "evaluation.protocols.few_shot.shot=[5]",
        "unknown key evaluation.protocols.few_shot.shot; did you mean evaluation.protocols.few_shot.shots?",
    ),
    ("evaluation.protocols.linear.shots=[5]", "unknown key evaluation.protocols.linear.shots; known here: protocol"),
    (
        "evaluation.protocols.wibble={}",
        "evaluation.protocols.wibble.protocol=wibble: there is no such choice; known here: few_shot, linear",
    ),
    ("evaluation.protocols.few_shto={}", "did you mean evaluation.protocols.few_shto.protocol=few_shot?"),
    ("evaluation.protocols={}", "evaluation: protocols: none is named"),
    ("trainer=5", "trainer=5: must be a section: keys and values below it"),
    ("optimizer.betas=[0.9]", "optimizer.betas: the list is too short"),
    ("optimizer.betas.1=0.9", "optimizer.betas is a list, which is replaced whole: optimizer.betas=[...]"),
    ("optimizer.betas=[0.9,1.5]", "optimizer.betas.1=1.5: Input should be less than 1"),
    ("trainer", "override 'trainer' is not section.key=value"),
    ("data.train=[", "its value is not YAML"),
]


@pytest.mark.parametrize(("override", "message"), BAD, ids=[override for override, _ in BAD])
def test_a_wrong_setting_is_answered_in_words(write_config: WriteConfig, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write_config(), [override])
    assert message in str(caught.value)


def test_bf16_weights_need_zero(write_config: WriteConfig) -> None:
    message = "trainer.precision=bf16 keeps its fp32 masters in ZeRO; with trainer.zero_stage=0 use bf16_autocast or fp32"
    with pytest.raises(ConfigError, match=message):
        load_config(write_config(), ["trainer.precision=bf16", "trainer.zero_stage=0"])


WORDS = ["42", "007", "1.10", "2024-05-01", "2001-99-99", "1.0e-3", "1e-3", "on", "No", "null", "0x1F", "010", "1_000", ".5e3"]


@pytest.mark.parametrize("word", WORDS)
def test_a_name_is_what_was_typed(tmp_path: Path, write_config: WriteConfig, word: str) -> None:
    """YAML reads these as numbers, dates, booleans and nothing: in a file, on the command line, and in what is written."""
    name = word.lstrip(".")
    path = write_config()
    typed = load_config(path, [f"name={name}", f"data.train={word}", f"tracking.project={word}"])
    sets = f"[{{name: {word}, train: {word}, test: {{path: {word}, index: x}}}}]"
    values = yaml.safe_load(path.read_text())
    values["tracking"] = {**values.get("tracking", {}), "project": "PLACE"}
    values["data"]["train"] = values["name"] = "PLACE"
    values["name"] = "NAME"
    path.write_text(yaml.safe_dump(values).replace("PLACE", word).replace("NAME", name))
    written = load_config(path, [f"evaluation.datasets={sets}"])
    again = tmp_path / "again.yaml"
    again.write_text(written.to_yaml())
    for config in (typed, written, load_config(again)):
        project = None if word == "null" else word
        assert (config.name, config.data.train, config.tracking.project) == (name, word, project)
    (dataset,) = load_config(again).evaluation.datasets
    assert (dataset.name, dataset.train.path, dataset.test.path) == (word, word, word)


@pytest.mark.parametrize("text", ["/data/run #3", "pipe: cat {0..9}.tar", "-", "*.tar", "@host", "%x", "a: b: c", "=", "8:30"])
def test_an_override_loses_nothing_of_what_was_typed(write_config: WriteConfig, text: str) -> None:
    """This is a comment, an alias, a list item or a mapping to YAML, and a text to whoever typed it."""
    assert load_config(write_config(), [f"data.train={text}"]).data.train == text


ADVICE = [
    (["lr=0.01"], "optimizer.learning_rate=0.01"),
    (["learning_rate=1e-3"], "optimizer.learning_rate=0.001"),
    (["batch_size=64"], "trainer.global_batch_size=64"),
    (["epochs=90"], "trainer.duration='90 epochs'"),
    (["evaluation.protocols.few_shot.shots=5"], "evaluation.protocols.few_shot.shots='[5]'"),
    (["evaluation.datasets=x"], "evaluation.datasets='[{name: NAME, train: FOLDER, test: FOLDER}]'"),
    (["evaluation.datasets=[a]"], "evaluation.datasets='[{name: NAME, train: FOLDER, test: FOLDER}]'"),
    (["evaluation.datasets={name: a, train: b, test: c}"], "evaluation.datasets='[{name: a, train: b, test: c}]'"),
    (["evaluation.datasets=[{name: a, train: b}]"], "evaluation.datasets='[{name: a, train: b, test: FOLDER}]'"),
    (["evaluation.datasets=[{name:", "a,", "train:", "b,", "test:", "c}]"],
     "evaluation.datasets='[{name: a, train: b, test: c}]'"),
    (["data.train=[{weight: 2}]"], "data.train='[{weight: 2, path: FOLDER}]'"),
    (["data.train={weight: 2}"], "data.train='[{weight: 2, path: FOLDER}]'"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "line"), ADVICE, ids=[" ".join(given) for given, _ in ADVICE])
def test_the_line_that_a_message_says_to_type_is_taken(write_config: WriteConfig, overrides: list[str], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write_config(), overrides)
    assert str(caught.value).lower().endswith(f"type {line}".lower())
    load_config(write_config(), shlex.split(line))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--trainer.devices", "2"], "trainer.devices=2"),
        (["--trainer.devices=2"], "trainer.devices=2"),
        (["--seed=3"], "seed=3"),
    ],
)
def test_settings_with_dashes_are_answered_with_the_line_to_type(
    write_config: WriteConfig, capsys: pytest.CaptureFixture[str], words: list[str], line: str
) -> None:
    from pipeline.__main__ import parse_arguments

    with pytest.raises(SystemExit):
        parse_arguments(["train", "x.yaml", *words])
    assert f"settings are written without dashes; type {line}\n" in capsys.readouterr().err
    load_config(write_config(), [line])


def test_a_command_without_its_config_is_told_what_comes_first(write_config: WriteConfig) -> None:
    with pytest.raises(ConfigError, match=r"'seed=1' is a setting, .* type CONFIG\.yaml seed=1"):
        load_config("seed=1")


def test_a_missing_file_suggests_its_neighbour(write_config: WriteConfig) -> None:
    path = write_config("l16_pretrain")
    with pytest.raises(ConfigError, match=r"does not exist; did you mean .*l16_pretrain\.yaml"):
        load_config(path.with_name("l16_pretrian.yaml"))


def test_a_circle_of_extends_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: a.yaml")
    with pytest.raises(ConfigError, match="is circular"):
        load_config(tmp_path / "a.yaml")


def test_a_missing_value_is_named(tmp_path: Path, write_config: WriteConfig) -> None:
    path = write_config()
    values = yaml.safe_load(path.read_text())
    del values["model"]["num_classes"]
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match=r"model\.num_classes is not set"):
        load_config(path)


def test_overrides_and_options_come_in_any_order() -> None:
    from pipeline.__main__ import parse_arguments

    arguments = parse_arguments(["evaluate", "runs/x", "--watch", "evaluation.shots=[1]"])
    assert arguments.watch
    assert arguments.overrides == ["evaluation.shots=[1]"]
    with pytest.raises(SystemExit):
        parse_arguments(["evaluate", "runs/x", "--wach"])


def test_the_command_prints_one_sentence_and_exits_with_2(write_config: WriteConfig) -> None:
    result = run_command("train", str(write_config()), "trainer.global_batch_size=1")
    assert result.returncode == 2
    *progress, last = result.stdout.strip().splitlines()
    assert last.startswith("error: trainer.global_batch_size=1 is less than an image for each")
    assert all(line.startswith("[run] ") for line in progress)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("spare: " + "[" * 3000 + "]" * 3000, "nested too deeply"),
        (
            "spare: [&a [x, x, x, x, x, x, x, x, x, x], "
            + ", ".join(f"&{'abcdefghi'[i]} [{', '.join(['*' + 'abcdefghi'[i - 1]] * 10)}]" for i in range(1, 9))
            + "]",
            "aliases",
        ),
        ("spare: &a [*a]", "contains it"),
        ("spare: !!bool maybe", "not what its form"),
        ("spare: !!timestamp x", "not what its form"),
        ("spare: !!int ''", "not what its form"),
        ("seed: 1" + "0" * 5000, "seed"),
        ("spare: {mode: auto, mode: offline}", "'mode' is set twice, in lines [0-9]+ and [0-9]+; delete one"),
        ("spare: 'a\x01b'", "special characters"),
        ("spare: \udcff", "utf-8"),
        ('extends: "a\\0b"', "null"),
    ],
)
def test_yaml_that_python_chokes_on_is_refused_in_words(write_config: WriteConfig, line: str, message: str) -> None:
    """Deep nesting, aliases of aliases and deceptive values are refused at once, without a foreign exception."""
    path = write_config()
    path.write_bytes(path.read_bytes() + line.encode(errors="surrogateescape") + b"\n")
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path)
    assert len(str(caught.value)) < 2000


def test_a_message_stays_short_whatever_was_given(write_config: WriteConfig) -> None:
    overrides = [
        f"model.name={'x' * 10_000}",
        f"model.name=L/{'9' * 5000}",
        "model.name=L/²",
        f"optimizer.betas=[{'2, ' * 5000}]",
        f"{'y' * 5000}=1",
        "data.train=[" + "{}," * 500 + "]",
    ]
    for given in ([override] for override in overrides):
        with pytest.raises(ConfigError) as caught:
            load_config(write_config(), given).model.resolve()
        assert len(str(caught.value)) < 8000, given[0][:40]
