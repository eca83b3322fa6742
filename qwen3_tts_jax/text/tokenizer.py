"""Text → token ids: the byte-level BPE of the published checkpoints, and the chat templates of a prompt.

Built from vocab.json, merges.txt and tokenizer_config.json with the `tokenizers` library alone.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

if TYPE_CHECKING:
    from qwen3_tts_jax.text.durations import Durations

Pattern = Literal["official", "qwen2"]

PHONEMES = "en-us"
"""The phonemes that a model may read instead of letters: those of `phonemes.phonemize`."""

# Ids that `TextTokenizer.assistant` and `.reference` put around a text. As in the official package, the text is
# whatever lies between these positions: newlines at its start merge with the one that ends the role.
ROLE_IDS = 3
CLOSING_IDS = 5
REFERENCE_CLOSING_IDS = 2

_BYTES = 256
_ROLE = "<|im_start|>assistant\n"
_CLOSING = "<|im_end|>\n<|im_start|>assistant\n"

# How text is cut into words before BPE. "qwen2" is the pattern of the Qwen2 family. "official" is the
# one that the official package ends up with: it loads its tokenizer with `fix_mistral_regex=True`, for
# which transformers 4.57.3 replaces Qwen2's pattern by Mistral's. Both cut prose in the model's ten
# languages alike, but not camelCase, Thai or vowelled Arabic.
_PATTERNS: Mapping[str, str] = {
    "official": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "qwen2": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}


class TokenizerError(ValueError):
    """A tokenizer file that cannot be used; the message names it and says what is wrong."""


class TextTokenizer:
    """Byte-level BPE after NFC normalization, with the added tokens of tokenizer_config.json.

    An added token that is spelled out in a text (`<|im_end|>`) becomes its one id, as in the official
    package. Immutable, and safe to share between threads.

    Attributes:
        phonemes: how long phonemes last, if the model reads them, one per frame ("phonemes": "en-us" in
            tokenizer_config.json), and texts are yet to become such, by `utterances.spoken_as`; else None.
    """

    def __init__(self, tokenizer: Tokenizer, phonemes: Durations | None = None):
        self._tokenizer, self.phonemes = tokenizer, phonemes

    @classmethod
    def from_folder(cls, folder: str | Path, pattern: Pattern = "official", *, phonemize: bool = True) -> TextTokenizer:
        """Reads vocab.json, merges.txt and tokenizer_config.json of a checkpoint folder, and durations.json if need be.

        Args:
            folder: where the files lie.
            pattern: "official" gives the ids of the official package, "qwen2" those of Qwen2's own
                pattern.
            phonemize: False if texts are phonemes already, for models that read them.

        Raises:
            FileNotFoundError: one of the files is missing.
            TokenizerError: one of them is damaged, or they do not belong together.
            ValueError: an unknown `pattern`.
        """
        if pattern not in _PATTERNS:
            raise ValueError(f"unknown tokenizer pattern {pattern!r}; there are {', '.join(_PATTERNS)}")
        folder = Path(folder)
        vocab = _read_vocab(folder / "vocab.json")
        added = _read_added_tokens(folder / "tokenizer_config.json")
        merges = _read_merges(folder / "merges.txt", vocab, added)
        try:
            tokenizer = Tokenizer(models.BPE(vocab, merges))
        except Exception as error:  # what the library raises is a bare Exception
            raise TokenizerError(f"{folder / 'merges.txt'} does not fit vocab.json: {error}") from None
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_PATTERNS[pattern]), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.add_tokens([added[index] for index in sorted(added)])
        for index, token in added.items():
            got = tokenizer.token_to_id(token.content)
            if got != index:
                raise TokenizerError(
                    f"{folder / 'tokenizer_config.json'} gives {token.content!r} the id {index}, "
                    f"but after the {len(vocab)} tokens of vocab.json it is {got}"
                )
        if not phonemize or not _reads_phonemes(folder / "tokenizer_config.json"):
            return cls(tokenizer)
        # Imported here, because only models that read phonemes need it.
        from qwen3_tts_jax.text.durations import Durations

        try:
            return cls(tokenizer, Durations.from_file(folder / "durations.json"))
        except ValueError as error:
            raise TokenizerError(str(error)) from None

    @property
    def size(self) -> int:
        """One more than the largest id."""
        return 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, with nothing added around it.

        Raises:
            ValueError: `text` holds half of a surrogate pair, which no UTF-8 text can.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"character {error.start} of the text is a lone surrogate "
                f"(U+{ord(text[error.start]):04X}); decode the text as UTF-8 first"
            ) from None
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def assistant(self, text: str) -> list[int]:
        """A text to be spoken in its chat template: 3 role ids, the text, 5 closing ids."""
        return self.encode(f"{_ROLE}{text}{_CLOSING}")

    def reference(self, text: str) -> list[int]:
        """A reference's transcript in its chat template: 3 role ids, the text, 2 closing ids."""
        return self.encode(f"{_ROLE}{text}<|im_end|>\n")

    def instruct(self, text: str) -> list[int]:
        """An instruction on voice or style in its chat template; all of it goes into the prompt."""
        return self.encode(f"<|im_start|>user\n{text}<|im_end|>\n")

    def incremental(self) -> IncrementalText:
        """A tokenizer for one text to be spoken that arrives in pieces."""
        added = [token.content for token in self._tokenizer.get_added_tokens_decoder().values()]
        return IncrementalText(self, added)


