"""Speaks on meshes of virtual devices, in a process of its own; prints what came of it as JSON.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.sharded_speech
"""

from __future__ import annotations

import json
import logging
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from qwen3_tts_jax import codec_decoding, generate, hf_export, sharding, speech_tokenizer, synthesis
from qwen3_tts_jax.codec_decoding import LastVoices, decode_codes
from qwen3_tts_jax.config import GenerationConfig, ModelConfig, SamplingConfig
from qwen3_tts_jax.convert import load_checkpoint, orbax_checkpoint
from qwen3_tts_jax.convert.rules import all_rules, model_rules
from qwen3_tts_jax.decode_state import DecodeState
from qwen3_tts_jax.prompt import PromptPlan, Request, batch_plans
from qwen3_tts_jax.quantize import quantize
from qwen3_tts_jax.speech import Speech
from qwen3_tts_jax.streaming.batch import StreamBatch
from qwen3_tts_jax.streaming.codes import StreamedCodes
from qwen3_tts_jax.streaming.decoding import StreamDecoder
from qwen3_tts_jax.streaming.text import SpokenText
from qwen3_tts_jax.synthesis import speak_codes
from tests.drawn_tree import drawn_tree
from tests.safetensors_folder import all_parts, small, write
from tests.shapes import SMALL

FRAMES = 6
MESHES = {"8x1": (8, 1), "4x2": (4, 2), "2x4": (2, 4), "1x2": (1, 2)}
SAMPLED = GenerationConfig(
    SamplingConfig(temperature=1.1, top_k=20, repetition_penalty=1.05), SamplingConfig(temperature=1.1, top_k=20)
)


def small_config() -> ModelConfig:
    """Four key/value heads in both stacks; 4 divides the other axes that are split, but not the predictor's MLP."""
    config = SMALL["1.7B-VoiceDesign"]
    talker = replace(config.talker.transformer, num_layers=1, num_heads=8, num_kv_heads=4, head_dim=6)
    predictor = replace(config.code_predictor.transformer, num_layers=1, num_heads=4, num_kv_heads=4, mlp_width=54)
    return replace(
        config,
        talker=replace(config.talker, transformer=talker, text_vocab_size=2048),
        code_predictor=replace(config.code_predictor, transformer=predictor),
        prompt=replace(config.prompt, tts_pad=7, tts_bos=9, tts_eos=10),
    )


