"""Comparison and report of the parity check, without the official package."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest
from rich.console import Console

from qwen3_tts_jax.convert import verify
from qwen3_tts_jax.convert.compare import TOLERANCES, Quantization, compare, compare_encoded
from qwen3_tts_jax.convert.reference import OracleMissingError, import_official
from qwen3_tts_jax.convert.report import Report
from tests.command import write_model
from tests.shapes import SMALL

RNG = np.random.default_rng(0)


def rows(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    return [RNG.normal(size=shape).astype(np.float32) for shape in shapes]


def changed(values: list[np.ndarray], row: int, index: tuple[int, ...], by: float) -> list[np.ndarray]:
    values = [row.copy() for row in values]
    values[row][index] += by
    return values


def test_numbers_of_a_stage():
    reference = [np.array([[3.0, 4.0], [0.0, -8.0], [1.0, 0.0]]), np.array([[0.0, 2.0]])]
    ours = [np.array([[3.0, 4.0], [6.0, -8.0], [1.0, 0.0]]), np.array([[0.0, 2.5]])]
    stage = compare("a", "hidden", "float32", reference, ours)
    assert stage.shape == "2 × 3 × 2"
    assert (stage.max_abs, stage.max_rel) == (6.0, 0.75)
    assert stage.cosine == pytest.approx(0.8)
    assert stage.errors == (0.0625, 0.75, 0.0)
    assert stage.first_difference == 0
    assert stage.agreement is None
    assert not stage.passed


@pytest.mark.parametrize(
    ("kind", "dtype", "within", "beyond"),
    [
        ("mel", "float32", 0.9e-5, 1.1e-5),
        ("mel", "bfloat16", 0.9e-5, 1.1e-5),
        ("x-vector", "float32", 0.9e-4, 1.1e-4),
        ("embeddings", "float32", 0.9e-5, 1.1e-5),
        ("hidden", "float32", 0.9e-4, 1.1e-4),
        ("logits", "float32", 0.9e-4, 1.1e-4),
        ("codec", "bfloat16", 0.9e-4, 1.1e-4),
    ],
)
def test_relative_tolerances(kind: str, dtype: str, within: float, beyond: float):
    reference = rows((5, 7), (4, 7))
    reference[1][0, 0] = scale = 40.0
    assert compare("a", kind, dtype, reference, changed(reference, 0, (2, 3), within * scale)).passed
    stage = compare("a", kind, dtype, reference, changed(reference, 0, (2, 3), beyond * scale))
    assert (stage.passed, stage.first_difference) == (False, 2)


@pytest.mark.parametrize("kind", ["samples", "speech"])
def test_samples_have_an_absolute_tolerance(kind: str):
    reference = [row * 1e-3 for row in rows((3, 11))]
    assert compare("a", kind, "float32", reference, changed(reference, 0, (1, 10), 0.9e-4)).passed
    stage = compare("a", kind, "float32", reference, changed(reference, 0, (1, 10), 1.1e-4))
    assert (stage.passed, stage.first_difference) == (False, 1)
    assert stage.errors[1] == pytest.approx(1.1e-4, rel=1e-3)


def test_logits_in_bfloat16_are_held_to_their_direction():
    reference = [np.tile(np.array([10.0, 1.0, 0.0]), (6, 1))]
    close, far = changed(reference, 0, (3, 2), 0.3), changed(reference, 0, (3, 2), 0.35)
    stage = compare("a", "logits", "bfloat16", reference, close)
    assert (stage.passed, stage.first_difference) == (True, None)
    assert 0.9995 < stage.cosine < 0.9996
    stage = compare("a", "logits", "bfloat16", reference, far)
    assert (stage.passed, stage.first_difference) == (False, 3)


def test_another_most_likely_token_is_told_but_allowed_in_bfloat16():
    reference = [np.array([[5.0, 5.01], [1.0, 9.0], [5.0, 5.01]])]
    stage = compare("a", "logits", "bfloat16", reference, changed(reference, 0, (2, 0), 0.02))
    assert (stage.passed, stage.first_difference) == (True, 2)
    assert stage.agreement == pytest.approx(2 / 3)


def test_a_code_that_differs():
    reference = [np.array([[1, 2], [3, 4], [5, 6]]), np.array([[7, 8], [9, 1]])]
    assert compare("a", "codes", "float32", reference, reference).passed
    ours = changed(reference, 0, (2, 1), 1)
    stage = compare("a", "codes", "float32", reference, ours)
    assert (stage.passed, stage.agreement, stage.first_difference) == (False, 0.9, 2)
    stage = compare("a", "codes", "bfloat16", reference, ours)
    assert (stage.passed, stage.agreement, stage.first_difference) == (True, 0.9, 2)


@pytest.mark.parametrize("kind", ["codes", "speech"])
def test_an_utterance_of_another_length(kind: str):
    reference = [np.ones((3, 2)), np.ones((5, 2))]
    ours = [np.ones((3, 2)), np.ones((4, 2))]
    for one, other in ((reference, ours), (ours, reference)):
        stage = compare("a", kind, "float32", one, other)
        assert (stage.passed, stage.first_difference) == (False, 4)
        assert "(ours " in stage.shape
        assert compare("a", kind, "bfloat16", one, other).passed
    assert compare("a", "codes", "float32", reference, ours).agreement == 14 / 16


def quantized(latents: np.ndarray, entries: np.ndarray) -> tuple[np.ndarray, Quantization]:
    """Codes [T, Q] of latents [T, C], and how they came about."""
    codes, residuals, residual = [], [], latents
    for table in entries:
        residuals.append(residual)
        codes.append(np.linalg.norm(residual[:, None] - table, axis=-1).argmin(1))
        residual = residual - table[codes[-1]]
    return np.stack(codes, axis=1), Quantization(np.stack(residuals, axis=1), entries)


# On a line: the entries 0, 2 and 10, then 0, 1 and 5; the planes between lie at 1 and 6, then at 0.5 and 3.
ENTRIES = np.array([[0, 0], [2, 0], [10, 0], [0, 0], [1, 0], [5, 0]]).reshape(2, 3, 2)


def test_distance_of_a_code_that_differs():
    codes, quantization = quantized(np.array([[1.25, 0.5], [2.0, 3.0], [0.75, 0.0], [2.0, 0.0]]), ENTRIES)
    assert codes.tolist() == [[1, 0], [1, 0], [0, 1], [1, 0]]
    others = np.array([[0, 0], [1, 1], [2, 0], [1, 0]])
    # In frame 2 the second code is of another residual: it is not judged.
    np.testing.assert_allclose(quantization.distances(codes, others), [[0.25, 0], [0, 0.5], [4.25, 0], [0, 0]])


def test_codes_of_a_recording_may_differ_where_rounding_decides():
    random = np.random.RandomState(1)
    tables = random.standard_normal((3, 8, 4))
    latents = random.standard_normal((6, 4))
    # Frame 4 lies between the first two entries of the first codebook, a hair nearer to the second.
    tables[0, :2] = latents[4] + np.array([[0.01, 0, 0, 0], [-0.01, 0, 0, 0]])
    latents[4, 0] -= 1e-6
    (first, semantic), (rest, acoustic) = quantized(latents, tables[:2]), quantized(latents, tables[2:])
    codes, parts = np.concatenate([first, rest], axis=1), [semantic, acoustic]
    assert compare_encoded("a", "float32", codes, codes, parts).max_abs == 0.0
    assert codes[4, 0] == 1
    near = codes.copy()
    near[4, 0] = 0
    stage = compare_encoded("a", "float32", codes, near, parts)
    assert (stage.passed, stage.first_difference, stage.shape) == (True, 4, "1 × 6 × 3")
    assert stage.agreement == 17 / 18
    assert stage.max_abs == pytest.approx(1e-6, rel=1e-3)
    scale = np.linalg.norm(np.concatenate([part.residuals for part in parts], axis=1), axis=-1).max()
    assert stage.max_rel == pytest.approx(1e-6 / scale, rel=1e-3)
    for codebook in (0, 1, 2):
        far = near.copy()
        far[2, codebook] = (far[2, codebook] + 1) % 8
        stage = compare_encoded("a", "bfloat16", codes, far, parts)
        assert (stage.passed, stage.first_difference, stage.agreement) == (False, 2, 16 / 18)
        assert stage.errors[2] == stage.max_rel > 1e-3
    for shorter in (near[:5], np.concatenate([near, near[:1]])):
        stage = compare_encoded("a", "float32", codes, shorter, parts)
        assert (stage.passed, stage.first_difference) == (False, min(len(shorter), 6))
        assert stage.shape == f"1 × 6 × 3 (ours {len(shorter)})"


@pytest.mark.parametrize(("from_plane", "passed"), [(0.9e-3, True), (1.1e-3, False)])
def test_codes_are_held_to_the_longest_latent(from_plane: float, passed: bool):
    codes, quantization = quantized(np.array([[1 + from_plane, 0.0], [6.0, 8.0]]), ENTRIES[:1])
    stage = compare_encoded("a", "float32", codes, codes - [[1], [0]], [quantization])
    assert stage.max_rel == pytest.approx(from_plane / 10)
    assert stage.passed == passed


def test_codes_of_latents_that_are_no_numbers_never_pass():
    codes, quantization = quantized(np.array([[1.25, 0.5], [2.0, 3.0]]), ENTRIES)
    quantization.residuals[1] = np.nan
    stage = compare_encoded("a", "float32", codes, codes[:, ::-1], [quantization])
    assert (stage.passed, stage.first_difference) == (False, 0)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("kind", ["mel", "x-vector", "embeddings", "hidden", "logits", "codec", "samples", "speech"])
def test_nan_never_passes(kind: str, dtype: str):
    reference = rows((3, 4))
    stage = compare("a", kind, dtype, reference, changed(reference, 0, (1, 2), np.nan))
    assert (stage.passed, stage.first_difference) == (False, 1)


def test_report_and_its_files(tmp_path):
    reference = rows((3, 4))
    good = compare("good stage", "logits", "float32", reference, reference)
    bad = compare("bad stage", "samples", "float32", reference, changed(reference, 0, (2, 2), 0.5))
    assert Report({}, [good]).passed
    report = Report({"model": "tiny", "dtype": "float32"}, [good, bad])
    assert not report.passed
    assert report.verdict == "FAILED: 1 of 2 stages, the first is bad stage (first at 2)"
    console = Console(width=200, record=True)
    console.print(report.to_table())
    text = console.export_text()
    report.write(tmp_path / "report.md")
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    for cell in ("good stage", "bad stage", "5.00e-01", "1 × 3 × 4", "relative ≤ 0.0001", "100.00%", "FAILED"):
        assert cell in text
        assert cell in markdown
    assert "- model: tiny" in markdown
    has_plot = importlib.util.find_spec("matplotlib") is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.md", "report.png"][: 1 + has_plot]
    assert ("![errors over frames](report.png)" in markdown) == has_plot


def test_a_report_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    report = Report({}, [compare("a", "logits", "float32", rows((3, 4)), rows((3, 4)))])
    report.write(tmp_path / "report.md")
    assert "No plot: matplotlib is not installed" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["report.md"]


def test_the_first_voice_speaks_by_default(tmp_path, tokenizer_folder, monkeypatch):
    class Planned(Exception):
        """The requests, in place of what the official package makes of them."""

    def trace(folder, requests, *_):
        raise Planned(requests)

    model = write_model(tmp_path, "1.7B-CustomVoice", tokenizer_folder)
    monkeypatch.setattr(verify, "import_official", lambda: None)
    monkeypatch.setattr(verify, "trace_official", trace)
    with pytest.raises(Planned) as caught:
        verify.run_parity(model, ["Hello."])
    (request,) = caught.value.args[0]
    assert request.speaker == next(iter(SMALL["1.7B-CustomVoice"].prompt.speakers)) == "serena"


@pytest.mark.parametrize("missing", ["torch", "transformers", "qwen_tts"])
def test_a_missing_package_is_told_with_the_commands(missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(OracleMissingError) as caught:
        import_official()
    message = str(caught.value)
    assert "\n" not in message
    assert 'pip install -e ".[parity]" && pip install --no-deps qwen-tts==0.1.1' in message
    if caught.value.__cause__.name == missing:
        assert missing in message
