"""What the benchmarks share: each kind's own peak of memory, figures of whole utterances only, small models."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from qwen3_tts_jax.presets import preset

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
MEBIBYTE = 2**20

SCRIPT = f"""
import sys
sys.path.insert(0, {str(BENCHMARKS)!r})
import side_by_side

def hold(mebibytes, checkpoint, frames, batch):
    held = b"1" * (mebibytes * {MEBIBYTE})
    status = open("/proc/self/status").read().split("VmHWM:")[1].split()
    assert status[1] == "kB"
    return [{{"kib": int(status[0]), "frames": frames}}, {{"frames": frames}}]

measures = {{"much": lambda *given: hold(256, *given), "little": lambda *given: hold(1, *given)}}
side_by_side.main(__file__, None, measures, [("frames", "frames made"), ("peak_gb", "peak memory, GB")])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_of_each_kind_alone_in_bytes(tmp_path):
    script, output = tmp_path / "script.py", tmp_path / "figures.jsonl"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), "none", "--frames", "3", "--repeats", "1", "--output", str(output)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    peaks = {row["kind"]: row["peak_gb"] for row in rows if "peak_gb" in row}
    assert len(rows) == 4
    assert peaks["much"] > peaks["little"] + 250 * MEBIBYTE / 1e9
    assert peaks["much"] == pytest.approx(rows[0]["kib"] * 1024 / 1e9, rel=0.005)
    assert "| frames made | 3 (3 to 3, 2) | 3 (3 to 3, 2) | 1.00 |" in printed


def test_an_utterance_that_ended_early_is_not_measured(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    side_by_side = pytest.importorskip("side_by_side")
    side_by_side.check_lengths([4, 4], 4)
    with pytest.raises(SystemExit, match="fewer frames"):
        side_by_side.check_lengths([4, 3], 4)


def test_the_small_models_have_their_special_ids_after_the_codes(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    names = ("small_model", "grpo_example", "bench_train_official")
    small, grpo, official = (importlib.import_module(name) for name in names)
    for talker, predictor, codebooks, codes, text_ids in (
        (grpo.STACK, grpo.STACK, grpo.CODEBOOKS, grpo.CODES, grpo.TEXT_IDS),
        (official._TALKER, official._PREDICTOR, official._CODEBOOKS, official._CODES, 512),
    ):
        model = small.small_model(talker, predictor, codebooks=codebooks, codes=codes, text_ids=text_ids)
        published = preset("0.6B-CustomVoice").prompt
        shift = codes - 2048
        assert model.prompt.codec_bos == published.codec_bos + shift
        assert model.prompt.languages == {name: place + shift for name, place in published.languages.items()}
