"""Compiled programs kept between processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from qwen3_tts_jax import compile_cache
from tests.shapes import SMALL
from tests.small_checkpoint import write_small_checkpoint

# Compiles one program that takes a while, and tells the folder, how often a program was found in it, and how many
# seconds a program must take to be kept.
_SCRIPT = """
import jax, jax.numpy as jnp
from qwen3_tts_jax.compile_cache import keep_compiled
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name) if name.endswith("cache_hits") else None)
folder = keep_compiled(*{arguments!r})
f = lambda x: [x := jnp.sin(x @ x) for _ in range(500)][-1]
jax.block_until_ready(jax.jit(f)(jnp.ones((40, 40))))
print(folder, len(hits), jax.config.jax_persistent_cache_min_compile_time_secs, sep="|")
"""


def run(tmp_path: Path, *arguments: str, stderr: str = "", **environment: str) -> tuple[str, int]:
    """The folder in use, and how many programs were found there."""
    return report(tmp_path, *arguments, stderr=stderr, **environment)[:2]


def report(tmp_path: Path, *arguments: str, stderr: str = "", **environment: str) -> tuple[str, int, float]:
    """All that the script tells."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    inherited |= {"HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    inherited.pop("XDG_CACHE_HOME", None)
    script = _SCRIPT.format(arguments=arguments)
    result = subprocess.run(
        [sys.executable, "-c", script], env=inherited | environment, capture_output=True, text=True, check=True
    )
    assert result.stderr == stderr
    folder, hits, seconds = result.stdout.strip().split("|")
    return folder, int(hits), float(seconds)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_the_second_process_finds_what_the_first_compiled(tmp_path):
    folder, hits = run(tmp_path)
    assert Path(folder).parent == tmp_path / ".cache" / "qwen3-tts-jax"
    assert hits == 0
    assert files(Path(folder))
    again, hits = run(tmp_path)
    assert (again, hits > 0) == (folder, True)


@pytest.mark.parametrize("name", ["XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR", None])
def test_the_folder_can_be_chosen(tmp_path, name):
    chosen = tmp_path / "chosen"
    folder, _ = run(tmp_path, **{name: str(chosen)}) if name else run(tmp_path, str(chosen))
    assert Path(folder) == chosen or Path(folder).parent == chosen / "qwen3-tts-jax"
    assert files(chosen)
    assert not (tmp_path / ".cache").exists()


@pytest.mark.parametrize("name", ["XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"])
def test_small_programs_are_kept_unless_the_user_says_otherwise(tmp_path, name):
    folder = {name: str(tmp_path)}
    assert report(tmp_path, **folder)[2] == 0.05
    assert report(tmp_path, **folder, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="1000")[2] == 1000


def test_it_can_be_switched_off(tmp_path):
    assert run(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false") == ("None", 0)
    assert files(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_done_without(tmp_path):
    (tmp_path / "file").touch()
    warning = f"compiled programs are not kept: {tmp_path / 'file' / 'folder'}: Not a directory\n"
    assert run(tmp_path, str(tmp_path / "file" / "folder"), stderr=warning) == ("None", 0)


def test_commands_keep_what_they_compile(tmp_path, tokenizer_folder):
    model = write_small_checkpoint(tmp_path / "model", SMALL["1.7B-CustomVoice"], tokenizer_folder)
    np.savez(tmp_path / "codes.npz", hello=np.zeros((2, 16), np.int32))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu"}
    for command in (
        ["codec", "decode", "codes.npz", "-o", "a.wav", "--model", str(model)],
        ["say", "Hi.", "--max-seconds", "0.01", "-o", "b.wav", "--model", str(model)],
    ):
        before = len(files(tmp_path / "cache"))
        main = "from qwen3_tts_jax.cli.main import main; main()"
        subprocess.run(
            [sys.executable, "-c", main, *command], env=environment, cwd=tmp_path, capture_output=True, check=True
        )
        assert len(files(tmp_path / "cache")) > before, command


def test_each_kind_of_cpu_has_its_own_folder(monkeypatch):
    here = compile_cache._default_folder()
    assert compile_cache._default_folder() == here
    monkeypatch.setattr(compile_cache, "_cpu_features", lambda: "flags: other")
    assert compile_cache._default_folder() != here


# As a command: with its messages, in place of Python's warnings.
_COMMAND = """
import jax
from qwen3_tts_jax.cli.console import plain_messages
from qwen3_tts_jax.compile_cache import keep_compiled
keep_compiled({folder!r})
def add_one(x):
    return x + 1
with plain_messages():
    jax.block_until_ready(jax.jit(add_one)(jax.numpy.ones(3)))
"""


def test_programs_that_were_cut_short_are_compiled_anew(tmp_path):
    """As by a full disk: JAX alone would warn in every process, and compile each time."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment |= {"JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}

    def messages() -> str:
        command = [sys.executable, "-c", _COMMAND.format(folder=str(tmp_path))]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stderr

    assert messages() == ""
    cut = [path for path in files(tmp_path) if path.name.startswith("jit_add_one")]
    assert cut
    for path in cut:
        path.write_bytes(path.read_bytes()[:-40])
    assert messages().startswith("warning: Error reading persistent compilation cache entry for 'jit_add_one")
    assert messages() == ""


def test_what_cannot_be_removed_is_left(tmp_path, monkeypatch):
    """As in a folder of another user, whose programs may be whole."""
    (tmp_path / "jit_f-0-cache").mkdir()
    (tmp_path / "jit_g-0-cache").touch()
    config = SimpleNamespace(jax_compilation_cache_dir=str(tmp_path))
    monkeypatch.setattr(compile_cache, "jax", SimpleNamespace(config=config))
    start = "Error reading persistent compilation cache entry for "
    compile_cache.remove_damaged(f"{start}'jit_f': Error: cut short")
    compile_cache.remove_damaged(f"{start}'jit_g': PermissionError: [Errno 13] Permission denied")
    assert len(list(tmp_path.iterdir())) == 2
    compile_cache.remove_damaged(f"{start}'jit_g': Error: cut short")
    assert [path.name for path in tmp_path.iterdir()] == ["jit_f-0-cache"]
