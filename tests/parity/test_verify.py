"""The parity check itself: passes on what is right, and names the stage that is wrong."""

from __future__ import annotations

import shutil
import weakref
from functools import cache

import numpy as np
import pytest

from qwen3_tts_jax.convert import reference, verify
from qwen3_tts_jax.convert.check import CheckpointError
from qwen3_tts_jax.convert.reference import trace_official
from qwen3_tts_jax.convert.verify import run_parity

TEXTS = ["Hello, world.", "这是一个较长的中文句子，用来测试。"]
VARIANT, FRAMES = "1.7B-CustomVoice", 4


def stages(report):
    return {row.name: row for row in report.rows}


@cache
def trace_once(folder, requests, dtype, frames):
    return trace_official(folder, requests, dtype, frames, lambda line: None)


@pytest.fixture
def perturbed(checkpoint, monkeypatch):
    """perturbed(path, change): the report where our side has one parameter changed to change(it, codes).

    `codes` are those of the official package, [F, Q] for each text.
    """
    load, traces = verify.load_params, []

    def trace_again(folder, requests, dtype, frames, say):
        traces.append(trace_once(folder, tuple(requests), dtype, frames))
        return traces[-1]

    def compare(path, change, dtype="float32"):
        def load_changed(folder, config):
            params = load(folder, config)
            *parents, leaf = path.split("/")
            tree = params
            for name in parents:
                tree = tree[name]
            tree[leaf] = change(tree[leaf], traces[-1].codes)
            return params

        monkeypatch.setattr(verify, "load_params", load_changed)
        monkeypatch.setattr(verify, "trace_official", trace_again)
        return run_parity(checkpoint(VARIANT), TEXTS, dtype=dtype, frames=FRAMES, layers=True)

    return compare


@pytest.mark.parametrize(
    ("variant", "options"),
    [
        ("0.6B-CustomVoice", {"speaker": "Eric", "language": "Chinese", "text_mode": "as_it_comes"}),
        ("1.7B-VoiceDesign", {"instruct": "An old man, out of breath."}),
    ],
)
def test_every_stage_passes(checkpoint, tmp_path, variant, options):
    lines = []
    report = run_parity(
        checkpoint(variant), TEXTS, frames=5, layers=True, report=tmp_path / "r.md", progress=lines.append, **options
    )
    rows = stages(report)
    assert report.passed, report.to_markdown()
    assert list(rows)[:7] == [
        "text ids", "prompt embeddings", "text track", "talker layer 0", "talker layer 1", "talker layer 2",
        "prefill hidden",
    ]  # fmt: skip
    assert list(rows)[-3:] == ["codec samples", "free codes", "speech"]
    for name in ("prefill logits", "talker logits", "predictor logits", "free codes"):
        assert rows[name].agreement == 1.0
    num_codebooks = {"0.6B-CustomVoice": 16, "1.7B-VoiceDesign": 5}[variant]
    assert rows["free codes"].shape == f"2 × 5 × {num_codebooks}"
    assert rows["predictor logits"].shape.startswith(f"2 × 5 × {num_codebooks - 1} × ")
    assert rows["talker logits"].shape.startswith("2 × 6 × ")
    assert len(rows["codec samples"].errors) == 5
    for row in report.rows:
        if row.kind in ("embeddings", "hidden", "logits"):
            assert 0 < row.max_rel < 1e-5, row
    assert lines[0].startswith("official: loading")
    assert "passed: all" in (tmp_path / "r.md").read_text(encoding="utf-8")


def test_utterances_that_end_early_are_compared_to_their_ends(checkpoint):
    report = run_parity(checkpoint("0.6B-CustomVoice", eos_boost=1.0), [*TEXTS, "Third"], frames=30)
    rows = stages(report)
    assert report.passed, report.to_markdown()
    # With these weights two texts end after 7 frames and one after 12.
    assert rows["free codes"].shape == "3 × 12 × 16"
    assert rows["talker logits"].shape.startswith("3 × 13 × ")
    assert rows["predictor logits"].shape.startswith("3 × 12 × ")


def test_a_wrong_layer_is_named(perturbed):
    report = perturbed("talker/transformer/layers_1/mlp/down/weight", lambda weight, codes: weight * 1.01)
    rows = stages(report)
    assert "the first is talker layer 1 (first at 0)" in report.verdict
    for name in ("text ids", "prompt embeddings", "text track", "talker layer 0", "codec samples"):
        assert rows[name].passed, name
    for name in ("talker layer 2", "prefill hidden", "prefill logits", "talker logits", "predictor logits"):
        assert not rows[name].passed, name
        assert rows[name].first_difference == 0


