"""Find the file or folder of weights that a text names: on this machine, in a cache of the model hub, or nowhere."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.errors import ExchangeError

_LOCAL = re.compile(r"(?:local-dir:|file:/*(?=/))")  # as timm and browsers name a path
_REMOTE = re.compile(r"(gs|s3|https?|hf|hf-hub|hf_hub|timm|hdfs|r2):")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_SNAPSHOTS, _MAIN = "snapshots", "refs/main"


def place_of(name: str | Path) -> Path:
    """Return the path that a name is: `~` is the home folder, `local-dir:` is left out as timm does.

    Raises:
        ExchangeError: it names something that is not on this machine.
    """
    text = _LOCAL.sub("", str(name), count=1) if _LOCAL.match(str(name)) else str(name)
    if (remote := _REMOTE.match(text)) and not Path(text).exists():
        how = "`gcloud storage cp`" if remote[1] == "gs" else "`curl -LO`" if remote[1].startswith("http") else "`hf download`"
        raise ExchangeError(f"{text} is not on this machine; download it ({how} does), then give its path")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ExchangeError(f"{text}: {error}") from error


def snapshot_of(folder: Path) -> Path:
    """Return the folder of the model's files where a folder is a model's cache of huggingface_hub, else the folder.

    Such a cache has blobs, refs and a snapshot for each commit, whose files are links to blobs.

    Raises:
        ExchangeError: there are several snapshots, and none is the main branch's; or none.
    """
    snapshots = folder / _SNAPSHOTS
    if not snapshots.is_dir() or not (folder / "refs").is_dir():
        return folder
    found = sorted(entry for entry in snapshots.iterdir() if entry.is_dir())
    main = folder / _MAIN
    commit = main.read_text().strip() if main.is_file() else None
    chosen = [entry for entry in found if entry.name == commit] or found
    if len(chosen) != 1:
        names = ", ".join(entry.name for entry in found[:5]) or "none"
        raise ExchangeError(f"{folder} is a cache of the model hub with the snapshots {names}; give one: {snapshots}/COMMIT")
    return chosen[0]


def missing(path: Path, *, formats: str) -> ExchangeError:
    """Return the error for a path that does not exist."""
    if path.is_symlink():
        return ExchangeError(f"{path} is a link to {path.readlink()}, which does not exist; download or copy the file again")
    hint = f"; `hf download {path} --local-dir FOLDER` brings a model of the hub" if _HUB_NAME.fullmatch(str(path)) else ""
    return ExchangeError(f"weights {path} do not exist; they are {formats}{hint}")
