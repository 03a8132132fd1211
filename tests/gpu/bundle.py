"""Pack the project, and the wheels that a bare GPU machine lacks, into one folder: `make gpu-bundle`.

    python -m tests.gpu.bundle OUT [--python 3.12] [--compressed]

The machine needs Python, torch with CUDA, and what comes with lightning, torchmetrics, timm, torchvision and transformers. The
folder holds the rest, in the versions of the lock file, for Linux on x86-64:

    OUT/project/        what git tracks, without the large pictures of docs/
    OUT/wheels/         wheels; DeepSpeed's is built here, without any compiled operator
    OUT/run.sh          unpacks the wheels and runs everything within a budget: `bash run.sh --budget 14 --out results`
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).parents[2]
LOCK = REPOSITORY / "requirements.lock"
# What the machine has, with all that each of these needs.
GIVEN = ("torch", "lightning", "torchmetrics", "timm", "torchvision", "transformers", "triton", "setuptools", "pip")
# The libraries behind those are not all in this environment, so the ones that ours need as well are named.
GIVEN_TOO = (
    "huggingface-hub", "safetensors", "tqdm", "numpy", "pillow", "pyyaml", "requests", "fsspec", "packaging", "filelock",
)  # fmt: skip
TESTS = ("pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "beartype")
FLOAT8 = "torchao"
LEFT_OUT = ("*.png", "*.jpg", "*.svg")  # of docs/
BUILT_HERE = "deepspeed"  # the registry has no wheel of it
SCRIPT = """\
#!/usr/bin/env bash
# Check and measure this machine within a budget of minutes:   bash run.sh [--budget MINUTES] [--out FOLDER]
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PYTHON=${PYTHON:-python3}
SITE=${SITE:-$HERE/site}
[ -e "$SITE/.unpacked" ] || "$PYTHON" - "$HERE/wheels" "$SITE" <<'END'
import pathlib, sys, zipfile
wheels, site = map(pathlib.Path, sys.argv[1:])
for wheel in sorted(wheels.glob("*.whl")):
    zipfile.ZipFile(wheel).extractall(site)
    data = site / (wheel.name.split("-")[0] + "-" + wheel.name.split("-")[1] + ".data")
    for part in ("purelib", "platlib"):
        for path in sorted((data / part).rglob("*")) if (data / part).is_dir() else []:
            target = site / path.relative_to(data / part)
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.is_file():
                path.replace(target)
    for program in (data / "scripts").glob("*") if (data / "scripts").is_dir() else []:
        (site / "bin").mkdir(exist_ok=True)
        program.replace(site / "bin" / program.name)
        (site / "bin" / program.name).chmod(0o755)
for program in [*site.glob("wandb/bin/*"), *site.glob("ninja/data/bin/*")]:
    program.chmod(0o755)
(site / ".unpacked").touch()
END
export PYTHONPATH="$HERE/project:$SITE${PYTHONPATH:+:$PYTHONPATH}" PATH="$SITE/bin:$PATH" PYTHONDONTWRITEBYTECODE=1
case " $* " in *" --out "*) ;; *) set -- "$@" --out "$PWD/gpu-results" ;; esac
ARGUMENTS=()
while [ $# -gt 0 ]; do
    [ "$1" != --out ] || { mkdir -p "$2"; ARGUMENTS+=("$1" "$(cd "$2" && pwd)"); shift 2; continue; }
    ARGUMENTS+=("$1"); shift
done
cd "$HERE/project"
exec "$PYTHON" -m tests.gpu.run "${ARGUMENTS[@]}"
"""


def needed(roots: Iterable[str], *, python: str, without: Iterable[str] = ()) -> set[str]:
    """Return the installed distributions that some need, themselves among them, by their canonical names.

    Args:
        python: version for which markers are read.
        without: distributions whose needs are not followed.
    """
    environment = {**default_environment(), "python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    found: set[str] = set()
    waiting = [canonicalize_name(root) for root in roots]
    stops = {canonicalize_name(name) for name in without}
    while waiting:
        name = waiting.pop()
        if name in found or name in stops:
            continue
        try:
            requirements = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        found.add(name)
        for text in requirements:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate(environment):
                waiting.append(canonicalize_name(requirement.name))
    return found


def wheels_to_bring(*, python: str) -> dict[str, str]:
    """Return what the machine lacks, by name, with the versions of the lock file."""
    given = needed(GIVEN, python=python) | {canonicalize_name(name) for name in (*GIVEN, *GIVEN_TOO)}
    wanted = needed(["vit-pretraining-pipeline", *TESTS, FLOAT8], python=python, without=given) - {"vit-pretraining-pipeline"}
    versions = dict(re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;]+)", LOCK.read_text(), flags=re.MULTILINE))
    pins = {canonicalize_name(name): version for name, version in versions.items()}
    return {name: pins.get(name) or metadata.version(name) for name in sorted(wanted - given)}


def fetch_wheels(pins: dict[str, str], folder: Path, *, python: str) -> None:
    """Download wheels for Linux and a version of Python; build the one that the registry has not.

    Raises:
        subprocess.CalledProcessError: a wheel cannot be had; pip has said why.
    """
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    tags = ["--platform", "manylinux_2_28_x86_64", "--platform", "manylinux2014_x86_64", "--platform", "manylinux_2_17_x86_64"]
    target = ["--only-binary=:all:", "--python-version", python, "--implementation", "cp", *tags]
    others = [f"{name}=={version}" for name, version in pins.items() if name != BUILT_HERE]
    subprocess.run([*pip, "download", "--no-deps", *target, "--dest", str(folder), *others], check=True)
    if BUILT_HERE in pins:
        build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
        subprocess.run([*build, f"{BUILT_HERE}=={pins[BUILT_HERE]}"], check=True, env={**os.environ, "DS_BUILD_OPS": "0"})
        for wheel in folder.glob(f"{BUILT_HERE}-*.whl"):  # it holds no binary, whatever its name says
            wheel.rename(wheel.with_name(f"{BUILT_HERE}-{pins[BUILT_HERE]}-py3-none-any.whl"))


def copy_project(folder: Path) -> None:
    """Copy what git tracks, and a record of the version."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        source = REPOSITORY / name
        if name.startswith("docs/") and any(source.match(pattern) for pattern in LEFT_OUT):
            continue
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    describe = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(describe, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout
    (folder / "COMMIT").write_text(commit)


def make(out: Path, *, python: str) -> int:
    """Make the folder anew. Return its size in bytes."""
    with tempfile.TemporaryDirectory(dir=out.parent) as draft:
        made = Path(draft) / "bundle"
        (made / "wheels").mkdir(parents=True)
        fetch_wheels(wheels_to_bring(python=python), made / "wheels", python=python)
        copy_project(made / "project")
        (made / "run.sh").write_text(SCRIPT)
        (made / "run.sh").chmod(0o755)
        shutil.rmtree(out, ignore_errors=True)
        made.rename(out)
    return sum(path.stat().st_size for path in out.rglob("*") if path.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.gpu.bundle", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder to make; an old one is replaced")
    parser.add_argument("--python", default="3.12", help="version of Python on the machine (default: 3.12)")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    size = make(arguments.out, python=arguments.python)
    count = len(list((arguments.out / "wheels").iterdir()))
    what = f"{size / 2**20:.1f} MiB, {count} wheels for Python {arguments.python}"
    print(f"{arguments.out}: {what}; run `bash {arguments.out}/run.sh`")


if __name__ == "__main__":
    main()
