"""Learning: scores under teacher forcing, losses, fine-tuning, and gradients through the codec.

    lines.py ──> examples.py ──> batches.py, ──> step.py ─────────> run.py ────────────> export.py
    (JSON lines)  (codes and      buckets.py     (loss.py, lora.py,  (loop.py, which      (the model's
                   voices)                        optimizer.py)       resumes and saves)   folder)

`sft.py` and `talker_job.py` are such runs, fine-tuning and training from nothing; `codec/` trains codecs. `score.py`
computes log-probabilities, `rollout.py` learns from rewards, and `soft_codes.py` takes gradients through codes.
"""
