"""Training a codec (speech tokenizer) from recordings."""
