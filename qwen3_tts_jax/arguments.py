"""Arguments, those of the official package among them → dtypes, sampling, requests."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

import numpy as np

from qwen3_tts_jax.config import ConfigError, GenerationConfig, ModelConfig
from qwen3_tts_jax.prompt import Request, check_whole

_DTYPES = {part: ("float32", "bfloat16") for part in ("talker", "code_predictor")}
_DTYPES["codec"] = ("float32", "bfloat16", "bfloat16_3x")


def part_dtypes(dtype: str | np.dtype | type, automatic: str) -> dict[str, str]:
    """The dtypes that "talker", "code_predictor" and "codec" compute in.

    Args:
        dtype: one for talker and code predictor, such as "bfloat16", and others by part, such as
            "codec=bfloat16_3x", separated by commas; the last that names a part decides. "auto" chooses nothing.
            A dtype object, such as `jnp.bfloat16`, sets talker and code predictor.
        automatic: the dtype of talker and code predictor where none is chosen; the codec's is float32.

    Raises:
        ConfigError: an unknown part or dtype.
    """
    found = {"talker": automatic, "code_predictor": automatic, "codec": "float32"}
    for entry in (dtype if isinstance(dtype, str) else _dtype_name(dtype)).split(","):
        name, named, value = (word.strip() for word in entry.partition("="))
        if named and name not in found:
            raise ConfigError(f"dtype names the part {name!r}; there are {', '.join(found)}")
        parts, value = ([name], value) if named else (["talker", "code_predictor"], name)
        for part in parts:
            if value not in ("auto", *_DTYPES[part]):
                raise ConfigError(f"dtype of the {part} must be auto, {' or '.join(_DTYPES[part])}; got {value!r}")
            if value != "auto":
                found[part] = value
    return found


def _dtype_name(dtype: Any) -> str:
    try:
        # NumPy takes None for float64.
        name = "" if dtype is None else np.dtype(dtype).name
    except (TypeError, ValueError):
        name = ""
    if name not in _DTYPES["talker"]:
        raise ConfigError(f"dtype must be auto, {' or '.join(_DTYPES['talker'])}, as text or of JAX; got {dtype!r}")
    return name


def merge_sampling(config: ModelConfig, options: dict[str, Any]) -> tuple[GenerationConfig, int | None]:
    """The official package's sampling arguments over a checkpoint's own; None keeps the checkpoint's.

    Returns:
        The sampling, and the frame limit, or None if `max_new_tokens` is not given.

    Raises:
        TypeError: an unknown option.
        ValueError: an impossible value.
    """
    talker = {name: name for name in ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty")}
    predictor = {"subtalker_dosample": "do_sample"} | {
        f"subtalker_{name}": name for name in ("temperature", "top_k", "top_p")
    }
    known = [*talker, *predictor, "max_new_tokens"]
    for name in options:
        if name not in known:
            raise TypeError(f"unknown option {name!r}; there are {', '.join(known)}")
    for name in ("top_k", "subtalker_top_k", "max_new_tokens"):
        if options.get(name) is not None:
            check_whole(name, options[name])

    def chosen(names: dict[str, str]) -> dict[str, Any]:
        return {names[name]: options[name] for name in names if options.get(name) is not None}

    generation = GenerationConfig(
        talker=replace(config.generation.talker, **chosen(talker)),
        code_predictor=replace(config.generation.code_predictor, **chosen(predictor)),
    )
    max_new_tokens = options.get("max_new_tokens")
    if max_new_tokens is not None and max_new_tokens < 2:
        raise ValueError(f"max_new_tokens must be at least 2 (it makes one frame fewer), got {max_new_tokens}")
    return generation, None if max_new_tokens is None else operator.index(max_new_tokens) - 1


def as_list(values: Any) -> list:
    """A list as it is, anything else as the only item of one."""
    return values if isinstance(values, list) else [values]


def make_requests(non_streaming_mode: bool, **columns: Any) -> list[Request]:
    """One request per text; every other column is one value for all or a list of the same length.

    Raises:
        ValueError: a column has another length.
    """
    texts = as_list(columns["text"])
    rows: dict[str, list] = {}
    for name, values in columns.items():
        values = as_list(values)
        rows[name] = values * len(texts) if len(values) == 1 else values
    lengths = {name: len(values) for name, values in rows.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{name}={count}" for name, count in lengths.items())
        raise ValueError(f"batch lengths differ: {counts}; give one value for all texts or one per text")
    rows["language"] = [language or "auto" for language in rows["language"]]
    mode = "all_at_once" if non_streaming_mode else "as_it_comes"
    return [
        Request(**dict(zip(rows, values, strict=True)), text_mode=mode) for values in zip(*rows.values(), strict=True)
    ]


def pair_references(ref_audio: Any, ref_text: Any, x_vector_only_mode: Any) -> tuple[list, list[str | None]]:
    """The recordings of `create_voice_clone_prompt`, and what each says; None for the x-vector alone.

    Raises:
        ValueError: a text is missing, or the columns have different lengths.
    """
    recordings = as_list(ref_audio)
    texts = ref_text if isinstance(ref_text, list) else [ref_text] * len(recordings)
    alone = x_vector_only_mode if isinstance(x_vector_only_mode, list) else [x_vector_only_mode] * len(recordings)
    if not len(recordings) == len(texts) == len(alone):
        raise ValueError(
            f"batch lengths differ: ref_audio={len(recordings)}, ref_text={len(texts)}, "
            f"x_vector_only_mode={len(alone)}; give one text per recording"
        )
    for row, (text, x_vector_only) in enumerate(zip(texts, alone, strict=True)):
        if not x_vector_only and not (text or "").strip():
            raise ValueError(
                f"ref_text is missing for recording {row}: give the text that it says, or use "
                "x_vector_only_mode=True, which is less like the voice"
            )
    return recordings, [None if x_vector_only else text for text, x_vector_only in zip(texts, alone, strict=True)]
