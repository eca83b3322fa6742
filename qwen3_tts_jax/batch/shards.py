"""Parquet shards of a batch job, which Hugging Face `datasets` opens with their sound as Audio. Needs pyarrow; no JAX.

id, text, instruct                          as in the manifest
language, speaker                           in small letters; a speaker that was not chosen is the model's first
audio                                       {bytes: a FLAC file, path: ID.flac}
seconds, frames, finish_reason, seed, tries as in the index
codes                                       int16 [T, Q], if wanted
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

# Readers hold at least one group in memory, and Arrow reads no nested column of more than 2 GiB.
_GROUP_ROWS = 100
_GROUP_BYTES = 256 << 20

_TEXTS = ("id", "text", "language", "speaker", "instruct", "finish_reason")
_WHOLE = ("frames", "seed", "tries")


def schema(sample_rate: int, with_codes: bool) -> pyarrow.Schema:
    """A shard's schema, with the features that `datasets` looks for, so that no cast to Audio is needed."""
    columns: dict[str, tuple[pyarrow.DataType, dict[str, Any]]] = {
        name: (pyarrow.string(), _value("string")) for name in _TEXTS
    }
    columns["audio"] = (
        pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()}),
        {"sampling_rate": sample_rate, "_type": "Audio"},
    )
    columns["seconds"] = pyarrow.float64(), _value("float64")
    columns |= {name: (pyarrow.int64(), _value("int64")) for name in _WHOLE}
    if with_codes:
        # All releases of `datasets` read "Sequence".
        columns["codes"] = (
            pyarrow.list_(pyarrow.list_(pyarrow.int16())),
            {"feature": {"feature": _value("int16"), "_type": "Sequence"}, "_type": "Sequence"},
        )
    order = ["id", "audio", *(name for name in columns if name not in ("id", "audio"))]
    features = {name: columns[name][1] for name in order}
    return pyarrow.schema(
        {name: columns[name][0] for name in order}, {"huggingface": json.dumps({"info": {"features": features}})}
    )


def write(path: Path, rows: Iterable[dict[str, Any]], sample_rate: int, with_codes: bool) -> None:
    """Writes a shard, a group of rows at a time; raises an OSError where that is not possible.

    Args:
        path: of the file.
        rows: each with a value per column.
        sample_rate: of the sound, in Hz.
        with_codes: whether there is a column of codes.
    """
    shard_schema = schema(sample_rate, with_codes)
    with parquet.ParquetWriter(path, shard_schema) as writer:
        for group in _groups(iter(rows)):
            writer.write_table(pyarrow.Table.from_pylist(group, shard_schema))


def _groups(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        group.append(row)
        size += len(row["audio"]["bytes"])
        if len(group) == _GROUP_ROWS or size >= _GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _value(dtype: str) -> dict[str, str]:
    return {"dtype": dtype, "_type": "Value"}
