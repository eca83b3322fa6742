"""Exported programs: the same speech in a process without the model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_tts_jax import generate
from qwen3_tts_jax.ahead_of_time import Size, export_programs, flat_weights, load_programs
from qwen3_tts_jax.codec import decoder, hopper
from qwen3_tts_jax.convert.rules import all_rules
from qwen3_tts_jax.prompt import PromptPlan, batch_plans
from tests.command import assert_refused, one_layer, run, write_model
from tests.drawn_tree import drawn_tree
from tests.shapes import SMALL

CONFIG = one_layer(SMALL["1.7B-VoiceDesign"])
SIZE = Size(rows=3, prompt_slots=12, capacity=30, text_slots=4, chunk_frames=4)
SCRIPT = Path(__file__).with_name("exported_speech.py")


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(jnp.asarray, drawn_tree(all_rules(CONFIG), seed=2))


@pytest.fixture(scope="module")
def prompt():
    rng = np.random.default_rng(1)

    def plan(length, trailing):
        codes = np.full((length, CONFIG.talker.num_codebooks), -1, np.int32)
        codes[length // 2 :, 0] = rng.integers(0, CONFIG.talker.codec_vocab_size, length - length // 2)
        ids = rng.integers(0, CONFIG.talker.text_vocab_size, length).astype(np.int32)
        return PromptPlan(ids, codes, rng.integers(0, 1000, trailing).astype(np.int32))

    plans = [plan(5, 0), plan(12, 3), plan(8, 4)]
    return batch_plans(plans, tts_pad=9, length=SIZE.prompt_slots, trailing_length=SIZE.text_slots)


@pytest.fixture(scope="module")
def exported(params, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    return export_programs(folder / "programs.zip", params, CONFIG, [SIZE])


def expected(params, prompt):
    """Codes and samples of the package itself."""
    keys, limits = generate.utterance_keys(7, jnp.arange(3)), jnp.asarray([5, 100, 100], jnp.int32)
    state = generate.prefill_compiled(params, CONFIG, prompt, keys, limits, SIZE.capacity)
    codec_state, codes, samples = decoder.initial_state(CONFIG.codec.decoder, 3), [], []
    step = jax.jit(decoder.decode_step, static_argnames="config")
    for _ in range(3):
        state, chunk = generate.generate_chunk(params, CONFIG, CONFIG.generation, state, SIZE.chunk_frames)
        codec_state, sound = step(params["codec"]["decoder"], CONFIG.codec.decoder, codec_state, jnp.maximum(chunk, 0))
        codes.append(np.asarray(chunk))
        samples.append(np.asarray(sound))
    return np.concatenate(codes, 1), np.concatenate(samples, 1)


def test_a_process_without_the_model_says_the_same(params, prompt, exported):
    folder = exported.parent
    np.savez(folder / "weights.npz", **{str(i): leaf for i, leaf in enumerate(flat_weights(params))})
    np.savez(folder / "prompt.npz", **{name: leaf for name, leaf in prompt._asdict().items() if leaf is not None})
    result = subprocess.run(
        [sys.executable, SCRIPT, folder], env=os.environ, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["qwen3_tts_jax", "qwen3_tts_jax.ahead_of_time"]
    codes, samples = expected(params, prompt)
    assert len({row.tobytes() for row in codes}) == 3
    assert (codes[0, 5:] == -1).all()
    with np.load(folder / "speech.npz") as spoken:
        np.testing.assert_array_equal(spoken["codes"], codes)
        np.testing.assert_allclose(spoken["samples"], samples, atol=1e-5)


def test_a_file_says_what_its_programs_take(params, exported):
    programs = load_programs(exported)
    assert programs.sizes == [SIZE]
    assert programs.platforms == ["cpu"]
    assert programs.facts == {"num_codebooks": 5, "sample_rate": 24_000, "frame_samples": 24, "tts_pad": 151_671}
    needed = {path: leaf for path, leaf in zip([w[0] for w in programs.weights], flat_weights(params), strict=True)}
    for path, shape, dtype in programs.weights:
        assert (needed[path].shape, needed[path].dtype.name) == (shape, dtype)
        leaf = params
        for key in path.split("/"):
            leaf = leaf[key]
        assert leaf is needed[path]
    assert not [path for path in needed if path.startswith("codec/encoder")]


def test_programs_for_other_machines_in_bfloat16_need_no_weights(tmp_path):
    config = CONFIG.with_dtypes("bfloat16")
    rules = [rule for rule in all_rules(config) if rule.part != "codec/encoder"]
    shapes = jax.eval_shape(lambda: drawn_shapes(rules))
    file = export_programs(tmp_path / "p.zip", shapes, config, [SIZE, Size(1, 12, 30)], platforms=["cuda", "tpu"])
    programs = load_programs(file)
    assert programs.platforms == ["cuda", "tpu"]
    assert [size.rows for size in programs.sizes] == [3, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["p.zip"]


def test_programs_for_tpus_alone_write_their_cache_once_for_a_chunk(tmp_path):
    shapes = jax.eval_shape(lambda: drawn_shapes(all_rules(CONFIG)))

    def scatters(*platforms: str) -> int:
        file = export_programs(tmp_path / "p.zip", shapes, CONFIG, [SIZE], platforms=platforms)
        with zipfile.ZipFile(file) as archive:
            program = jax.export.deserialize(bytearray(archive.read("0/chunk.bin")))
        return program.mlir_module().count("stablehlo.scatter")

    # Keys and values of the talker's one layer at least, each at a place of its own in each row.
    assert scatters("tpu") <= scatters("cpu", "tpu") - 2
    assert scatters("cpu", "tpu") == scatters("cpu")


def test_programs_are_tied_to_no_kernel(tmp_path):
    rates = {"upsample_rates": (2,), "latent_upsample_rates": (2, 2)}
    widths = {"latent_width": 32, "decoder_channels": 128}
    codec = replace(CONFIG.codec.decoder, **rates, **widths, three_pass=True, hopper=True)
    config = replace(CONFIG, codec=replace(CONFIG.codec, decoder=codec))
    assert hopper.fits(codec, batch=8, steps=4 * 2 * 2)
    shapes = jax.eval_shape(lambda: drawn_shapes(all_rules(config)))
    file = export_programs(tmp_path / "p.zip", shapes, config, [Size(8, 12, 30, chunk_frames=4)], platforms=["cpu"])
    assert load_programs(file).platforms == ["cpu"]


def drawn_shapes(rules):
    from flax.traverse_util import unflatten_dict

    leaves = {}
    for rule in rules:
        dtype = jnp.float32 if rule.part.startswith("codec") else jnp.bfloat16
        leaves[rule.flax] = jnp.zeros(rule.flax_shape, dtype)
    return unflatten_dict(leaves, sep="/")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([], "sizes must be at least one"),
        ([SIZE, SIZE], "none twice"),
        ([Size(1, 12, 12)], "capacity=12 leaves no room for frames after 12 slots"),
        (
            [Size(1, 32_000, 33_000)],
            "32000 positions of the prompt and 1000 frames exceed the model's context of 32768",
        ),
    ],
)
def test_impossible_sizes_are_refused(params, tmp_path, sizes, message):
    with pytest.raises(ValueError, match=message):
        export_programs(tmp_path / "p.zip", params, CONFIG, sizes)
    assert not list(tmp_path.iterdir())


def test_other_files_are_refused(exported, tmp_path):
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(ValueError, match=r"text\.zip holds no exported programs"):
        load_programs(tmp_path / "text.zip")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("programs.json", '{"format": 2}')
    with pytest.raises(ValueError, match="has format 2, this version reads 1: export again"):
        load_programs(tmp_path / "other.zip")
    with pytest.raises(FileNotFoundError):
        load_programs(tmp_path / "none.zip")


def no_list(files):
    files["programs.json"] = b"[]"


def other_field(files):
    manifest = json.loads(files["programs.json"])
    manifest["sizes"][0]["columns"] = 3
    files["programs.json"] = json.dumps(manifest).encode()


def no_weights(files):
    manifest = json.loads(files["programs.json"])
    files["programs.json"] = json.dumps({name: manifest[name] for name in manifest if name != "weights"}).encode()


def cut(files):
    files["0/chunk.bin"] = files["0/chunk.bin"][:100]


def zeros(files):
    files["0/chunk.bin"] = bytes(100)


@pytest.mark.parametrize("damage", [no_list, other_field, no_weights, cut, zeros])
def test_damaged_files_are_refused(exported, tmp_path, damage):
    with zipfile.ZipFile(exported) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    damage(files)
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match=r"p\.zip holds no exported programs: "):
        load_programs(tmp_path / "p.zip")


def test_the_command(tokenizer_folder, tmp_path, monkeypatch):
    model = write_model(tmp_path, "1.7B-VoiceDesign", tokenizer_folder)
    file = tmp_path / "programs.zip"
    result = run("export-programs", model, "-o", file, "--rows", 2, "--rows", 1, "--tokens", 20, "--seconds", 0.1)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith(f"{file}: ")
    frames = 100  # of 24 samples, in 0.1 s
    assert load_programs(file).sizes == [Size(2, 20, 20 + frames), Size(1, 20, 20 + frames)]
    assert_refused(run("export-programs", model, "-o", file, "--platform", "gpu"), "there is no platform 'gpu'", "cuda")
    assert_refused(run("export-programs", model, "-o", tmp_path / "p.bin"), "'p.bin'", ".zip")
    monkeypatch.setattr("qwen3_tts_jax.cli.programs._load", None)  # Before any weight is read.
    assert_refused(run("export-programs", model, "-o", file, "--seconds", "inf"), "exceed the model's context of 32768")
