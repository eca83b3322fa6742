"""Folders that appear once they are complete."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from qwen3_tts_jax.files import completed_folder


def test_one_process_fills_a_folder(tmp_path):
    path = tmp_path / "made"
    with completed_folder(path) as temporary:
        (temporary / "a.txt").write_text("a")
        with pytest.raises(BlockingIOError, match=r"another process is writing .*made"), completed_folder(path):
            pass
        assert not path.exists()
    assert [found.name for found in path.iterdir()] == ["a.txt"]
    assert [found.name for found in tmp_path.iterdir()] == ["made"]


def test_a_folder_that_was_renamed_while_another_waited(tmp_path, monkeypatch):
    path = tmp_path / "made"

    def finished_meanwhile(*_):
        Path(tmp_path, ".made.partial").rename(path)

    monkeypatch.setattr(fcntl, "flock", finished_meanwhile)
    with pytest.raises(BlockingIOError), completed_folder(path):
        pass
    assert path.is_dir()


def test_where_folders_cannot_be_locked(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with completed_folder(tmp_path / "made") as temporary:
        (temporary / "a.txt").write_text("a")
    assert (tmp_path / "made" / "a.txt").exists()


def test_an_error_leaves_nothing(tmp_path):
    with pytest.raises(IsADirectoryError), completed_folder(tmp_path / "made") as temporary:
        temporary.write_text("a")
    assert list(tmp_path.iterdir()) == []
