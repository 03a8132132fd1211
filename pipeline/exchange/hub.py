"""Upload a folder to a model hub with huggingface_hub, which takes the token and the hub's address from the environment."""

from __future__ import annotations

import importlib
import os
import re
from pathlib import Path
from typing import Any

from pipeline.credentials import redact
from pipeline.errors import ExchangeError

HOW_TO_INSTALL = "pip install '.[hub]'"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def check_repository(name: str) -> None:
    """Accept `owner/name` alone.

    Raises:
        ExchangeError: it is no such name.
    """
    if not _REPOSITORY.fullmatch(name):
        raise ExchangeError(f"--push {name[:80]}: a repository is owner/name, of letters, digits, '-', '_' and '.'")


def require_token() -> Any:
    """Return the library, where it is installed and a token is known.

    Raises:
        ExchangeError: one of them is missing.
    """
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise ExchangeError(f"--push needs huggingface_hub ({error}); {HOW_TO_INSTALL}") from error
    if not hub.get_token():
        raise ExchangeError("--push needs a token of the hub: set HF_TOKEN, or type `hf auth login`; --dry-run needs none")
    return hub


def push_folder(folder: Path, repository: str, *, private: bool, message: str) -> str:
    """Upload a folder's files as one commit. Return the commit's address.

    Raises:
        ExchangeError: there is no token, or the hub refuses.
    """
    hub = require_token()
    try:
        api = hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="vit-pretraining-pipeline")
        api.create_repo(repository, private=private, exist_ok=True)
        files = listed(folder)
        commit = api.upload_folder(repo_id=repository, folder_path=str(folder), commit_message=message, allow_patterns=files)
    except Exception as error:  # the library raises its own errors and those of two HTTP clients
        where = os.environ.get("HF_ENDPOINT", "the hub")
        reason = redact(" ".join(f"{type(error).__name__}: {error}".split())[:300])
        raise ExchangeError(f"{where} has not taken {repository}: {reason}; what was written is in {folder}") from error
    return str(getattr(commit, "commit_url", commit))


def listed(folder: Path) -> list[str]:
    """Return the names of the files that are uploaded: those of a model, and nothing else that lies in the folder."""
    names = ("model.safetensors", "config.json", "preprocessor_config.json", "README.md", "classes.txt")
    others = sorted(path.name for path in folder.iterdir() if path.name.endswith((".onnx", ".onnx.data", ".npz")))
    return [name for name in names if (folder / name).exists()] + others
