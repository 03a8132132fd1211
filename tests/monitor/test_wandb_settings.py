"""The environment, settings files and the configuration decide what is sent to W&B."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.monitor.wandb_settings import Mode, choose_mode, client_environment, read_wandb_environment
from tests.conftest import REPOSITORY

KEY = {"WANDB_API_KEY": "k" * 40}


def mode_of(folder: Path, asked: Mode = "auto", **variables: str) -> str:
    environment = read_wandb_environment(
        {"NETRC": str(folder / "netrc"), "WANDB_CONFIG_DIR": str(folder / "home"), **variables}, folder=folder
    )
    return choose_mode(asked, environment).mode


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "offline"),
        (KEY, "online"),
        ({"WANDB_API_KEY": "  "}, "offline"),
        ({"WANDB_IDENTITY_TOKEN_FILE": "/jwt"}, "online"),
        *(({**KEY, "WANDB_MODE": word}, "offline") for word in ("offline", "dryrun", " Offline\n", "DRYRUN")),
        *(({**KEY, "WANDB_MODE": word}, "disabled") for word in ("disabled", "Disabled ")),
        *(({"WANDB_MODE": word}, "online") for word in ("online", "run", "shared")),
        *(({**KEY, "WANDB_DISABLED": word}, "disabled") for word in ("true", "1", "YES", "on")),
        *(({**KEY, "WANDB_DISABLED": word}, "online") for word in ("false", "0", "")),
        ({**KEY, "WANDB_DISABLED": "true", "WANDB_MODE": "online"}, "disabled"),
        ({**KEY, "WANDB_SILENT": "true"}, "online"),
        ({**KEY, "WANDB_MODE": ""}, "online"),
    ],
)
def test_every_way_to_say_not_online_is_heeded(variables: dict[str, str], expected: str, tmp_path: Path) -> None:
    assert mode_of(tmp_path, **variables) == expected


@pytest.mark.parametrize("asked", ["online", "offline", "disabled"])
@pytest.mark.parametrize("said", ["online", "offline", "disabled"])
def test_of_configuration_and_environment_the_quieter_counts(asked: Mode, said: Mode, tmp_path: Path) -> None:
    order = ["online", "offline", "disabled"]
    assert mode_of(tmp_path, asked, **KEY, WANDB_MODE=said) == order[max(order.index(asked), order.index(said))]


def test_the_reason_names_who_was_overruled(tmp_path: Path) -> None:
    environment = read_wandb_environment({**KEY, "WANDB_MODE": "dryrun"}, folder=tmp_path)
    assert choose_mode("online", environment).reason == "WANDB_MODE=dryrun, which counts more than tracking.mode=online"
    assert choose_mode("auto", read_wandb_environment(KEY, folder=tmp_path)).reason == "key in WANDB_API_KEY"


@pytest.mark.parametrize(
    ("variables", "pattern"),
    [
        ({"WANDB_MODE": "ofline"}, "WANDB_MODE='ofline' is not a mode of W&B; the known ones are disabled, dryrun, offline"),
        ({"WANDB_DISABLED": "maybe"}, "neither true nor false"),
        ({"WANDB_PROJECT": "a/b"}, "WANDB_PROJECT='a/b' cannot be the name of a W&B project"),
        ({"WANDB_PROJECT": "x" * 129}, "128 characters"),
        ({"WANDB_ENTITY": "team/project"}, "WANDB_ENTITY='team/project' cannot be the name of a W&B entity"),
        ({"WANDB_RUN_ID": "team/run"}, "WANDB_RUN_ID='team/run' cannot be a run's id"),
        ({"WANDB_INIT_TIMEOUT": "long"}, "not a number of seconds"),
        ({"WANDB_BASE_URL": "wandb.example.org"}, "write it as https://"),
    ],
)
def test_a_value_that_wandb_does_not_know_is_refused(variables: dict[str, str], pattern: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=pattern):
        read_wandb_environment(variables, folder=tmp_path)


@pytest.mark.parametrize(
    ("line", "url", "expected"),
    [
        ("machine api.wandb.ai login user password k", None, "online"),
        ("machine api.forge.coreweave.com login user password k", None, "online"),
        ("machine elsewhere login user password k", None, "offline"),
        ("machine api.wandb.ai login user password k", "https://wandb.example.org:8080", "offline"),
        ("machine wandb.example.org:8080 login user password k", "https://wandb.example.org:8080", "online"),
        ("default login anonymous password me@example.org", None, "offline"),  # an FTP login, not a key
        (f"default login user password {'k' * 40}", None, "online"),
        ("machine api.wandb.ai login", None, "offline"),  # torn
    ],
)
def test_a_key_in_netrc_counts_for_its_server(line: str, url: str | None, expected: str, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text(line)
    assert mode_of(tmp_path, **({"WANDB_BASE_URL": url} if url else {})) == expected


def test_a_broken_netrc_is_named_without_a_word_of_it(tmp_path: Path) -> None:
    """A password with a blank in it breaks the file, and its second half would appear in the log."""
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user\npassword correct horsebattery staple\n")
    environment = read_wandb_environment({"NETRC": str(tmp_path / "netrc")}, folder=tmp_path)
    assert environment.no_key.endswith("netrc, which cannot be read (line 2 is not of netrc's form)")


def test_settings_files_count_as_with_wandb(tmp_path: Path) -> None:
    """`wandb offline` and `wandb disabled` write such files; a variable counts more, a nearer file more than the user's own."""
    files = {name: tmp_path / name / "settings" for name in ("home", "wandb")}
    for path in files.values():
        path.parent.mkdir()
    files["home"].write_text(f"[default]\nmode = offline\nproject = mine\nentity = team\napi_key = {'k' * 40}\n")
    assert mode_of(tmp_path, **KEY) == "offline"
    assert mode_of(tmp_path, WANDB_MODE="online") == "online"
    files["wandb"].write_text("[default]\nmode = disabled\n")
    assert mode_of(tmp_path, **KEY) == "disabled"
    files["wandb"].write_text("[default]\nmode = online\n")
    assert mode_of(tmp_path) == "online"
    environment = read_wandb_environment({"WANDB_CONFIG_DIR": str(tmp_path / "home"), "WANDB_ENTITY": "me"}, folder=tmp_path)
    assert environment.project is not None
    assert environment.entity is not None
    assert (environment.project.value, environment.entity.value) == ("mine", "me")
    elsewhere = tmp_path / "elsewhere" / "wandb" / "settings"  # `wandb offline` writes here when WANDB_DIR is set
    elsewhere.parent.mkdir(parents=True)
    elsewhere.write_text("[default]\nmode = offline\n")
    assert mode_of(tmp_path, **KEY, WANDB_DIR=str(tmp_path / "elsewhere")) == "offline"
    files["wandb"].write_text("[default]\nmode = quiet\n")
    with pytest.raises(ConfigError, match=r"wandb/settings: mode='quiet' is not a mode"):
        mode_of(tmp_path)
    files["wandb"].write_text("mode = offline\n")
    with pytest.raises(ConfigError, match=r"settings file .* cannot be read"):
        mode_of(tmp_path)


