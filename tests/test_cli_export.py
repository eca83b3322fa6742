"""The command `export`: models, converted models and runs of training → the published layout."""

import json
import shutil

import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax.traverse_util import flatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file

from qwen3_tts_jax import hf_config
from qwen3_tts_jax.convert import export as convert_export
from qwen3_tts_jax.convert import load_params
from qwen3_tts_jax.convert.rule import PARTS
from qwen3_tts_jax.train import lora
from qwen3_tts_jax.train.batches import Batches
from qwen3_tts_jax.train.examples import Example
from qwen3_tts_jax.train.lines import Line, add_speakers
from qwen3_tts_jax.train.loss import LossConfig
from qwen3_tts_jax.train.optimizer import OptimizerConfig
from qwen3_tts_jax.train.progress import Schedule
from qwen3_tts_jax.train.run import fit
from qwen3_tts_jax.train.saved_run import describe_run
from qwen3_tts_jax.train.sft import with_speakers
from qwen3_tts_jax.train.step import PARTS as TRAINED
from qwen3_tts_jax.train.step import Recipe
from tests.command import assert_refused, run, write_model
from tests.train_model import random_codes

FILES = ("config.json", "generation_config.json", "vocab.json", "merges.txt", "tokenizer_config.json")


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizer_folder):
    return write_model(tmp_path_factory.mktemp("models"), "1.7B-Base", tokenizer_folder)


def tensors(folder):
    return {name: load_file(folder / name) for name in ("model.safetensors", "speech_tokenizer/model.safetensors")}


def assert_same(ours, other):
    for name, file in tensors(other).items():
        found = tensors(ours)[name]
        assert found.keys() == file.keys()
        for tensor, value in file.items():
            assert found[tensor].dtype == value.dtype
            np.testing.assert_array_equal(found[tensor], value, err_msg=tensor)


def test_a_converted_model_comes_back(base, tmp_path):
    converted, exported = tmp_path / "converted", tmp_path / "exported"
    assert run("convert", base, converted).exit_code == 0
    leftover = tmp_path / ".exported.partial"
    leftover.mkdir()
    (leftover / "half.txt").write_text("of a run that was killed")
    result = run("export", converted, "-o", exported)
    assert result.exit_code == 0, (result.exception, result.stderr)
    assert "talker in bfloat16" in result.stdout
    assert_same(exported, base)
    assert not leftover.exists()
    assert not (exported / "half.txt").exists()
    for name in FILES:
        assert (exported / name).is_file()
    assert json.loads((exported / "preprocessor_config.json").read_text())["processor_class"] == "Qwen3TTSProcessor"
    assert not (exported / "qwen3_tts_jax.json").exists()
    assert hf_config.read_folder(exported) == hf_config.read_folder(base)
    assert_refused(run("export", converted, "-o", exported), "is there already")


def test_another_dtype(base, tmp_path):
    assert run("export", base, "-o", tmp_path / "wide", "--dtype", "float32").exit_code == 0
    narrow, wide = (tensors(folder)["model.safetensors"] for folder in (base, tmp_path / "wide"))
    assert {str(tensor.dtype) for tensor in wide.values()} == {"float32"}
    for name, tensor in wide.items():
        np.testing.assert_array_equal(tensor, narrow[name].astype(np.float32))


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_run_that_has_not_ended(kind, base, tmp_path):
    """What a run's folder holds after a kill: the description and checkpoints, of which one is the best."""
    start = hf_config.read_folder(base).with_dtypes("float32")
    line = Line("one", None, "Hello.", speaker="anna")
    config, rows = add_speakers(start, [line])
    row = next(iter(rows.values()))
    params = with_speakers(load_params(base, start, TRAINED), {row: np.full(56, 0.1)})
    adapters = lora.LoraConfig(2, 4.0, ("mlp/down",)) if kind == "lora" else None
    optimizer = OptimizerConfig(1e-2, 2, 0, kind="adamw" if kind == "lora" else "muon")
    recipe = Recipe(
        config, LossConfig(), optimizer, adapters, speaker_rows=(row,), remat=False,
        average=0.0 if kind == "lora" else 0.5,
    )  # fmt: skip
    batches = Batches([Example(line, random_codes((4,)))], _Letters(), config, 1)
    folder = tmp_path / "began-here"
    texts = shutil.copytree(base, folder / "tokenizer", ignore=shutil.ignore_patterns("*.safetensors"))
    describe_run(folder, recipe, source=base, tokenizer=texts, codec=base / "speech_tokenizer")
    result = fit(params, recipe, batches, folder, schedule=Schedule(save=1))
    folder = folder.rename(tmp_path / "run")
    shutil.copytree(folder / "checkpoints" / "00000001", folder / "checkpoints" / "best")

    exported = run("export", folder, "-o", tmp_path / "last", "--checkpoint", "last")
    assert exported.exit_code == 0, (exported.exception, exported.stderr)
    assert "at 00000002" in exported.stdout
    read = hf_config.read_folder(tmp_path / "last").with_dtypes("float32")
    assert read == config
    trained = flatten_dict(result.params, sep="/")
    for path, leaf in flatten_dict(load_params(tmp_path / "last", read, TRAINED), sep="/").items():
        np.testing.assert_allclose(leaf, trained[path], atol=1e-7, err_msg=path)
    assert "at best" in run("export", folder, "-o", tmp_path / "best").stdout
    best, last = (load_params(tmp_path / name, read, TRAINED)["talker"] for name in ("best", "last"))
    down = [tree["transformer"]["layers_0"]["mlp"]["down"]["weight"] for tree in (best, last)]
    assert not np.array_equal(*down)
    assert load_params(tmp_path / "last", read, PARTS[3:])["codec"].keys() == {"encoder", "decoder"}

    job = json.loads((folder / "job.json").read_text())
    (folder / "job.json").write_text(json.dumps(job | {"codec": str(tmp_path / "gone")}))
    assert_refused(run("export", folder, "-o", tmp_path / "no"), "gone is not there any more")
    (folder / "job.json").write_text("{}")
    assert_refused(run("export", folder, "-o", tmp_path / "no"), "job.json is damaged")
    assert not (tmp_path / "no").exists()


class _Letters:
    phonemes = None

    def assistant(self, text):
        return [1, 2, 3, *map(ord, text), 4, 5, 6, 7, 8]


def test_refused(tmp_path):
    assert_refused(run("export", tmp_path / "none", "-o", tmp_path / "out"), "none")
    assert_refused(run("export", tmp_path, "-o", tmp_path / "out"), "is no model: config.json is missing")


def test_a_full_disk(base, tmp_path, monkeypatch):
    def full(*_, **__):
        raise SafetensorError("Error while serializing: No space left on device (os error 28)")

    monkeypatch.setattr(convert_export, "save_file", full)
    result = run("export", base, "-o", tmp_path / "out")
    assert_refused(result, "model.safetensors cannot be written: ", "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_under_orbax(base, tmp_path, monkeypatch):
    def full(*_, **__):
        raise ValueError("RESOURCE_EXHAUSTED: write failed: No space left on device\nmore lines")

    monkeypatch.setattr(ocp.Checkpointer, "save", full)
    result = run("convert", base, tmp_path / "out")
    assert_refused(result, "out cannot be written: RESOURCE_EXHAUSTED: write failed: No space left on device")
    assert list(tmp_path.iterdir()) == []
