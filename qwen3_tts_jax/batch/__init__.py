"""The batch job: a manifest in, a folder of speech out, whatever interrupts it.

    manifest.py ──> plan.py ──> speak.py (or ray_engine.py) ──> writer.py ──> folder.py ──> files, shards.py, index.py
    (lines, as       (tasks)     (speech)                        (a thread)    (settings.py: what a job
     fields.py says)                                                            may not change)

`cli/batch_job.py` is what the command does with them.
"""
