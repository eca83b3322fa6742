"""Manifests and folders of batch jobs, and jobs in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from qwen3_tts_jax.batch import index as batch_index
from tests.command import HEAR_INTERRUPTS

ROOT = Path(__file__).parents[1]

_STAND_IN = """
import sys
from functools import partial
from qwen3_tts_jax.cli.main import main
from qwen3_tts_jax.pipeline import Qwen3TTS
from tests.stand_in import StandIn
Qwen3TTS.from_pretrained = partial(StandIn, pause={pause})
main()
"""


def write(*rows: dict | str, name: str = "m.jsonl") -> None:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    Path(name).write_text("".join(f"{line}\n" for line in lines))


def rows(count: int, text: str = "Number {}. ") -> list[dict]:
    return [{"id": f"i{i}", "text": text.format(i) * (1 + i % 3)} for i in range(count)]


def formatted(audio_format: str, per_shard: int) -> list[str]:
    """The options of a format."""
    return ["--format", audio_format] + ["--shard-items", str(per_shard)] * (audio_format == "parquet")


def index(out: str = "out") -> dict[str, dict]:
    found = [json.loads(line) for line in Path(out, "index.jsonl").read_text().splitlines()]
    assert len({record["id"] for record in found}) == len(found)
    return {record["id"]: record for record in found}


def contents(out: str) -> dict[str, Any]:
    """What a job has made: the content of files by name, rows of shards by id."""
    files = [path for path in Path(out).rglob("*") if path.suffix in (".wav", ".flac", ".npy")]
    made: dict[str, Any] = {str(path.relative_to(out)): path.read_bytes() for path in files}
    shards = sorted(Path(out).glob("data/*.parquet"))
    if shards:
        from pyarrow import parquet

        rows = [row for path in shards for row in parquet.read_table(path).to_pylist()]
        assert len({row["id"] for row in rows}) == len(rows)
        made |= {row["id"]: row for row in rows}
    return made


def start_stand_in(model: Path, out: str, *options: object, pause: float = 0.004) -> subprocess.Popen:
    """Starts a job with a stand-in for the model, which takes `pause` seconds per item."""
    arguments = ["batch", Path("m.jsonl").absolute(), "-o", Path(out).absolute(), "-m", model, *options]
    command = [sys.executable, "-c", HEAR_INTERRUPTS + _STAND_IN.format(pause=pause), *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for_items(process: subprocess.Popen, count: int, out: str = "out") -> None:
    """Until so many items are finished, or the process has ended."""
    while process.poll() is None and len(batch_index.read(Path(out, "index.jsonl"))) < count:
        time.sleep(0.001)
