"""The parity check itself: passes on what is right, and names the stage that is wrong."""

from __future__ import annotations

import shutil
import weakref

import numpy as np
import pytest

from qwen3_tts_jax.convert import trace_official as official_side
from qwen3_tts_jax.convert import trace_ours, verify
from qwen3_tts_jax.convert.check import CheckpointError
from qwen3_tts_jax.convert.hearing import Recording, hear_official
from qwen3_tts_jax.convert.trace_official import trace_official
from qwen3_tts_jax.convert.verify import run_parity
from tests.golden_x_vector import speech_like

# Not of the codecs' rate, and no whole number of frames.
RECORDING = speech_like(11_003, 1), 16_000
TEXTS = ["Hello, world.", "这是一个较长的中文句子，用来测试。"]
VARIANT, SPEAKER, FRAMES = "1.7B-CustomVoice", "aiden", 4


def stages(report):
    return {row.name: row for row in report.rows}


_traces = {}


def trace_once(folder, requests, recording, dtype, frames, progress):
    key = folder, tuple(requests), recording.name, dtype, frames
    if key not in _traces:
        _traces[key] = trace_official(folder, requests, recording, dtype, frames, progress)
    return _traces[key]


@pytest.fixture
def perturbed(checkpoint, monkeypatch):
    """perturbed(path, change): the report where our side has one parameter changed to change(it, codes).

    `codes` are those of the official package, [F, Q] for each text.
    """
    load, traces = trace_ours.load_params, []

    def trace_again(*arguments):
        traces.append(trace_once(*arguments))
        return traces[-1]

    def compare(path, change, dtype="float32", variant=VARIANT):
        def load_changed(*arguments):
            params = load(*arguments)
            *parents, leaf = path.split("/")
            tree = params
            for name in parents:
                tree = tree[name]
            tree[leaf] = change(tree[leaf], traces[-1].codes)
            return params

        monkeypatch.setattr(trace_ours, "load_params", load_changed)
        monkeypatch.setattr(verify, "trace_official", trace_again)
        speaker = SPEAKER if variant == VARIANT else None
        return run_parity(checkpoint(variant), TEXTS, dtype=dtype, frames=FRAMES, speaker=speaker, layers=True)

    return compare


@pytest.mark.parametrize(
    ("variant", "options"),
    [
        ("0.6B-CustomVoice", {"speaker": "Eric", "language": "Chinese", "text_mode": "as_it_comes"}),
        ("1.7B-VoiceDesign", {"instruct": "An old man, out of breath.", "reference": (speech_like(15_000), 24_000)}),
        ("0.6B-Base", {"reference": RECORDING, "reference_text": "What it says.", "text_mode": "as_it_comes"}),
        ("1.7B-Base", {"reference": RECORDING, "x_vector_only": True}),
    ],
)
def test_every_stage_passes(checkpoint, tmp_path, variant, options):
    lines = []
    report = run_parity(checkpoint(variant), TEXTS, frames=5, layers=True, progress=lines.append, **options)
    rows = stages(report)
    assert report.passed, report.to_markdown()
    report.write(tmp_path / "r.md")
    heard = ["mel", "x-vector"] if variant.endswith("Base") else []
    heard += ["encoder latents", "encoder codes"]
    assert list(rows)[: len(heard)] == heard
    assert list(rows)[len(heard) :][:7] == [
        "text ids", "prompt embeddings", "text track", "talker layer 0", "talker layer 1", "talker layer 2",
        "prefill hidden",
    ]  # fmt: skip
    assert list(rows)[-3:] == ["codec samples", "free codes", "speech"]
    for name in ("prefill logits", "talker logits", "predictor logits", "free codes"):
        assert rows[name].agreement == 1.0
    assert rows["encoder codes"].agreement == 1.0
    num_codebooks = 16 if variant.startswith("0.6B") else 5
    assert rows["free codes"].shape == f"2 × 5 × {num_codebooks}"
    assert rows["predictor logits"].shape.startswith(f"2 × 5 × {num_codebooks - 1} × ")
    assert rows["talker logits"].shape.startswith("2 × 6 × ")
    assert len(rows["codec samples"].errors) == 5
    for row in report.rows:
        if row.kind in ("mel", "x-vector", "embeddings", "hidden", "logits"):
            assert 0 < row.max_rel < 1e-5, row
    assert lines[0].startswith("official: loading")
    assert "passed: all" in (tmp_path / "r.md").read_text(encoding="utf-8")


def test_utterances_that_end_early_are_compared_to_their_ends(checkpoint):
    report = run_parity(checkpoint("0.6B-CustomVoice", eos_boost=1.0), [*TEXTS, "Third"], frames=30, speaker=SPEAKER)
    rows = stages(report)
    assert report.passed, report.to_markdown()
    # With these weights, and in this voice, two texts end after 7 frames and one after 12.
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


@pytest.mark.parametrize(
    ("path", "change", "failed"),
    [
        ("speaker_encoder/mfa/kernel", lambda kernel, codes: kernel * 1.01, ["x-vector"]),
        (
            "codec/encoder/transformer/layers_1/mlp/up/weight",
            lambda weight, codes: weight * 1.01,
            ["encoder latents", "encoder codes"],
        ),
        (
            "codec/encoder/quantizer/acoustic/embedding_sum",
            lambda entries, codes: entries.at[2].multiply(1.05),
            ["encoder codes"],
        ),
    ],
    ids=["speaker encoder", "encoder", "codebook"],
)
def test_what_is_misheard_is_named_and_misleads_no_later_stage(perturbed, path, change, failed):
    report = perturbed(path, change, variant="0.6B-Base")
    assert [row.name for row in report.rows if not row.passed] == failed
    codes = stages(report)["encoder codes"]
    assert (codes.agreement < 1) == ("encoder codes" in failed)


