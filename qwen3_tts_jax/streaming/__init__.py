"""Speech as it is made: one request (`stream`), or many side by side (`batch`).

text.py ──> codes.py ──> decoding.py
(text that  (chunks of   (samples, each chunk
arrives)    frames)      after the one before)
"""
