"""A text tokenizer of single bytes, in the published one's file format, for models that are trained from nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

_BYTES = 256
# "assistant" and "user" are one id each, because a prompt's template is counted in ids.
_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tts_pad>", "<tts_text_bos>", "<tts_text_eod>", "assistant", "user",
)  # fmt: skip


def write_byte_tokenizer(folder: str | Path, units: Iterable[str] = ()) -> Path:
    """Writes vocab.json, merges.txt and tokenizer_config.json into `folder`, which is created; returns it.

    Ids 0 … 255 are the bytes of a text in UTF-8. After them come the units of more than one byte, in their order, the
    tokens these are merged from (such as stress marks), and the tokens of a prompt.

    Args:
        folder: where the files go.
        units: strings that are to be one token each, such as phonemes; none contains white space.
    """
    units = tuple(unit for unit in dict.fromkeys(units) if len(unit.encode()) > 1)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    letters = _letters()
    merges = _merges(units)
    tokens = list(dict.fromkeys([*map(str.encode, units), *(left + right for left, right in merges)]))
    spelled = ["".join(letters[byte] for byte in token) for token in tokens]
    vocab = {token: index for index, token in enumerate([*letters, *spelled])}
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    settings = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {str(len(vocab) + i): {"content": token, **flags} for i, token in enumerate(_TOKENS)},
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    lines = [" ".join("".join(letters[byte] for byte in part) for part in pair) for pair in merges]
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines]) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return folder


def _merges(units: tuple[str, ...]) -> list[tuple[bytes, bytes]]:
    """Merges that build the units from bytes: first all characters, then longer units, shortest first."""
    pairs: dict[bytes, tuple[bytes, bytes]] = {}
    for character in dict.fromkeys("".join(units)):
        token = character.encode()
        for end in range(2, len(token) + 1):
            pairs.setdefault(token[:end], (token[: end - 1], token[end - 1 : end]))
    # From the end, so that a stress mark joins a whole diphthong.
    for unit in sorted(units, key=len):
        for start in range(len(unit) - 2, -1, -1):
            left, right = unit[start].encode(), unit[start + 1 :].encode()
            pairs.setdefault(left + right, (left, right))
    return list(pairs.values())


def _letters() -> list[str]:
    """How byte-level BPE spells bytes: printable ones as themselves, the others from U+0100 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(_BYTES, 2 * _BYTES))
    return [chr(byte if byte in printable else next(others)) for byte in range(_BYTES)]
