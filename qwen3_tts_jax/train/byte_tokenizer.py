"""A text tokenizer of single bytes, in the files of the published one: for models that are trained from nothing."""

from __future__ import annotations

import json
from pathlib import Path

_BYTES = 256
# "assistant" and "user" are one id each, because a prompt's frame is counted in ids.
_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tts_pad>", "<tts_text_bos>", "<tts_text_eod>", "assistant", "user",
)  # fmt: skip


def write_byte_tokenizer(folder: str | Path) -> Path:
    """Writes vocab.json, merges.txt and tokenizer_config.json into `folder`, which is created; returns it.

    The ids 0 … 255 are the bytes of a text in UTF-8, those behind them the tokens of a prompt.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    vocab = {letter: byte for byte, letter in enumerate(_letters())}
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    settings = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {str(_BYTES + i): {"content": token, **flags} for i, token in enumerate(_TOKENS)},
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return folder


def _letters() -> list[str]:
    """How byte-level BPE spells bytes: printable ones as themselves, the others from U+0100 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(_BYTES, 2 * _BYTES))
    return [chr(byte if byte in printable else next(others)) for byte in range(_BYTES)]
