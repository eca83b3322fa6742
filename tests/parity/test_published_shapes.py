"""The published shapes with random weights, against the official package; minutes and up to 12 GB each.

QWEN3_TTS_JAX_FULL_SIZE=1 python -m pytest tests/parity/test_published_shapes.py
"""

import os

import pytest

from qwen3_tts_jax.convert.verify import run_parity
from qwen3_tts_jax.presets import preset
from tests.parity.random_checkpoint import write_random_checkpoint

TEXTS = ["Good morning! The train leaves at 9:45.", "今天天气很好。"]


@pytest.mark.skipif(os.environ.get("QWEN3_TTS_JAX_FULL_SIZE") != "1", reason="full size: set QWEN3_TTS_JAX_FULL_SIZE=1")
@pytest.mark.parametrize("name", ["0.6B-CustomVoice", "1.7B-VoiceDesign"])
def test_published_shapes_speak_the_same(name, tmp_path, tokenizer_folder):
    folder = write_random_checkpoint(tmp_path / name, preset(name), tokenizer_files=tokenizer_folder)
    instruct = "An old man with a warm voice." if name.endswith("VoiceDesign") else None
    report = run_parity(folder, TEXTS, frames=4, language="auto", instruct=instruct)
    assert report.passed, report.to_markdown()