class IncrementalText:
    """Token ids of a text that arrives in pieces: the same as those of the whole text in its chat template.

    An id is given out once no later piece can change it: up to the last place where a word is certain
    to end, which is where white space follows anything else or where letters end. A sentence of
    Chinese is therefore given out clause by clause.

    Attributes:
        text: what the ids given out so far stand for.
    """

    def __init__(self, tokenizer: TextTokenizer, added_tokens: Iterable[str]):
        self.text = ""
        self._tokenizer, self._added_tokens = tokenizer, tuple(added_tokens)
        self._pending = ""

    def add(self, piece: str) -> list[int]:
        """The ids that have become certain.

        Raises:
            ValueError: see `TextTokenizer.encode`.
        """
        self._pending += piece
        end = self._last_certain_end(self._pending)
        if end == 0:
            return []
        text, self._pending = self._pending[:end], self._pending[end:]
        ids = self._tokenizer.encode(text if self.text else _ROLE + text)
        ids = ids if self.text else ids[ROLE_IDS:]
        self.text += text
        return ids

    def finish(self) -> list[int]:
        """The remaining ids, once no piece will follow."""
        text, self._pending = self._pending, ""
        ids = self._tokenizer.encode(f"{'' if self.text else _ROLE}{text}{_CLOSING}")
        ids = ids[0 if self.text else ROLE_IDS : -CLOSING_IDS]
        self.text += text
        return ids

    def _last_certain_end(self, text: str) -> int:
        for end in range(len(text) - 1, 0, -1):
            if _ends_word(text[end - 1], text[end]) and not self._inside_added_token(text, end):
                return end
        return 0

    def _inside_added_token(self, text: str, end: int) -> bool:
        """Whether an added token may have begun before `end` and go on after it."""
        return any(
            token.startswith(text[start : start + len(token)])
            for token in self._added_tokens
            for start in range(max(0, end - len(token) + 1), end)
        )


def _ends_word(before: str, after: str) -> bool:
    """Whether both patterns cut between these characters, whatever surrounds them."""
    if after in " \t\u3000":
        return not before.isspace()
    # Characters that this Python's Unicode does not know (Cn) may be letters to the tokenizer.
    return unicodedata.category(before)[0] == "L" and unicodedata.category(after)[0] in "NPS"


def _read(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; a checkpoint folder needs it for its text tokenizer")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path} is damaged: {error}") from None


def _read_json_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read(path))
    except json.JSONDecodeError as error:
        raise TokenizerError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise TokenizerError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def _read_vocab(path: Path) -> dict[str, int]:
    vocab = _read_json_object(path)
    if set(map(type, vocab.values())) != {int} or set(vocab.values()) != set(range(len(vocab))):
        raise TokenizerError(f"{path} is damaged: its ids are not 0 … {len(vocab) - 1}, each once")
    return vocab


def _read_merges(path: Path, vocab: Mapping[str, int], added: Mapping[int, AddedToken]) -> list[tuple[str, str]]:
    lines = _read(path).split("\n")
    if lines[0].startswith("#version:"):
        lines[0] = ""
    merges = []
    for number, line in enumerate(lines, start=1):
        pair = line.split()
        if len(pair) == 2:
            merges.append((pair[0], pair[1]))
        elif pair:
            raise TokenizerError(f"{path} is damaged: line {number} has {len(pair)} parts, a merge has 2")
    # A file cut off at the end of a line would silently give wrong ids: every token of the vocabulary
    # except the single bytes and the added tokens needs a merge that makes it.
    needed = len(vocab) - _BYTES - sum(token.content in vocab for token in added.values())
    if len(merges) < needed:
        raise TokenizerError(f"{path} is cut off: {len(merges)} merges, vocab.json needs {needed}")
    return merges


def _reads_phonemes(path: Path) -> bool:
    found = _read_json_object(path).get("phonemes")
    if found not in (None, PHONEMES):
        raise TokenizerError(f"{path}: there are no phonemes {found!r}, only {PHONEMES}")
    return found is not None


def _read_added_tokens(path: Path) -> dict[int, AddedToken]:
    entries = _read_json_object(path).get("added_tokens_decoder")
    if not isinstance(entries, dict):
        raise TokenizerError(f"{path} has no 'added_tokens_decoder'")
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    added = {}
    for index, entry in entries.items():
        try:
            added[int(index)] = AddedToken(entry["content"], **{name: entry[name] for name in flags})
        except (KeyError, TypeError, ValueError) as error:
            raise TokenizerError(f"{path}: added token {index!r} is damaged: {error!r}") from None
    return added
