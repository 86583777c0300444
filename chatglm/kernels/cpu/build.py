"""Compiles the native kernels once per user into <cache folder>/kernels/<key>/<digest>.so and finds them again.

key: sources, flags, compiler, processor; digest: SHA-256 of the file, which detects damage. Concurrent processes each
rename a whole file into the folder. Only files and folders of this user that nobody else can write are used.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from chatglm.cache import OWNER_ONLY, cache_folder, is_private, make_private_folder
from chatglm.errors import ChatGLMError

logger = logging.getLogger(__name__)

NATIVE = Path(__file__).parent / "csrc"
# Comparisons of numbers have no side effects here; with that promised, loops with choices are vectorized.
FLAGS = ("-O3", "-fPIC", "-fvisibility=hidden", "-fno-trapping-math", "-fno-math-errno")
LINK_FLAGS = ("-shared", "-lm")
PARALLEL = ("-fopenmp",)
TIMEOUT_SECONDS = 300


class NoLibraryError(ChatGLMError):
    """The native kernels are not available; others are used."""


@dataclass(frozen=True)
class Compiler:
    """A C compiler: how it is called, and the first line of what it says about itself."""

    command: tuple[str, ...]
    version: str


def library_path() -> Path:
    """The compiled kernels, from the cache or compiled now (a few seconds). Raises NoLibraryError with the reason."""
    if os.name != "posix":
        raise NoLibraryError(f"The native kernels are not built on {sys.platform}.")
    compiler = find_compiler()
    folder = _folder_of(_key(compiler))
    return _trusted_file(folder) or _compile_into(folder, compiler)


def find_compiler() -> Compiler:
    """$CC (may carry flags) if set, else the first of cc, gcc and clang that runs. Raises NoLibraryError if none."""
    asked = os.environ.get("CC")
    commands = [tuple(shlex.split(asked))] if asked else [("cc",), ("gcc",), ("clang",)]
    for command in commands:
        if command and shutil.which(command[0]) and (version := _version(command)):
            return Compiler(command, version)
    names = " ".join(command[0] for command in commands if command)
    raise NoLibraryError(f"No C compiler runs here (looked for {names}).", "Install gcc, or set CC to a compiler.")


def sources() -> list[Path]:
    """The C files that are compiled together."""
    return sorted(NATIVE.glob("*.c"))


def compile_library(compiler: Compiler, target: Path) -> None:
    """Write the library to `target`, with OpenMP where the compiler has it; object files stay in the same folder.

    Raises NoLibraryError with the compiler's first error.
    """
    for extra in (PARALLEL, ()):
        failure = _compile_with((*compiler.command, *FLAGS, *extra), target)
        if not failure:
            return
    raise NoLibraryError(f"{shlex.join(compiler.command)} cannot compile the native kernels: {failure}")


def _compile_with(command: Sequence[str], target: Path) -> str:
    """Compile the files side by side and link them; "" or why it failed."""
    objects = {path: target.with_name(f"{path.stem}.o") for path in sources()}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        compiled = pool.map(lambda pair: _run((*command, "-c", str(pair[0]), "-o", str(pair[1]))), objects.items())
        failures = [failure for failure in compiled if failure]
    if failures:
        return failures[0]
    return _run((*command, *map(str, objects.values()), "-o", str(target), *LINK_FLAGS))


def _run(command: Sequence[str]) -> str:
    """Run a compiler; "" or why it failed, in a line."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if result.returncode == 0:
        return ""
    logger.debug("%s\n%s", shlex.join(command), result.stderr)
    errors = [line for line in result.stderr.splitlines() if "error" in line] or result.stderr.splitlines()
    return errors[0].strip() if errors else f"it ended with {result.returncode}"


def _version(command: Sequence[str]) -> str:
    try:
        result = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = result.stdout.splitlines()
    return lines[0] if result.returncode == 0 and lines else ""


def _key(compiler: Compiler) -> str:
    digest = hashlib.sha256()
    for path in (*sources(), *sorted(NATIVE.glob("*.h"))):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    for word in (*compiler.command, compiler.version, *FLAGS, *LINK_FLAGS, *PARALLEL, *_processor()):
        digest.update(word.encode() + b"\0")
    return digest.hexdigest()[:32]


def _processor() -> Iterator[str]:
    """What tells processors apart: a home folder may be shared by machines of several kinds."""
    yield platform.machine()
    with contextlib.suppress(OSError), Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if not line.strip():
                return  # the end of the first processor's entry
            if line.startswith(("model name", "flags", "Features", "CPU part")):
                yield line.strip()


def _folder_of(key: str) -> Path:
    """The folder for a key; one for this process alone where the cache cannot be written or trusted."""
    try:
        cache = make_private_folder(cache_folder())
        kernels = make_private_folder(cache / "kernels")
        folder = make_private_folder(kernels / key)
        if is_private(kernels) and is_private(folder) and os.access(folder, os.W_OK | os.X_OK):
            return folder
        logger.debug("%s is not this user's alone: not used.", folder)
    except (OSError, RuntimeError) as error:  # RuntimeError: no home folder is known
        logger.debug("No cache folder for the native kernels: %s", error)
    folder = Path(tempfile.mkdtemp(prefix="chatglm-kernels-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _trusted_file(folder: Path) -> Path | None:
    """The library in a folder, if there is one that is this user's and whole; what is neither is removed."""
    for path in sorted(folder.glob("*.so")):
        if is_private(path) and _digest(path) == path.stem:
            return path
        with contextlib.suppress(OSError):
            path.unlink()
    return None


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _compile_into(folder: Path, compiler: Compiler) -> Path:
    """Compile beside the place, then move the whole file there."""
    start = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix="part-") as part:
            made = Path(part) / "kernels"
            compile_library(compiler, made)
            made.chmod(OWNER_ONLY)
            path = folder / f"{_digest(made)}.so"
            made.rename(path)
    except OSError as error:
        raise NoLibraryError(f"The native kernels cannot be written to {folder}: {error}") from error
    logger.info("Compiled the CPU kernels with %s in %.1f s.", compiler.version, time.monotonic() - start)
    return path
