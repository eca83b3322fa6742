"""Compiled programs that are kept between processes: compiling takes far longer than a short speech."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import re
from contextlib import suppress
from pathlib import Path

import jax

# JAX would keep only what took a second; a stream has several smaller programs, and a small model no others.
_MIN_SECONDS = 0.05

_UNREADABLE = re.compile(r"Error reading persistent compilation cache entry for '(\w+)'")

_log = logging.getLogger(__name__)


def keep_compiled(folder: str | Path | None = None) -> Path | None:
    """Lets JAX keep compiled programs in a folder and reuse them. Call it before the first computation.

    A folder that JAX was given before (JAX_COMPILATION_CACHE_DIR) stays in use,
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS is the compile time from which programs are kept (else 0.05 s), and
    JAX_ENABLE_COMPILATION_CACHE=false switches it off. Any of the files may be deleted at any time.

    Args:
        folder: by default one for each kind of CPU under qwen3-tts-jax in the user's cache folder ($XDG_CACHE_HOME
            or ~/.cache), because JAX would run on one kind what it had compiled for another.

    Returns:
        The folder in use, or None where programs are not kept.
    """
    if not jax.config.jax_enable_compilation_cache:
        return None
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_SECONDS)
    if jax.config.jax_compilation_cache_dir is not None:
        return Path(jax.config.jax_compilation_cache_dir)
    folder = _default_folder() if folder is None else Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _log.warning("compiled programs are not kept: %s: %s", folder, error.strerror)
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder


def remove_damaged(warning: str) -> None:
    """Removes kept programs that JAX cannot read, as it says in this `warning`; any other is ignored.

    A full disk or a kill cut them short, and JAX would neither use nor replace them: each process would compile them
    again. The warning has only a program's name, so all that are kept under that name go.
    """
    name = _UNREADABLE.match(warning)
    folder = jax.config.jax_compilation_cache_dir
    # Programs of another user may be whole.
    if name is None or folder is None or "PermissionError" in warning:
        return
    for entry in Path(folder).glob(f"{name[1]}-*"):
        with suppress(OSError):
            entry.unlink()


def _default_folder() -> Path:
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    digest = hashlib.sha256(f"{platform.machine()} {_cpu_features()}".encode()).hexdigest()
    return Path(caches) / "qwen3-tts-jax" / f"compiled-{digest[:12]}"


def _cpu_features() -> str:
    """What programs for this CPU may use, as Linux lists it; elsewhere the CPU's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
