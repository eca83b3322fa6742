"""The speech tokenizer: recordings → codes → samples.

    encoder.py ──> quantizer.py ──> decoder.py
    (latents)      (codes)          (samples)

`conv.py` has the convolutions of both, with their state between steps; `hopper.py` kernels for some of them.
"""
