"""Credentials are refused in configurations and hidden in text, and texts that only resemble one are left alone."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from pipeline.config.read import load_config
from pipeline.credentials import find_credential, redact
from pipeline.errors import ConfigError
from tests.conftest import run_command
from tests.helpers.trainings import WriteConfig

SECRET = "hunter2SECRET"
HOLDING = [
    f"https://user:{SECRET}@host/data",
    f"s3://key:{SECRET}@bucket/x-{{000..999}}.tar",
    f"https://host/a.tar?X-Amz-Credential=x&X-Amz-Signature={SECRET}",
    f"https://host/a.tar?sv=2024&sig={SECRET}",
    f"https://host/a.tar?token={SECRET}",
    f"https://storage.googleapis.com/b/a.tar?X-Goog-Signature={SECRET}",
    f"https://host/a.tar?api_key={SECRET}#x",
    f'pipe:curl -H "Authorization: Bearer {SECRET}" https://host/a.tar',
    f"pipe:curl -u me:{SECRET} https://host/a.tar",
    f"pipe:fetch --password={SECRET} a.tar",
    f"pipe:fetch --api-key {SECRET} a.tar",
]
HARMLESS = [
    "/data/imagenet21k",
    "s3://bucket/in21k",
    "https://host:8080/in21k",
    "sftp://me@host/in21k",
    "https://host/a.tar?version=3&part=7",
    'pipe:curl -H "Authorization: Bearer $TOKEN" https://host/a.tar',
    "pipe:curl -u me:$PASSWORD https://host/a.tar",
    "https://me:$PASSWORD@host/a.tar",
    "pipe:aws s3 cp s3://bucket/x-{000..999}.tar -",
    "sha256:0123456789abcdef@x",
]


@pytest.mark.parametrize("text", HOLDING)
def test_a_credential_is_refused_without_being_repeated(text: str, write_config: WriteConfig) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write_config(data={"train": text}))
    assert "data.train holds a" in str(caught.value)
    assert "give it in the environment" in str(caught.value)
    assert SECRET not in str(caught.value)
    assert SECRET not in redact(f"DataError: {text}: 403")


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_none_is_left_alone(text: str, write_config: WriteConfig) -> None:
    assert find_credential(text) is None
    assert redact(text) == text
    assert load_config(write_config(data={"train": text})).data.train == text


def test_wherever_it_stands_it_is_refused(write_config: WriteConfig) -> None:
    url = f"https://user:{SECRET}@host/x"
    with pytest.raises(ConfigError, match=r"evaluation\.datasets\.0\.test holds a password in a URL"):
        load_config(write_config(evaluation={"datasets": [{"name": "a", "train": "/x", "test": url}]}))
    with pytest.raises(ConfigError, match=r"data\.train\.1\.path holds a password in a URL"):
        load_config(write_config(data={"train": [{"path": "/x", "weight": 1}, {"path": url, "weight": 1}]}))


@pytest.mark.parametrize(
    "override", ["data.trian=URL", "data.train={a: URL}", "data.train=[{path: URL}]", "URL", "data.num_workers=URL"]
)
def test_a_mistake_beside_it_does_not_print_it(override: str, write_config: WriteConfig) -> None:
    result = run_command("show-config", str(write_config()), override.replace("URL", f"https://user:{SECRET}@host/x"))
    assert result.returncode == 2
    assert SECRET not in result.stdout


@pytest.mark.parametrize(
    "name", ["a;b", "$(id)", "`id`", "a b", "a|b", "a&b", "-rf", "..", "../x", "a/b", "a'b", 'a"b', "*", "~", "é", "a\nb", ""]
)
def test_a_name_that_a_shell_would_read_otherwise_is_refused(name: str, write_config: WriteConfig) -> None:
    with pytest.raises(ConfigError, match="letters, digits"):
        load_config(write_config(), [f"name={json.dumps(name)}"])


def test_a_name_that_is_taken_means_the_same_to_a_shell(tmp_path: Path) -> None:
    name = "L16.in21k_run-2"
    said = subprocess.run(["sh", "-c", f"echo {name}"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert said == f"{name}\n"
