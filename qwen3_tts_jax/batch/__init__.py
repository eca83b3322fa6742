"""The batch job: a manifest in, a folder of speech out, whatever interrupts it.

    manifest.py ──> plan.py ──> speak.py (or ray_engine.py) ──> folder.py ──> files, shards.py, index.py
     (lines)        (tasks)     (speech)                         settings.py: what a job may not change

`cli/batch_job.py` is what the command does with them.
"""
