"""job.json, which says what a folder's job is: the settings and items that may not change until it is done. No JAX."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from qwen3_tts_jax.files import completed, differences

VERSION = 3
"""Of job.json. Bumped when jobs begun by an earlier release can no longer be resumed."""


class FolderError(Exception):
    """Why a job cannot work in a folder, in one line."""


def read(path: Path) -> dict[str, Any] | None:
    """What `write` wrote; None if there is no file.

    Raises:
        FolderError: it is damaged, cannot be read, or has another version.
    """
    try:
        job = json.loads(path.read_bytes())
        if job["version"] != VERSION:
            raise FolderError(
                f"{path} has version {job['version']!r}, this package resumes version {VERSION}: choose another folder"
            )
        _ = job["settings"], job["items"]
        # Earlier releases did not write them.
        return {"sources": {}, **job}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise FolderError(f"{path} is damaged: choose another folder, or remove this one") from None
    except OSError as error:
        raise FolderError(f"{path} cannot be read: {error.strerror}") from None


def write(path: Path, settings: Mapping[str, Any], items: Mapping[str, Any], sources: Mapping[str, Any]) -> None:
    """Writes what `read` gives; raises an OSError where that is not possible.

    Args:
        path: of the file.
        settings: of the job.
        items: identities of its items by id.
        sources: what they were made of, by id.
    """
    job = {"version": VERSION, "settings": settings, "items": items, "sources": sources}
    content = json.dumps(job, indent=1, ensure_ascii=False)
    with completed(path, sync=True) as temporary:
        temporary.write_bytes(content.encode() + b"\n")


def require_same(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuses other settings with a FolderError that names what differs."""
    found = differences(before, json.loads(json.dumps(now)))
    if found:
        raise FolderError(
            f"{folder} holds a job of other settings: {'; '.join(found)}; use the same, or another folder"
        )


def require_unchanged(
    folder: Path,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    finished: Iterable[str],
    skipped: Mapping[str, str],
) -> None:
    """Refuses a manifest in which finished items changed, with a FolderError that names what differs.

    Args:
        folder: of the job.
        before: identities of its items by id.
        now: those of the manifest.
        finished: ids.
        skipped: what is wrong with the manifest's bad lines, by id.
    """
    changed = []
    for name in finished:
        if name in skipped:
            changed.append(f"{name}: {skipped[name]}")
        elif name not in now:
            changed.append(f"{name} is not in the manifest")
        elif found := differences(before.get(name, {}), now[name]):
            changed.append(f"{name}: {', '.join(found)}")
    if changed:
        more = f"; and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise FolderError(
            f"{len(changed)} finished item{'s' * (len(changed) > 1)} of {folder} changed since: "
            f"{'; '.join(changed[:3])}{more}; use another folder, or other ids"
        )
