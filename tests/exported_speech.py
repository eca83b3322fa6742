"""Speaks with exported programs in a process that has no model; run as a file: FOLDER is its argument.

FOLDER has programs.zip, weights.npz (0, 1, 2, …) and prompt.npz; it gets speech.npz.
"""

import sys
from pathlib import Path

import numpy as np

from qwen3_tts_jax.ahead_of_time import load_programs

folder = Path(sys.argv[1])
programs = load_programs(folder / "programs.zip")
(size,) = programs.sizes
with np.load(folder / "weights.npz") as file:
    weights = [file[str(i)].astype(dtype) for i, (_, _, dtype) in enumerate(programs.weights)]
with np.load(folder / "prompt.npz") as file:
    prompt = dict(file)
prompt.setdefault("x_vectors", None)

state = programs.prefill(size, weights, prompt, 7, np.arange(size.rows), np.array([5, 100, 100]))
codec_state, codes, samples = programs.codec_state(size), [], []
for _ in range(3):
    state, chunk = programs.chunk(size, weights, state)
    codes.append(np.asarray(chunk))
    codec_state, sound = programs.decode(size, weights, codec_state, codes[-1])
    samples.append(np.asarray(sound))
np.savez(folder / "speech.npz", codes=np.concatenate(codes, 1), samples=np.concatenate(samples, 1))

loaded = sorted(name for name in sys.modules if name.startswith(("qwen3_tts_jax", "flax")))
print(*loaded)
