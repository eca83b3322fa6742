"""The index of a batch job: a line per finished item, per bad line and per failed item. No JAX.

    {"id": …, "status": "done", "file": …, …}
    {"status": "shard", "file": …, "ids": […]}      these items were moved into this file
    {"id": …, "line": …, "status": "bad", "reason": …}
    {"id": …, "status": "failed", "reason": …}

Lines are appended, and are on the disk when `append` returns. A line that was cut short counts for nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from qwen3_tts_jax.files import completed

Record = dict[str, Any]


def read(path: Path) -> dict[str, Record]:
    """The records of finished items whose files are there, by id.

    Args:
        path: of the index; the files that it names are relative to its folder.

    Raises:
        OSError: the index exists and cannot be read.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return {}
    records: dict[str, Record] = {}
    for line in lines:
        try:
            record = json.loads(line)
            if record["status"] == "done":
                records[record["id"]] = record
            elif record["status"] == "shard":
                records |= {name: moved(records[name], record["file"]) for name in record["ids"]}
        except (ValueError, KeyError, TypeError):
            continue
    there: dict[str, bool] = {}
    for record in records.values():
        for file in _files(record):
            if file not in there:
                there[file] = (path.parent / file).is_file()
    return {name: record for name, record in records.items() if all(there[file] for file in _files(record))}


def moved(record: Record, shard: str) -> Record:
    """The record of an item whose sound (and codes) are now in a shard."""
    return {key: value for key, value in record.items() if key != "codes"} | {"file": shard}


def append(path: Path, *records: Mapping[str, Any]) -> None:
    """Adds a line for each record; raises an OSError where that is not possible."""
    with path.open("ab") as file:
        file.write(b"".join(map(_line, records)))
        file.flush()
        os.fsync(file.fileno())


def rewrite(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Replaces all lines at once; raises an OSError where that is not possible."""
    with completed(path, sync=True) as temporary:
        temporary.write_bytes(b"".join(map(_line, records)))


def _files(record: Mapping[str, Any]) -> list[str]:
    return [str(record[key]) for key in ("file", "codes") if key in record]


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"
