"""Read what the environment and W&B's settings files ask for. No other module reads W&B's variables.

W&B's own order of precedence holds: a variable counts before `./wandb/settings` (or `$WANDB_DIR/wandb/settings`), and that
before `~/.config/wandb/settings` (or `$WANDB_CONFIG_DIR/settings`). W&B's client is not asked: importing it takes seconds.
"""

from __future__ import annotations

import configparser
import hashlib
import netrc
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pipeline.credentials import redact
from pipeline.errors import ConfigError

Mode = Literal["auto", "online", "offline", "disabled"]
Resolved = Literal["online", "offline", "disabled"]
# `dryrun` and `run` are W&B's older words; `shared` is how an online run is opened here in any case.
_MODES: dict[str, Resolved] = {
    "online": "online", "run": "online", "shared": "online", "offline": "offline", "dryrun": "offline", "disabled": "disabled",
}  # fmt: skip
_QUIETNESS: tuple[Resolved, ...] = ("online", "offline", "disabled")
_TRUTH = {
    **dict.fromkeys(("y", "yes", "t", "true", "on", "1"), True),
    **dict.fromkeys(("n", "no", "f", "false", "off", "0"), False),
}
_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")  # two names of W&B's own server, older and newer clients' default
_KEY = re.compile(r"([^-]+-)?[\w-]{40,}|[\w-]+\.[\w-]+\.[\w-]+")
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_NOT_IN_NAMES = set("/\\#?%:")
SERVICE_WAIT = "WANDB_X_SERVICE_WAIT"
SERVICE_WAIT_S = 85  # for W&B's own process to start: on a busy machine 30 seconds, its default, are too few
_MAX_NAME = 128  # limit for a project, a run or a group
_MAX_TAG = 64
# A launch decides these itself, for these reasons.
_IGNORED = {
    "WANDB_DIR": "the files belong to the run folder",
    "WANDB_RESUME": "a run folder's W&B run always goes on",
    "WANDB_NAME": "the run is named by the configuration",
    "WANDB_JOB_TYPE": "it is train or evaluate",
}
# These are not passed on to W&B's client: they are decided here, or the client would obey them.
_WITHHELD = {
    *_IGNORED, "WANDB_MODE", "WANDB_DISABLED", "WANDB_PROJECT", "WANDB_ENTITY", "WANDB_RUN_ID", "WANDB_RUN_GROUP",
    "WANDB_TAGS", "WANDB_NOTES", "WANDB_RESUME_FROM", "WANDB_FORK_FROM", "WANDB_RUN_NAME", "WANDB_RUN_TAGS",
    "WANDB_RUN_NOTES", "WANDB_RUN_JOB_TYPE", "WANDB_ROOT_DIR", "WANDB_INIT_TIMEOUT", "WANDB_PROGRAM",
}  # fmt: skip


@dataclass(frozen=True)
class Said:
    """Holds a value and its source: a variable or a file."""

    value: str
    source: str


@dataclass(frozen=True)
class WandbEnvironment:
    """Holds every setting from outside the configuration.

    Args:
        key: the place of a key, or None.
        no_key: the places without a key, in words.
        ignored: variable to reason.
    """

    mode: Said | None
    is_disabled: Said | None
    key: str | None
    no_key: str
    project: Said | None
    entity: Said | None
    run_id: Said | None
    group: str | None
    notes: str | None
    tags: tuple[str, ...]
    init_timeout_s: float | None
    ignored: dict[str, str]


@dataclass(frozen=True)
class Choice:
    """Holds a mode and its reason."""

    mode: Resolved
    reason: str