def plans(config: ModelConfig, count: int) -> list[PromptPlan]:
    """Prompts of different lengths."""
    rng = np.random.default_rng(0)

    def plan(length: int) -> PromptPlan:
        codes = np.full((length, config.talker.num_codebooks), -1, np.int32)
        codes[length // 2 :, 0] = rng.integers(0, config.talker.codec_vocab_size, length - length // 2)
        ids = rng.integers(0, config.talker.text_vocab_size, length).astype(np.int32)
        return PromptPlan(ids, codes, rng.integers(0, 1000, 3).astype(np.int32))

    return [plan(5 + row % 7) for row in range(count)]


def speak(params: dict[str, Any], config: ModelConfig, count: int) -> tuple[np.ndarray, DecodeState]:
    """Codes [B, FRAMES, Q] of `count` prompts, made in two chunks, and the last state."""
    batch = batch_plans(plans(config, count), tts_pad=config.prompt.tts_pad, length=12)
    keys, limits = generate.utterance_keys(3, jnp.arange(count)), jnp.full(count, 100, jnp.int32)
    batch, keys, limits = sharding.place_batch(params, (batch, keys, limits))
    state = generate.prefill_compiled(params, config, batch, keys, limits, 24)
    mesh = sharding.mesh_of(params)
    state = state if mesh is None else jax.jit(partial(sharding.place_state, mesh))(state)
    chunks = []
    for _ in range(2):
        state, codes = generate.generate_chunk(params, config, SAMPLED, state, FRAMES // 2)
        chunks.append(np.asarray(codes))
    return np.concatenate(chunks, axis=1), state


def speak_in_turns(params: dict[str, Any], config: ModelConfig) -> list[tuple[int, list[list[int]]]]:
    """Codes of 11 prompts, 8 at a time: rows that have ended are refilled."""
    prompts = plans(config, 11)
    limits = [3 + 2 * (row % 4) for row in range(len(prompts))]
    spoken = speak_codes(
        params, config, SAMPLED, prompts, frame_limits=limits, seed=3, utterances=range(len(prompts)), rows=8,
        chunk_frames=3, fixed_capacity=True,
    )  # fmt: skip
    return sorted((index, codes.tolist()) for ended in spoken for index, codes, _ in ended)


def shared_out(params: dict[str, Any], config: ModelConfig, devices: int) -> dict[str, Any]:
    """How devices share what is read and what is decoded, and whether they make the samples of one."""
    rng = np.random.default_rng(1)
    size, quantizers = config.codec.decoder.codebook_size, config.codec.num_codebooks
    codes = [rng.integers(0, size, (5 + 6 * row, quantizers)).astype(np.int32) for row in range(7)]
    voices = [rng.integers(0, size, (frames, quantizers)).astype(np.int32) for frames in (0, 20, 50)]
    heard = LastVoices()

    def decode(tree: dict[str, Any], rows: Sequence[int] = range(7), **options: Any) -> list[np.ndarray]:
        spoken, heard = [codes[row] for row in rows], [voices[row % 3] for row in rows]
        return decode_codes(tree["codec"]["decoder"], config.codec, spoken, heard, **options)

    placed = sharding.shard_params(params, config, sharding.make_mesh(devices, devices=jax.devices()[:devices]))
    rows: dict[str, list[list[int]]] = {"prefill_compiled": [], "codec_step": []}
    prefill, step = synthesis.prefill_compiled, codec_decoding.codec_step

    def note(name: str, leaf: jax.Array) -> None:
        rows[name].append([len(leaf), len(leaf.addressable_shards[0].data)])

    def noting_prompts(*arguments: Any) -> Any:
        note("prefill_compiled", arguments[2].text_ids)
        return prefill(*arguments)

    def noting_codes(*arguments: Any) -> Any:
        note("codec_step", arguments[3])
        return step(*arguments)

    prompts = mock.patch.object(synthesis, "prefill_compiled", noting_prompts)
    with prompts, mock.patch.object(codec_decoding, "codec_step", noting_codes):
        found = decode(placed)
        numbers = {"seed": 3, "utterances": [0, 1], "rows": 2 * devices}
        list(speak_codes(placed, config, SAMPLED, plans(config, 2), frame_limits=[3, 3], **numbers))
    alone = [decode(placed, [row], voices=heard)[0] for row in (*range(7), *range(7))]
    return rows | {
        "as_alone": all(map(np.array_equal, (*found, *found), alone)),
        "largest_error": max(float(np.abs(a - b).max()) for a, b in zip(found, decode(params), strict=True)),
    }


class Compiled(logging.Handler):
    """Counts what JAX compiles while `jax.log_compiles()`, by the function's name.

    A function's `_cache_size` counts what is called in another way, too, and by the same program.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        found = re.match(r"Compiling jit\((\w+)\)", record.getMessage())
        if found:
            self.count[found[1]] += 1


def in_steps(params: dict[str, Any], config: ModelConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes and samples of a stream, and codes of a recording."""
    text = SpokenText([4, 5, 6])
    streamed = {"frame_limit": 12, "seed": 3, "schedule": (4,)}
    codes = np.concatenate(
        [codes for codes, _ in StreamedCodes(params, config, SAMPLED, plans(config, 1)[0], text, **streamed)]
    )
    decoder_params = params["codec"]["decoder"]
    samples = StreamDecoder(decoder_params, config.codec, 1).decode({0: np.tile(codes, (4, 1))[:32]})[0]
    noise = np.random.default_rng(0).uniform(-1, 1, 40 * config.codec.frame_samples).astype(np.float32)
    (heard,) = speech_tokenizer.encode_recordings(params["codec"]["encoder"], config.codec, [noise])
    return codes, samples, heard


class Letters:
    """A tokenizer in the place of the text's."""

    phonemes = None

    def assistant(self, text: str) -> list[int]:
        return [1, 2, 3, *map(ord, text), 4, 5, 6, 7, 8]

    instruct = assistant

    def incremental(self) -> TypedLetters:
        return TypedLetters()


class TypedLetters:
    """The letters of a text that is being written."""

    text = ""

    def add(self, piece: str) -> list[int]:
        self.text += piece
        return list(map(ord, piece))

    def finish(self) -> list[int]:
        return []


def written(text: str) -> Iterator[str]:
    for letter in text:
        time.sleep(0.05)
        yield letter


def side_by_side(params: dict[str, Any], config: ModelConfig) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Codes and samples of 9 streams, 4 at a time, by their numbers; the text of the last is still being written."""
    batch = StreamBatch(
        params, config, Letters(), SAMPLED, batch_size=4, capacity=1, schedule=(1, 3), voices=LastVoices()
    )
    for row in range(7):
        text, mode = "ab cd efg" * (1 + row % 3), ("as_it_comes", "all_at_once")[row % 2]
        batch.add(Request(text, instruct="h" * row, text_mode=mode, max_frames=4 + row), seed=row)
    chunks: dict[int, list[Speech]] = {}

    def speak() -> None:
        while batch:
            for number, chunk in batch.step():
                chunks.setdefault(number, []).append(chunk)

    speak()
    # All programs are compiled now, so speech overtakes the text.
    batch.add(Request("ab cd", max_frames=60), seed=7)
    batch.add(Request("", text_mode="as_it_comes", max_frames=12), seed=8, pieces=written("ab cd efg"))
    speak()
    return {
        number: tuple(np.concatenate([getattr(chunk, name) for chunk in own]) for name in ("codes", "samples"))
        for number, own in chunks.items()
    }


def spec(leaf: jax.Array) -> list[str | None]:
    """The mesh axis that each axis of an array is split over."""
    names = list(leaf.sharding.spec)
    return names + [None] * (leaf.ndim - len(names))


def report(config: ModelConfig, params: dict[str, Any], size: tuple[int, int], whole: np.ndarray) -> dict[str, Any]:
    """What speaking the same on a mesh gives."""
    mesh = sharding.make_mesh(*size, devices=jax.devices()[: size[0] * size[1]])
    placed = sharding.shard_params(params, config, mesh)
    before = generate.generate_chunk._cache_size()
    codes, state = speak(placed, config, len(whole))
    # Nearly all of it is the cache.
    empty = generate.empty_batch_compiled.lower(placed, config, len(whole), 8192, 8, mesh)
    held = empty.compile().memory_analysis().output_size_in_bytes
    parts = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(empty.out_info.cache)) / held
    return {
        "equal": np.array_equal(codes, whole),
        "programs": generate.generate_chunk._cache_size() - before,
        "keys": spec(state.cache.keys[0]),
        "values": spec(state.cache.values[0]),
        "rows": {name: spec(getattr(state, name)) for name in ("hidden", "logits", "seen", "keys", "ended")},
        "cache_bytes": state.cache.keys[0].addressable_shards[0].data.nbytes,
        "parts_of_empty": parts,
        "params_bytes": sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(placed)),
    }


def loaded(folder: Path) -> dict[str, bool]:
    """Whether a checkpoint of each kind goes straight to where its parameters belong."""
    config, parts = small("1.7B-Base"), all_parts(small("1.7B-Base"))
    published = write(folder / "published", config)
    for path, content in zip(
        ("config.json", "speech_tokenizer/config.json", "generation_config.json"), hf_export.to_hf(config), strict=True
    ):
        (published / path).write_text(json.dumps(content))
    whole = load_checkpoint(published, config, parts)
    converted = orbax_checkpoint.save(folder / "converted", whole, config, published)
    place = sharding.placement(sharding.make_mesh(1, 2, jax.devices()[:2]), config)
    expected = flatten_dict(whole, sep="/")

    def as_expected(source: Path) -> bool:
        found = flatten_dict(load_checkpoint(source, config, parts, placement=place), sep="/")
        return found.keys() == expected.keys() and all(
            leaf.sharding == place(path, leaf.shape) and np.array_equal(leaf, expected[path])
            for path, leaf in found.items()
        )

    return {source.name: as_expected(source) for source in (published, converted)}


def main() -> None:
    """Runs all meshes and prints one line of JSON."""
    config = small_config()
    params = jax.tree.map(jnp.asarray, drawn_tree(model_rules(config), seed=3))
    whole, state = speak(params, config, 8)
    meshes = {name: report(config, params, size, whole) for name, size in MESHES.items()}
    turns = speak_in_turns(params, config)
    mesh = sharding.make_mesh(2, 2, devices=jax.devices()[:4])
    compiled = Compiled()
    logging.getLogger("jax").addHandler(compiled)
    with jax.log_compiles():
        equal = speak_in_turns(sharding.shard_params(params, config, mesh), config) == turns
    programs = {name: compiled.count[name] for name in ("prefill", "insert", "generate")}
    in_turns = {"equal": equal, "spoken": len(turns), "programs": programs}
    whole_tree = jax.tree.map(jnp.asarray, drawn_tree(all_rules(config), seed=3))
    expected = in_steps(whole_tree, config)
    with jax.log_compiles():
        found = in_steps(sharding.shard_params(whole_tree, config, mesh), config)
    steps = {
        "equal": np.array_equal(found[0], expected[0]) and np.array_equal(found[2], expected[2]),
        "largest_error": float(np.abs(found[1] - expected[1]).max()),
        "programs": {name: compiled.count[name] for name in ("generate_at_most", "decode_step", "encode_step")},
    }
    expected = side_by_side(whole_tree, config)
    compiled.count.clear()
    with jax.log_compiles():
        found = side_by_side(sharding.shard_params(whole_tree, config, mesh), config)
    streams = {
        "equal": [np.array_equal(found[number][0], codes) for number, (codes, _) in expected.items()],
        "largest_error": max(float(np.abs(found[n][1] - samples).max()) for n, (_, samples) in expected.items()),
        "programs": {name: compiled.count[name] for name in ("generate_at_most", "set_text", "decode_step")},
    }
    shared = {devices: shared_out(whole_tree, config, devices) for devices in (3, 4)}
    few, _ = speak(params, config, 3)
    uneven = report(config, params, (2, 1), few)
    rounded = quantize(params)
    int8 = report(config, rounded, (2, 2), speak(rounded, config, 8)[0])
    with tempfile.TemporaryDirectory() as folder:
        loads = loaded(Path(folder))
    print(
        json.dumps(
            {
                "different_rows": len({row.tobytes() for row in whole}),
                "cache_bytes": state.cache.keys[0].nbytes,
                "params_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
                "meshes": meshes,
                "uneven": uneven,
                "int8": int8,
                "int8_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(rounded)),
                "in_turns": in_turns,
                "in_steps": steps,
                "side_by_side": streams,
                "shared": shared,
                "loaded": loads,
            }
        )
    )


if __name__ == "__main__":
    main()
