"""A new model: its config, from a few numbers, a text tokenizer and a codec, and its initial weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from qwen3_tts_jax.config import (
    CodecConfig,
    CodePredictorConfig,
    ConfigError,
    ModelConfig,
    PromptConfig,
    TalkerConfig,
    TransformerConfig,
)
from qwen3_tts_jax.convert import model_rules
from qwen3_tts_jax.generate import Params
from qwen3_tts_jax.sharding import Placement
from qwen3_tts_jax.text.tokenizer import CLOSING_IDS, ROLE_IDS, TextTokenizer
from qwen3_tts_jax.train.lines import DataError, Line

_STACK = ("num_layers", "width", "mlp_width", "num_heads", "num_kv_heads", "head_dim", "rope_theta", "norm_eps")
_DEFAULTS = {"rope_theta": 10_000.0, "norm_eps": 1e-6}
_OTHERS = ("talker", "code_predictor", "text_width", "max_positions", "max_frames", "languages", "speakers")
_SPECIAL = 1024
"""Rows of the codec embedding after the codes, as the official package has them."""

# Places in those rows, as published: control tokens and languages; speakers from where the published ones lie on.
_CONTROL = {"pad": 100, "bos": 101, "eos": 102, "think": 106, "nothink": 107, "think_bos": 108, "think_eos": 109}
_FIRST_LANGUAGE, _FIRST_SPEAKER, _LAST_SPEAKER = 2, 200, _SPECIAL - 73


def read_new_config(path: str | Path, tokenizer_folder: str | Path, codec: CodecConfig) -> ModelConfig:
    """The config of a custom-voice model, without speakers where the file names none.

    The file is a JSON object with `talker` and `code_predictor`, each with num_layers, width, mlp_width, num_heads
    and head_dim and optionally num_kv_heads, rope_theta and norm_eps; and optionally `text_width` (the talker's width),
    `max_positions` (4096), `max_frames` of an utterance (750), `languages` (["english"]) and `speakers`.

    Args:
        path: of the file.
        tokenizer_folder: the text tokenizer's, which determines the vocabulary.
        codec: the one that determines the codebooks.

    Raises:
        ConfigError: an unknown or missing key, sizes that do not go together, or a tokenizer without the tokens of a
            prompt.
        OSError: a file that cannot be read.
    """
    path = Path(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a JSON object")
    _only(values, _OTHERS, path)
    codebook_size = codec.decoder.codebook_size
    talker, predictor = (_stack(values, part, path) for part in ("talker", "code_predictor"))
    text_ids, text_vocab = _text_ids(Path(tokenizer_folder))
    languages = _names(values.get("languages", ["english"]), "languages", path)
    if _FIRST_LANGUAGE + len(languages) > _CONTROL["pad"]:
        raise ConfigError(f"{path}: {len(languages)} languages do not fit")
    config = ModelConfig(
        model_type="custom_voice",
        # Instructions are dropped, as for the published model of this size.
        model_size="0b6",
        talker=TalkerConfig(
            talker,
            codec_vocab_size=codebook_size + _SPECIAL,
            text_vocab_size=text_vocab,
            text_width=_whole(values, "text_width", talker.width, path),
            num_codebooks=codec.num_codebooks,
            max_positions=_whole(values, "max_positions", 4096, path),
        ),
        code_predictor=CodePredictorConfig(predictor, codebook_size, codec.num_codebooks, talker.width),
        prompt=PromptConfig(
            **text_ids,
            **{f"codec_{name}": codebook_size + place for name, place in _CONTROL.items()},
            languages={name: codebook_size + _FIRST_LANGUAGE + i for i, name in enumerate(languages)},
            speakers={},
            dialects={},
        ),
        codec=codec,
        max_new_tokens=_whole(values, "max_frames", 750, path),
    )
    return with_new_speakers(config, _names(values.get("speakers", []), "speakers", path))


def with_new_speakers(config: ModelConfig, names: Sequence[str]) -> ModelConfig:
    """The config with speakers of these names, in lower case, and no others.

    Raises:
        ConfigError: more than there is room for.
    """
    names = list(dict.fromkeys(name.lower() for name in names))
    if len(names) > _LAST_SPEAKER - _FIRST_SPEAKER + 1:
        raise ConfigError(f"{len(names)} speakers do not fit: there is room for {_LAST_SPEAKER - _FIRST_SPEAKER + 1}")
    first = config.talker.codebook_size + _FIRST_SPEAKER
    return replace(config, prompt=replace(config.prompt, speakers={name: first + i for i, name in enumerate(names)}))


def with_speakers_of(config: ModelConfig, lines: Sequence[Line]) -> ModelConfig:
    """The config, with the lines' speakers if it names none.

    Raises:
        DataError: a speaker that the config does not name.
        ConfigError: as `with_new_speakers`.
    """
    named = config.prompt.speakers
    if not named:
        return with_new_speakers(config, [line.speaker for line in lines])
    for line in lines:
        if line.speaker.lower() not in named:
            raise DataError(
                f"{line.where}: the model's config names no speaker {line.speaker!r}; it has {', '.join(named)}"
            )
    return config


def new_params(config: ModelConfig, seed: int = 0, placement: Placement | None = None) -> Params:
    """Initial weights, float32: the trees talker and code_predictor.

    Normal with a standard deviation of 0.02, divided by √(2 · layers) for the output projections of attention and MLPs,
    so that the sum over all layers starts no larger in a deep model (Radford et al. 2019); norms start at 1, biases
    at 0. Each leaf goes to its `placement` once it is drawn.
    """
    rules = model_rules(config)
    layers = {
        "talker": config.talker.transformer.num_layers,
        "code_predictor": config.code_predictor.transformer.num_layers,
    }
    leaves = {}
    for rule, key in zip(rules, jax.random.split(jax.random.key(seed), len(rules)), strict=True):
        *_, module, name = rule.flax.split("/")
        if name == "scale":
            leaf = jnp.ones(rule.flax_shape, jnp.float32)
        elif name == "bias":
            leaf = jnp.zeros(rule.flax_shape, jnp.float32)
        else:
            leaf = 0.02 * jax.random.normal(key, rule.flax_shape, jnp.float32)
            if module in ("o", "down"):
                leaf = leaf / math.sqrt(2 * layers[rule.part])
        leaves[rule.flax] = leaf if placement is None else jax.device_put(leaf, placement(rule.flax, leaf.shape))
    return unflatten_dict(leaves, sep="/")


def _only(values: Mapping[str, Any], allowed: Sequence[str], where: str | Path) -> None:
    unknown = [name for name in values if name not in allowed]
    if unknown:
        raise ConfigError(f"{where}: unknown key {unknown[0]!r}; there are {', '.join(allowed)}")


def _stack(values: Mapping[str, Any], part: str, path: Path) -> TransformerConfig:
    where = f"{path}: {part}"
    given = values.get(part)
    if not isinstance(given, dict):
        raise ConfigError(f"{where} must be an object with {', '.join(_STACK)}")
    _only(given, _STACK, where)
    given = {"num_kv_heads": given.get("num_heads")} | _DEFAULTS | given
    needed = [each.name for each in fields(TransformerConfig) if each.default is MISSING]
    for name in needed:
        kinds = (int, float) if name in _DEFAULTS else int
        if not isinstance(given.get(name), kinds) or isinstance(given[name], bool):
            raise ConfigError(f"{where}: {name} must be a number, got {given.get(name)!r}")
    try:
        return TransformerConfig(**given, qk_norm=True)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _whole(values: Mapping[str, Any], name: str, default: int, path: Path) -> int:
    value = values.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{path}: {name} must be a whole number above 0, got {value!r}")
    return value


def _names(value: Any, name: str, path: Path) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(each, str) and each.strip() for each in value):
        raise ConfigError(f"{path}: {name} must be a list of names, got {value!r}")
    return list(dict.fromkeys(each.lower() for each in value))


def _text_ids(folder: Path) -> tuple[dict[str, int], int]:
    """The ids of tts_bos, tts_eos and tts_pad, and the number of all ids."""
    tokenizer = TextTokenizer.from_folder(folder)
    ids = {}
    for name, token in (("tts_bos", "<tts_text_bos>"), ("tts_eos", "<tts_text_eod>"), ("tts_pad", "<tts_pad>")):
        found = tokenizer.encode(token)
        if len(found) != 1:
            raise ConfigError(
                f"the text tokenizer in {folder} has no token {token}; one of bytes, as `train talker` makes, has"
            )
        ids[name] = found[0]
    if len(tokenizer.assistant("")) != ROLE_IDS + CLOSING_IDS:
        raise ConfigError(
            f"the text tokenizer in {folder} needs single ids for <|im_start|>, <|im_end|>, 'assistant' and a newline"
        )
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    added = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))["added_tokens_decoder"]
    return ids, 1 + max(*vocab.values(), *map(int, added))