def read_wandb_environment(environ: Mapping[str, str] | None = None, *, folder: Path | None = None) -> WandbEnvironment:
    """Read variables and settings files.

    Args:
        environ: environment; this process's if not given.
        folder: folder in which the command was started; the working directory if not given.

    Raises:
        ConfigError: W&B does not know a value.
    """
    raw = os.environ if environ is None else environ
    values = {name: value.strip() for name, value in raw.items() if value.strip()}  # a blank one is unset
    files = _read_settings_files(values, folder or Path.cwd())
    base_url = _one_of(values, "WANDB_BASE_URL", files, "base_url")
    host = _check_base_url(base_url) if base_url else _HOSTS[0]
    key, no_key = _find_key(values, files, host=host)
    tags = [tag.strip() for tag in values.get("WANDB_TAGS", "").split(",") if tag.strip()]
    ignored = {name: reason for name, reason in _IGNORED.items() if name in values}
    if any(len(tag) > _MAX_TAG for tag in tags):
        ignored["WANDB_TAGS"] = f"in part: a tag has at most {_MAX_TAG} characters"
    return WandbEnvironment(
        mode=_check_mode(_one_of(values, "WANDB_MODE", files, "mode")),
        is_disabled=_check_disabled(values),
        key=key,
        no_key=no_key,
        project=check_name("project", _one_of(values, "WANDB_PROJECT", files, "project")),
        entity=check_name("entity", _one_of(values, "WANDB_ENTITY", files, "entity")),
        run_id=_check_run_id(values),
        group=values.get("WANDB_RUN_GROUP"),
        notes=values.get("WANDB_NOTES"),
        tags=tuple(tag for tag in tags if len(tag) <= _MAX_TAG),
        init_timeout_s=_check_timeout(values),
        ignored=ignored,
    )


def choose_mode(asked: Mode, environment: WandbEnvironment) -> Choice:
    """Return the quieter of the configuration's mode and the environment's.

    Data sent against somebody's will cannot be called back. A run kept offline can be uploaded later.
    """
    said = (
        [Choice(_MODES[environment.mode.value], f"{environment.mode.source}={environment.mode.value}")]
        if environment.mode
        else []
    )
    if environment.is_disabled:
        said.append(Choice("disabled", f"{environment.is_disabled.source}={environment.is_disabled.value}"))
    if asked != "auto":
        said.append(Choice(asked, f"tracking.mode={asked}"))
    if not said:
        return Choice("online", f"key in {environment.key}") if environment.key else Choice("offline", environment.no_key)
    choice = max(said, key=lambda one: _QUIETNESS.index(one.mode))  # the first of equals
    overruled = [one.reason for one in said if one.mode != choice.mode]
    return Choice(
        choice.mode, f"{choice.reason}, which counts more than {' and '.join(overruled)}" if overruled else choice.reason
    )


def client_environment(environ: Mapping[str, str], *, cache: Path) -> dict[str, str]:
    """Return the environment of W&B's client and service, without settings that contradict the run or that need a HOME.

    Args:
        cache: folder for the files that they write besides the run's own.
    """
    # A client started earlier in this process makes its children share its service.
    kept = {name: value for name, value in environ.items() if name not in _WITHHELD and "WANDB_SERVICE" not in name}
    # Blank or padded values end W&B's client, whatever the mode.
    for name in [name for name in kept if name.startswith("WANDB_")]:
        kept[name] = kept[name].strip()
        if not kept[name]:
            del kept[name]
    if "HOME" not in kept and os.path.expanduser("~") == "~":  # in a container, a user without an entry in the password file
        kept["HOME"] = str(cache)
    return {
        SERVICE_WAIT: str(SERVICE_WAIT_S),
        **kept,
        "XDG_CACHE_HOME": str(cache),
        "WANDB_CACHE_DIR": str(cache / "wandb"),
        "WANDB_DATA_DIR": str(cache / "data"),
    }


def check_name(of: Literal["project", "entity"], said: Said | None) -> Said | None:
    """Return a project's or an entity's name, if W&B accepts it.

    Raises:
        ConfigError: W&B does not accept it.
    """
    if said is None or (len(said.value) <= _MAX_NAME and not _NOT_IN_NAMES & set(said.value)):
        return said
    raise ConfigError(
        f"{said.source}={said.value!r} cannot be the name of a W&B {of}: it may have {_MAX_NAME} characters and none "
        "of / \\ # ? % :"
    )


def shorten_name(name: str) -> str:
    """Return a run's or a group's name as W&B's server accepts it. Two long names stay different."""
    if len(name) <= _MAX_NAME:
        return name
    return f"{name[: _MAX_NAME - 9]}-{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}"


