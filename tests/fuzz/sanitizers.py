"""Build the C decoder with AddressSanitizer and UndefinedBehaviorSanitizer, or say why that is impossible."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.targets import Build

SOURCES = Path(__file__).parents[2] / "pipeline" / "data" / "images"
SEEDS_SOURCE = Path(__file__).parent / "encode_jpeg.c"
PACKAGES = ("gcc", "libc6-dev", "libjpeg-dev")
INSTALL_TIMEOUT_S = 300
MODULE_VARIABLE, ENCODER_VARIABLE = "FUZZ_JPEG_MODULE", "FUZZ_JPEG_ENCODER"
FLAGS = ("-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
# Nothing is kept between calls: a buffer that is larger than needed would hide a read behind its end.
DEFINES = ("-DKEPT_BYTES=0",)
OPTIONS = {
    "detect_leaks": "0",  # Python keeps what it likes
    "malloc_context_size": "0",  # no stack for every allocation of torch and Pillow: six times as fast
    "quarantine_size_mb": "4",
    "alloc_dealloc_mismatch": "0",
    "allocator_may_return_null": "1",
    "max_allocation_size_mb": "2048",
    "hard_rss_limit_mb": "6144",
    "handle_abort": "1",
}


class NoSanitizerError(Exception):
    """It cannot be built here; the message says what is missing."""


@dataclass(frozen=True)
class SanitizedModule:
    """Names a build of `pipeline.data.images._jpeg`, the encoder of unusual seeds, and what must be loaded before Python."""

    library: Path
    encoder: Path
    preload: tuple[str, ...]

    def environment(self) -> dict[str, str]:
        """Return the environment of a process that is to load it."""
        return {
            "LD_PRELOAD": " ".join(self.preload),
            "ASAN_OPTIONS": ":".join(f"{name}={value}" for name, value in OPTIONS.items()),
            "UBSAN_OPTIONS": "print_stacktrace=1",
            MODULE_VARIABLE: str(self.library),
            ENCODER_VARIABLE: str(self.encoder),
        }


def build_module(folder: Path, build: Build) -> SanitizedModule:
    """Compile it with gcc, after installing what that needs where this is allowed (Debian, as root).

    Raises:
        NoSanitizerError: what is missing.
    """
    ensure_tools()
    folder.mkdir(parents=True, exist_ok=True)
    library, encoder = folder / f"_jpeg-{build}.so", folder / "encode_jpeg"
    include = f"-I{sysconfig.get_paths()['include']}"
    plain = ("-DPLAIN_C",) if build == "plain" else ()
    _compile(
        "-shared", "-fPIC", *FLAGS, *DEFINES, *plain, include, str(SOURCES / "_jpeg.c"), "-o", str(library), "-ljpeg", "-lm"
    )
    _compile("-O1", str(SEEDS_SOURCE), "-o", str(encoder), "-ljpeg")
    # They are loaded first, as they must be; the C++ library so that its exceptions are intercepted too.
    preload = tuple(_output("gcc", f"-print-file-name={name}") for name in ("libasan.so", "libstdc++.so.6"))
    return SanitizedModule(library, encoder, preload)


def ensure_tools() -> None:
    """Install compiler and headers where they are missing.

    Raises:
        NoSanitizerError: missing, and not installable.
    """
    reason = _missing()
    if reason is None:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise NoSanitizerError(f"{reason}; install a C compiler and libjpeg-turbo's headers (Debian: {', '.join(PACKAGES)})")
    for command in (("update", "-q"), ("install", "-q", "--yes", "--no-install-recommends", *PACKAGES)):
        try:
            env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            done = subprocess.run(("apt-get", *command), env=env, text=True, capture_output=True, timeout=INSTALL_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise NoSanitizerError(f"{reason}, and apt-get {command[0]} does not end") from error
        if done.returncode:
            last = " ".join((done.stderr or done.stdout).strip().splitlines()[-1:])
            raise NoSanitizerError(f"{reason}, and apt-get {command[0]} failed: {last}")
    if reason := _missing():
        raise NoSanitizerError(f"{reason}, though {', '.join(PACKAGES)} are installed")


def _missing() -> str | None:
    """Return why a program with sanitizers and libjpeg cannot be built, or None."""
    if shutil.which("gcc") is None:
        return "gcc is missing"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        return "Python's headers are missing (python3-dev)"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "try.c"
        source.write_text("#include <stdio.h>\n#include <jpeglib.h>\nint main(void) { return JPEG_LIB_VERSION == 0; }\n")
        command = ("gcc", *FLAGS, str(source), "-o", str(source.with_suffix("")), "-ljpeg")
        done = subprocess.run(command, text=True, capture_output=True)
        if done.returncode:
            return "a program with AddressSanitizer and libjpeg does not compile: " + done.stderr.strip().splitlines()[-1]
        ran = subprocess.run([str(source.with_suffix(""))], text=True, capture_output=True)
        return f"AddressSanitizer does not run here: {ran.stderr.strip()[:200]}" if ran.returncode else None


def _compile(*arguments: str) -> None:
    done = subprocess.run(("gcc", *arguments), text=True, capture_output=True)
    if done.returncode:
        raise NoSanitizerError(f"gcc fails: {done.stderr.strip()[-500:]}")


def _output(*command: str) -> str:
    return subprocess.run(command, text=True, capture_output=True, check=True).stdout.strip()