@pytest.mark.parametrize("variant", ["0.6B-Base", "1.7B-VoiceDesign"])
def test_the_reference_tells_how_its_codes_came_about(official, variant):
    """Codes, latents and entries are those of one encoding: each code is the entry nearest to its residual."""
    hearing, items = hear_official(official(variant), Recording(*RECORDING, "What it says.", "synthetic"))
    assert len(items) == variant.endswith("Base")
    codes = []
    for quantization in hearing.quantizations:
        apart = quantization.residuals[:, :, None] - quantization.entries
        codes.append(np.linalg.norm(apart, axis=-1).argmin(axis=-1))
    assert [part.shape[1] for part in codes] == [1, hearing.codes.shape[1] - 1]
    np.testing.assert_array_equal(np.concatenate(codes, axis=1), hearing.codes)
    assert len(np.unique(hearing.codes)) > 10


def test_a_wrong_code_embedding_shows_in_the_prompt_of_a_clone(perturbed):
    report = perturbed(
        "code_predictor/codec_embeddings/embedding", lambda table, codes: table.at[7].add(1e-3), variant="0.6B-Base"
    )
    assert "the first is prompt embeddings" in report.verdict


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
        ({"x_vector_only": True}, "x_vector_only is for base models; this is a custom_voice model"),
        ({"reference": RECORDING, "reference_text": "a"}, "reference_text is for base models; this is a custom_voice"),
        ({"variant": "1.7B-Base", "reference": RECORDING}, "reference_text is missing: give what the reference says"),
        ({"variant": "1.7B-Base", "reference": RECORDING, "reference_text": " "}, "reference_text is missing"),
        ({"variant": "1.7B-Base", "reference_text": "a"}, "reference_text is given without its reference"),
        (
            {"variant": "1.7B-Base", "reference": (speech_like(11_999), 24_000), "x_vector_only": True},
            r"the reference lasts 0\.50 s; it must be 0\.5 to 300 s",
        ),
        ({"reference": (speech_like(70_000), 200)}, r"the reference lasts 350\.00 s; it must be 0\.5 to 300 s"),
        (
            {"variant": "1.7B-Base", "reference": (speech_like(60_001), 24_000), "reference_text": "a", "frames": 50},
            r"the reference has 251 frames and 50 are made: .* give at most 2\.5 s, or fewer frames",
        ),
        ({"variant": "1.7B-Base", "speaker": "ryan"}, "this base model has no speakers"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_loaded(checkpoint, monkeypatch, options, message):
    options = dict(options)
    monkeypatch.setattr(verify, "trace_official", None)
    with pytest.raises(ValueError, match=message):
        run_parity(checkpoint(options.pop("variant", "0.6B-CustomVoice")), **{"texts": TEXTS, **options})


def test_a_checkpoint_without_its_codec_is_refused(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "trace_official", None)
    folder = tmp_path / "model"
    shutil.copytree(checkpoint(VARIANT), folder)
    (folder / "speech_tokenizer" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"speech_tokenizer/model\.safetensors is missing"):
        run_parity(folder, TEXTS)


def test_only_one_model_is_in_memory(checkpoint, monkeypatch):
    models, load_official, load_ours = [], official_side.load_official, trace_ours.load_params

    def load_and_watch(*arguments):
        model = load_official(*arguments)
        models.append(weakref.ref(model.model.talker.codec_head))
        return model

    def load_after(*arguments):
        models.append(models[0]())
        return load_ours(*arguments)

    monkeypatch.setattr(official_side, "load_official", load_and_watch)
    monkeypatch.setattr(trace_ours, "load_params", load_after)
    run_parity(checkpoint(VARIANT), TEXTS, frames=FRAMES)
    assert models[1] is None


def test_missing_files_are_refused(checkpoint, monkeypatch, tmp_path):
    monkeypatch.setattr(verify, "trace_official", None)
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nothing\.wav"):
        run_parity(checkpoint("1.7B-Base"), TEXTS, reference=tmp_path / "nothing.wav", reference_text="a")


@pytest.mark.parametrize(
    ("variant", "options", "recording", "cloned"),
    [
        ("0.6B-Base", {}, "synthetic, no speech, 3.00 s at 24000 Hz", "in context, as 'Nobody says this; "),
        ("1.7B-Base", {"x_vector_only": True}, "synthetic, no speech, 1.50 s", "by its x-vector alone"),
        ("1.7B-CustomVoice", {"reference": RECORDING}, "given as data, 0.69 s at 16000 Hz", "no, heard by the codec"),
    ],
)
def test_settings_tell_what_was_heard(checkpoint, monkeypatch, variant, options, recording, cloned):
    monkeypatch.setattr(verify, "trace_official", lambda *arguments: None)
    monkeypatch.setattr(verify, "trace_ours", lambda *arguments: None)
    monkeypatch.setattr(verify, "_stages", lambda *arguments: [])
    settings = run_parity(checkpoint(variant), TEXTS, **options).settings
    assert settings["recording"].startswith(recording)
    assert settings["cloned"].startswith(cloned)
