"""Training a codec (speech tokenizer) from recordings.

    data.py ──────────> spectral_run.py ──────────> run.py ──────────> job.py
    (recordings,        (spectra first, with        (the codec itself, (all of it, and the
     codes.py: theirs)   spectral.py and             with step.py)      folder that is written)
                         spectral_step.py)

`training.py` has the settings, `start.py` random weights, `forward.py` what both kinds of step compute.
"""
