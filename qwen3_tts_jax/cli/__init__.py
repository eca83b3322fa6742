"""The command `qwen3-tts-jax`.

    main.py    collects the commands, which are declared in
               say.py  batch.py  voice.py  codec.py  info.py  convert.py  export.py  parity.py  programs.py  train*.py
    options.py has the options that several of them take

Nothing here imports JAX before a command runs, since `--help` must not wait for it. What some commands do is apart
from how they are declared: `say.py` has `speak.py` and `stream.py`, `batch.py` has `batch_job.py`, `voice.py` has
`voices.py`, and `codec.py` has `codes.py`. They share `model.py` (the model that is asked for), `text_input.py` (the
text), `sampling.py` (how codes are drawn), `console.py` (refusals and messages) and `progress.py` (how far it is); the
commands of `train` also share `train_common.py`.
"""
