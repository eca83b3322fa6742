"""Text before it is a prompt: token ids, parts of long texts, and, for models that read them, phonemes."""
