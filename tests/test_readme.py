"""The README's code: what it imports is there, and its example of pure functions does what it says."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import numpy as np

from qwen3_tts_jax import Qwen3TTS

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
CODE = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_what_it_imports_is_there():
    imports = [line for code in CODE for line in code.splitlines() if line.startswith("from qwen3_tts_jax")]
    assert len(imports) > 10
    exec("\n".join(imports), {})


def test_the_example_of_pure_functions(load, monkeypatch):
    model, names = load("1.7B-CustomVoice", -1.0), []
    monkeypatch.setattr(Qwen3TTS, "from_pretrained", lambda name: names.append(name) or model)
    (example,) = (code for code in CODE if "def speak(" in code)
    found: dict = {}
    exec(example, found)
    assert names == ["0.6B-CustomVoice"]
    codes, samples, codec = found["codes"], found["samples"], model.config.codec
    assert codes.shape == (2, 25, codec.num_codebooks)
    assert np.all(codes >= 0)
    assert samples.shape == (2, 25 * codec.frame_samples)
    assert np.all(np.std(samples, axis=1) > 0)
    parts = found["gradient"].items()
    assert {part for part, tree in parts if any(np.any(leaf) for leaf in jax.tree.leaves(tree))} == {
        "talker",
        "code_predictor",
    }