def test_wandbs_client_is_given_nothing_that_speaks_against_the_run(tmp_path: Path) -> None:
    given = {
        "PATH": "/bin",
        "WANDB_MODE": " ofline",
        "WANDB_RUN_ID": "x",
        "WANDB_RESUME": "must",
        "WANDB_TAGS": "a,,b",
        "WANDB_SERVICE": "old",
        "WANDB_API_KEY": f"{'k' * 40}\n",
        "WANDB_SILENT": "",
        "WANDB_HTTP_TIMEOUT": "30",
        "https_proxy": "http://proxy:3128",
    }
    environment = client_environment(given, cache=tmp_path)
    assert {name: value for name, value in environment.items() if not value.startswith(str(tmp_path))} == {
        "PATH": "/bin", "WANDB_API_KEY": "k" * 40, "WANDB_HTTP_TIMEOUT": "30", "https_proxy": "http://proxy:3128",
        "WANDB_X_SERVICE_WAIT": "85",
    }  # fmt: skip
    assert client_environment({"WANDB_X_SERVICE_WAIT": "9"}, cache=tmp_path)["WANDB_X_SERVICE_WAIT"] == "9"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user whom nobody knows")
def test_no_home_is_needed(tmp_path: Path) -> None:
    """HOME is unset and the password file does not know the user, as in containers; or the home is closed to this user."""
    script = (
        "import os, sys; os.setgroups([]); os.setgid(54321); os.setuid(54321)\n"
        "from pathlib import Path; from pipeline.monitor.wandb_settings import *\n"
        "print(choose_mode('auto', read_wandb_environment(folder=Path('/'))).mode, client_environment({}, "
        "cache=Path('/c')).get('HOME'))"
    )
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    for home, given in ((None, "/c"), (str(closed), None)):
        environment = {"PYTHONPATH": str(REPOSITORY), **({"HOME": home} if home else {})}
        command = [sys.executable, "-c", f"import pipeline.monitor.wandb_settings, pipeline.credentials\n{script}"]
        outcome = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert outcome.stdout.split() == ["offline", str(given)]