def test_a_wrong_code_embedding_shows_once_it_is_used(perturbed):
    # The embedding of code 4 is an input of the predictor for code 5, and of the talker for the next frame.
    def zero_a_row(table, codes):
        row = codes[0][2, 4]
        assert row not in [*codes[0][:2, 4], *codes[1][:2, 4]]
        return table.at[3, row].set(0.0)

    rows = stages(perturbed("code_predictor/codec_embeddings/embedding", zero_a_row))
    assert rows["prefill logits"].passed
    assert (rows["predictor logits"].passed, rows["predictor logits"].first_difference) == (False, 2)
    assert (rows["talker logits"].passed, rows["talker logits"].first_difference) == (False, 3)
    assert (rows["free codes"].passed, rows["speech"].passed) == (False, False)
    assert rows["free codes"].first_difference == rows["speech"].first_difference == 2


def test_a_wrong_text_projection_is_named(perturbed):
    report = perturbed("talker/text_projection/fc2/bias", lambda bias, codes: bias.at[3].add(1e-3))
    assert "the first is prompt embeddings (first at 0)" in report.verdict
    assert not stages(report)["text track"].passed


def test_a_wrong_codec_kernel_is_named(perturbed):
    report = perturbed("codec/decoder/upsample_0/residual_1/conv_1/kernel", lambda kernel, codes: kernel * 1.01)
    failed = [row.name for row in report.rows if not row.passed]
    assert failed == ["codec upsample_0", "codec upsample_1", "codec samples", "speech"]


def test_bfloat16_is_held_to_the_direction_of_the_logits(perturbed):
    rows = stages(perturbed("talker/codec_head/weight", lambda weight, codes: weight, dtype="bfloat16"))
    for row in rows.values():
        assert row.max_abs is None or np.isfinite(row.max_abs), row
    for name in ("prefill logits", "talker logits", "predictor logits"):
        assert 0.9995 <= rows[name].cosine < 0.999999, name
        assert rows[name].passed
    assert rows["codec samples"].passed
    rows = stages(
        perturbed("talker/codec_head/weight", lambda weight, codes: weight.at[:30].multiply(1.5), dtype="bfloat16")
    )
    assert not rows["talker logits"].passed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16"}, "unknown dtype 'float16'; there are float32, bfloat16"),
        ({"frames": 0}, "frames must be 1 to 300, got 0"),
        ({"frames": 301}, "frames must be 1 to 300, got 301"),
        ({"texts": []}, "give at least one"),
        ({"texts": ["good", " "]}, "the text is empty"),
        ({"speaker": "nobody"}, "unknown speaker 'nobody'"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_loaded(checkpoint, monkeypatch, options, message):
    monkeypatch.setattr(verify, "trace_official", None)
    with pytest.raises(ValueError, match=message):
        run_parity(checkpoint("0.6B-CustomVoice"), **{"texts": TEXTS, **options})


def test_a_checkpoint_without_its_codec_is_refused(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "trace_official", None)
    folder = tmp_path / "model"
    shutil.copytree(checkpoint(VARIANT), folder)
    (folder / "speech_tokenizer" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"speech_tokenizer/model\.safetensors is missing"):
        run_parity(folder, TEXTS)


def test_only_one_model_is_in_memory(checkpoint, monkeypatch):
    models, load_official, load_ours = [], reference.load_official, verify.load_params

    def load_and_watch(*arguments):
        model = load_official(*arguments)
        models.append(weakref.ref(model.model.talker.codec_head))
        return model

    def load_after(folder, config):
        models.append(models[0]())
        return load_ours(folder, config)

    monkeypatch.setattr(reference, "load_official", load_and_watch)
    monkeypatch.setattr(verify, "load_params", load_after)
    run_parity(checkpoint(VARIANT), TEXTS, frames=FRAMES)
    assert models[1] is None


def test_base_models_and_missing_folders_are_refused(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="a base model speaks only after a reference recording"):
        run_parity(checkpoint("1.7B-Base"), TEXTS)
    with pytest.raises(FileNotFoundError, match="nowhere for the report does not exist"):
        run_parity(checkpoint("0.6B-CustomVoice"), TEXTS, report=tmp_path / "nowhere" / "r.md")
