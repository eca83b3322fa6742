"""Speech as it is made, chunk by chunk, each with the codes and samples that the whole run would have.

    utterances.py ────────────> codes.py ──> decoding.py
    (prompts, and in text.py    (chunks of   (samples, each chunk
     the text that follows)      frames)      after the one before)

`stream.py` speaks one request, `batch.py` many side by side, each of which `member.py` keeps track of.
"""