def _read_settings_files(values: Mapping[str, str], folder: Path) -> dict[str, Said]:
    """Return settings by name. Those of a later file count more, as with W&B."""
    paths = [_expand_user(values.get("WANDB_CONFIG_DIR", "~/.config/wandb")) / "settings"]
    for root in dict.fromkeys([folder, _expand_user(values.get("WANDB_DIR", str(folder)))]):
        paths.append(root / (".wandb" if os.path.exists(root / ".wandb") else "wandb") / "settings")
    settings: dict[str, Said] = {}
    for path in paths:
        if not os.path.exists(path):  # or it is in a folder that is closed to this user, whose setting it is not
            continue
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read_string(path.read_text())
        except (OSError, UnicodeDecodeError, configparser.Error) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"W&B's settings file {path} cannot be read ({reason}); fix it, or move it away") from error
        if parser.has_section("default"):
            settings |= {
                name: Said(value.strip(), f"{path}: {name}") for name, value in parser.items("default") if value.strip()
            }
    return settings


def _one_of(values: Mapping[str, str], variable: str, files: Mapping[str, Said], name: str) -> Said | None:
    return Said(values[variable], variable) if variable in values else files.get(name)


def _check_mode(said: Said | None) -> Said | None:
    if said is None:
        return None
    mode = said.value.lower()
    if mode not in _MODES:
        raise ConfigError(f"{said.source}={said.value!r} is not a mode of W&B; the known ones are {', '.join(sorted(_MODES))}")
    return Said(mode, said.source)


def _check_disabled(values: Mapping[str, str]) -> Said | None:
    """Read WANDB_DISABLED, of older clients and of other trainers, if it is set."""
    text = values.get("WANDB_DISABLED")
    if text is None:
        return None
    if text.lower() not in _TRUTH:
        raise ConfigError(f"WANDB_DISABLED={text!r} is neither true nor false; unset it, or set WANDB_MODE=disabled")
    return Said(text, "WANDB_DISABLED") if _TRUTH[text.lower()] else None


def _check_run_id(values: Mapping[str, str]) -> Said | None:
    text = values.get("WANDB_RUN_ID")
    if text is not None and not _RUN_ID.fullmatch(text):
        raise ConfigError(
            f"WANDB_RUN_ID={text!r} cannot be a run's id here, for folders are named by it: it may have 64 letters, digits, "
            f"'_', '.' and '-'"
        )
    return None if text is None else Said(text, "WANDB_RUN_ID")


def _check_timeout(values: Mapping[str, str]) -> float | None:
    text = values.get("WANDB_INIT_TIMEOUT")
    try:
        return None if text is None else float(text)
    except ValueError as error:
        raise ConfigError(f"WANDB_INIT_TIMEOUT={text!r} is not a number of seconds") from error


def _check_base_url(said: Said) -> str:
    """Check host and port of the server."""
    parts = urlsplit(said.value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"{said.source}={redact(said.value)!r} is not an address of a W&B server; write it as https://wandb.example.org"
        )
    return parts.netloc.rpartition("@")[2]


def _find_key(values: Mapping[str, str], files: Mapping[str, Said], *, host: str) -> tuple[str | None, str]:
    """Return where a key is, or where none is."""
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        if name in values:
            return name, ""
    paths = [_expand_user(name) for name in ([values["NETRC"]] if "NETRC" in values else ["~/.netrc", "~/_netrc"])]
    path = next((path for path in paths if os.path.exists(path)), paths[0])
    problem = ""
    try:
        entries = netrc.netrc(str(path)).hosts
    except FileNotFoundError:
        entries = {}
    except netrc.NetrcParseError as error:  # its message holds a word of the file, which may be part of a password
        entries, problem = {}, f", which cannot be read (line {error.lineno} is not of netrc's form)"
    except (OSError, UnicodeDecodeError) as error:
        entries, problem = {}, f", which cannot be read ({getattr(error, 'strerror', None) or error})"
    hosts = _HOSTS if host in _HOSTS else (host, host.partition(":")[0])
    # A default entry is often an anonymous login to something else.
    if any(entries[name][2] for name in hosts if name in entries) or _KEY.fullmatch(
        (entries.get("default") or ("", "", ""))[2] or ""
    ):
        return str(path), ""
    if "api_key" in files:
        return files["api_key"].source, ""
    return None, f"no key for {host} in WANDB_API_KEY or {path}{problem}"


def _expand_user(name: str) -> Path:
    """Return the path unchanged where there is no home: HOME is unset and the user has no entry in the password file."""
    return Path(os.path.expanduser(name))
