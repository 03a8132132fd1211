"""Sections of which one is chosen: what is chosen, what is refused, and the messages are right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import TypeAdapter, ValidationError

from pipeline.config.read import load_config
from pipeline.errors import ConfigError
from pipeline.objectives import Sigmoid, Softmax
from pipeline.section import OneOf, Section


class One(Section):
    kind: Literal["one"] = "one"
    size: int = 1


class Two(Section):
    kind: Literal["two"] = "two"
    width: int = 2


CHOICE: TypeAdapter[Any] = TypeAdapter(Annotated[One | Two, OneOf("kind", default="two")])
SINGLE: TypeAdapter[Any] = TypeAdapter(Annotated[One, OneOf("kind", default="one")])


def test_the_key_chooses() -> None:
    assert CHOICE.validate_python({"kind": "one", "size": 3}) == One(size=3)
    assert CHOICE.validate_python({"kind": "two"}) == Two()


def test_without_the_key_it_is_the_default() -> None:
    assert CHOICE.validate_python({"width": 5}) == Two(width=5)
    with pytest.raises(ValidationError, match="Extra inputs"):
        CHOICE.validate_python({"size": 5})


def test_a_section_is_taken_as_it_is_and_written_with_its_key() -> None:
    assert CHOICE.validate_python(One(size=4)) == One(size=4)
    assert CHOICE.dump_python(One(size=4), mode="json") == {"kind": "one", "size": 4}


def test_a_union_of_one_chooses_too() -> None:
    assert SINGLE.validate_python({"size": 7}) == One(size=7)
    with pytest.raises(ValidationError, match="expected tags"):
        SINGLE.validate_python({"kind": "two"})


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        load_config(path, list(overrides))
    return str(error.value)


def test_an_objective_is_chosen_in_a_file_and_by_an_override(write_config: Callable[..., Path]) -> None:
    path = write_config()
    assert load_config(path).objective == Softmax()
    assert load_config(path, ["objective.name=sigmoid", "objective.label_smoothing=0.1"]).objective == Sigmoid(
        label_smoothing=0.1
    )
    again = path.with_name("again.yaml")
    again.write_text(load_config(path, ["objective.label_smoothing=0.1"]).to_yaml())
    assert load_config(again).objective == Softmax(label_smoothing=0.1)


def test_a_typo_inside_a_member_gets_the_right_name(write_config: Callable[..., Path]) -> None:
    text = refusal(write_config(), "objective.label_smoothin=0.1")
    assert "unknown key objective.label_smoothin; did you mean objective.label_smoothing?" in text


def test_a_typo_in_the_choice_gets_the_right_name(write_config: Callable[..., Path]) -> None:
    text = refusal(write_config(), "objective.name=sofmax")
    assert "objective.name=sofmax: there is no such choice; did you mean objective.name=softmax?" in text
    assert "known here: sigmoid, softmax" in refusal(write_config(), "objective.name=hinge")


def test_a_value_that_is_wrong_inside_a_member_is_named_without_the_member(write_config: Callable[..., Path]) -> None:
    text = refusal(write_config(), "objective.label_smoothing=2")
    assert "objective.label_smoothing=2: " in text


def test_a_text_where_a_choice_belongs_is_told_what_to_type(write_config: Callable[..., Path]) -> None:
    assert "objective='softmax': must be a section" in refusal(write_config(), "objective=softmax")
    assert "objective.name=" in refusal(write_config(), "objective=softmax")


def test_a_setting_of_another_member_is_told_whose_it_is(write_config: Callable[..., Path]) -> None:
    message = refusal(write_config(), "objective.hierarchy=x")
    assert "unknown key objective.hierarchy; it is a setting of objective.name=multi_label" in message
    assert "unknown key model.width; it is a setting of model.family=vit or model.family=hybrid" in refusal(
        write_config(), "model.family=bit", "model.name=R50x1"
    )


def test_settings_keep_their_text_inside_a_member(write_config: Callable[..., Path]) -> None:
    assert "010: YAML reads this as octal" in refusal(write_config(), "objective.label_smoothing=010")


def test_settings_of_older_versions_work_in_files_and_on_the_command_line(write_config: Callable[..., Path]) -> None:
    path = write_config()
    path.write_text(path.read_text().replace("objective:", "loss:"))
    assert load_config(path).objective == Softmax()
    assert load_config(path, ["loss.name=sigmoid"]).objective == Sigmoid()
    protocols = load_config(path, ["evaluation.shots=[7]"]).evaluation.protocols
    assert protocols["few_shot"].model_dump(include={"shots", "seeds"}) == {"shots": (7,), "seeds": (0, 1)}
    assert "evaluation.protocols.few_shot.shots.0=0: Input should be greater than 0" in refusal(path, "evaluation.shots=[0]")


def test_a_list_of_protocols_keeps_their_settings(write_config: Callable[..., Path]) -> None:
    protocols = load_config(write_config(), ["evaluation.protocols=[few_shot]"]).evaluation.protocols
    assert list(protocols) == ["few_shot"]
    assert protocols["few_shot"].model_dump()["shots"] == (1, 5)
    assert "linear is there 2 times" in refusal(write_config(), "evaluation.protocols=[linear,linear]")


def test_an_override_of_one_protocol_keeps_the_others(write_config: Callable[..., Path]) -> None:
    path = write_config(evaluation={"protocols": None})
    text = path.read_text().replace("  protocols: null\n", "")
    path.write_text(text)
    protocols = load_config(path, ["evaluation.protocols.few_shot.shots=[5]"]).evaluation.protocols
    assert list(protocols) == ["few_shot", "linear"]
    assert protocols["few_shot"].model_dump()["shots"] == (5,)
    assert list(load_config(path, ["evaluation.protocols.linear=null"]).evaluation.protocols) == ["few_shot"]
    assert list(load_config(path, ["evaluation.protocols=[linear]"]).evaluation.protocols) == ["linear"]


def test_a_protocol_may_be_there_twice_under_names_of_its_own(write_config: Callable[..., Path]) -> None:
    more = "evaluation.protocols.more_shots={protocol: few_shot, shots: [50]}"
    protocols = load_config(write_config(), [more]).evaluation.protocols
    assert list(protocols) == ["few_shot", "linear", "more_shots"]
    assert protocols["more_shots"].model_dump()["shots"] == (50,)


def test_old_lists_of_protocols_leave_out_what_they_do_not_name(tmp_path: Path, write_config: Callable[..., Path]) -> None:
    base = write_config("base")
    path = tmp_path / "child.yaml"
    path.write_text("extends: base.yaml\nevaluation:\n  protocols: [few_shot]\n  shots: [3]\n")
    protocols = load_config(path).evaluation.protocols
    assert list(protocols) == ["few_shot"]
    assert protocols["few_shot"].model_dump()["shots"] == (3,)
    assert list(load_config(base).evaluation.protocols) == ["few_shot", "linear"]
