"""The commands `codec encode` and `codec decode`, and the files of codes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from qwen3_tts_jax.speech_tokenizer import SpeechTokenizer
from tests.command import assert_refused, run, write_model, write_recording

pytestmark = pytest.mark.usefixtures("folder")

# 240 samples a frame, 5 codebooks of 37 codes in the decoder.
FRAME_SAMPLES = 240


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    return write_model(tmp_path_factory.mktemp("models"), "1.7B-Base", tokenizer_folder)


def _codes(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 37, (frames, 5), np.int32)


def _contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


# Both ways.


def test_recordings_to_codes(model):
    # As an argument of np.savez one is called `file`.
    write_recording(Path("file.wav"), 0.305, 24_000)
    write_recording(Path("a b.c.flac"), 0.2, seed=1)
    tokenizer = SpeechTokenizer.from_pretrained(model)
    expected = tokenizer.encode(["file.wav", "a b.c.flac"])
    for name in ("codes.npz", "codes.safetensors"):
        result = run("codec", "encode", "file.wav", "a b.c.flac", "-m", model / "speech_tokenizer", "-o", name)
        assert result.exit_code == 0, (result.exception, result.stderr)
        assert result.stdout == f"{name}: 2 recordings, 51 frames of 5 codes, 0.51 s\n"
        assert result.stderr == ""
    with np.load("codes.npz", allow_pickle=False) as archive:
        arrays = dict(archive)
    assert (arrays.pop("sample_rate"), arrays.pop("frame_rate")) == (24_000, 100)
    stored = load_file("codes.safetensors")
    with safe_open("codes.safetensors", "numpy") as file:
        assert file.metadata() == {"sample_rate": "24000", "frame_rate": "100.0"}
    for found in (arrays, stored):
        assert set(found) == {"file", "a b.c"}
        for name, codes in zip(("file", "a b.c"), expected, strict=True):
            assert found[name].dtype == np.int32
            np.testing.assert_array_equal(found[name], codes)
    assert len(np.unique(expected[0])) > 10
    assert run("codec", "encode", "file.wav", "-m", model).stdout.startswith("codes.npz: 1 recording, 31 frames")
    assert len(list(Path.cwd().iterdir())) == 4


def test_codes_to_sound(model):
    both = {"one": _codes(9), "two": _codes(4, seed=1).astype(np.uint8)}
    np.savez("both.npz", **both, sample_rate=24_000)
    save_file({"alone": both["one"]}, "alone.safetensors")
    expected, rate = SpeechTokenizer.from_pretrained(model).decode(list(both.values()))

    result = run("codec", "decode", "both.npz", "-m", model, "-o", "new")
    assert result.exit_code == 0, (result.exception, result.stderr)
    assert result.stdout == "new/one.wav: 0.09 s of audio\nnew/two.wav: 0.04 s of audio\n"
    assert result.stderr == ""
    assert run("codec", "decode", "alone.safetensors", "-m", model, "-o", "new").stdout.startswith("new/alone.wav: ")
    np.save("batch.npy", both["one"].astype(np.int16))
    assert run("codec", "decode", "batch.npy", "-m", model, "-o", "new").stdout.startswith("new/batch.wav: ")
    assert Path("new/batch.wav").read_bytes() == Path("new/alone.wav").read_bytes()
    Path("speech.wav").write_text("old")
    assert run("codec", "decode", "alone.safetensors", "-m", model).stdout == "speech.wav: 0.09 s of audio\n"
    for file, samples in (
        ("new/one.wav", expected[0]), ("new/two.wav", expected[1]), ("new/alone.wav", expected[0]),
        ("speech.wav", expected[0]),
    ):  # fmt: skip
        written, written_rate = soundfile.read(file, dtype="float32")
        assert written_rate == rate
        np.testing.assert_allclose(written, samples, atol=2 / 32768)
    assert np.abs(expected[0]).max() > 0.01
    assert sorted(path.name for path in Path("new").iterdir()) == ["alone.wav", "batch.wav", "one.wav", "two.wav"]
    assert len(list(Path.cwd().iterdir())) == 5


# Refusals.


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["absent.wav"], "there is no file absent.wav"),
        (["a.wav", "text.txt"], "text.txt is not audio"),
        (["a.wav", "sub/a.flac"], "a.wav and sub/a.flac would both be kept under the name 'a'"),
        (["frame_rate.wav"], "frame_rate.wav cannot be kept under the name 'frame_rate'"),
        (["https://example.org/sample_rate.wav?a=b.c"], "cannot be kept under the name 'sample_rate'"),
        (["a.wav", "-o", "codes.npy"], "cannot write 'codes.npy': the name must end in .npz or .safetensors"),
        (["a.wav", "-o", "absent/codes.npz"], "the folder absent does not exist"),
        (["a.wav", "-m", "empty"], "config.json is missing"),
        (["a.wav", "-m", "no/such/folder"], "neither a folder"),
    ],
)
def test_encode_refuses_before_loading(folder, model, no_weights, arguments, part):
    Path("sub").mkdir()
    Path("empty").mkdir()
    for name in ("a.wav", "sub/a.flac", "frame_rate.wav"):
        write_recording(Path(name), 0.1)
    Path("text.txt").write_text("This is no sound.")
    before = _contents(folder)
    model_option = [] if "-m" in arguments else ["-m", model]
    assert_refused(run("codec", "encode", *arguments, *model_option), part)
    assert _contents(folder) == before


@pytest.mark.parametrize(
    ("name", "arrays", "output", "part"),
    [
        ("x.npz", {"a": _codes(3), "b": _codes(3)}, "x.wav", "x.npz holds 2 recordings and x.wav is one file"),
        ("x.npz", {"a": _codes(3), "b": _codes(3)}, "there", "there/b.wav is there already"),
        ("x.npz", {"a": _codes(3)}, "x.mp3/y.wav", "the folder x.mp3 does not exist"),
        ("x.npz", {"a": _codes(3)}, "x.mp3", "the ending '.mp3' is not supported, use one of .wav, .flac, .ogg"),
        ("x.npz", {"a": _codes(3)}, "no/folder", "the folder no does not exist"),
        ("x.npz", {"a": _codes(3)}, "x.npz", "x.npz is neither a folder nor a sound file (.wav, .flac, .ogg)"),
        ("x.npz", {"../a": _codes(3)}, "new", "a recording that is called '../a', which is no file's name"),
        ("x.safetensors", {"..": _codes(3)}, "new", "a recording that is called '..'"),
        ("x.npz", {"a\\b": _codes(3)}, "new", "which is no file's name"),
        ("x.npz", {"a": _codes(3), "b": _codes(0)}, "new", "b in x.npz does not fit this codec: its codes must be"),
        ("x.npz", {"a": _codes(3)[:, :4]}, "x.wav", "a in x.npz does not fit this codec: its codes must be"),
        ("x.npz", {"a": _codes(3)[0]}, "x.wav", "T > 0, got int32 [5]"),
        ("x.safetensors", {"a": _codes(3).astype(np.float32)}, "x.wav", "T > 0, got float32 [3, 5]"),
        ("x.npz", {"a": _codes(30) + 1}, "x.wav", "its codes must be 0 … 36, got 37 in frame"),
        ("x.npz", {"a": _codes(30) - 1}, "x.wav", "must be 0 … 36, got -1 in frame"),
        ("x.npz", {"a": _codes(3), "frame_rate": 12.5}, "x.wav", "its frame_rate is 12.5, this one's 100"),
        ("x.npz", {"a": _codes(3), "sample_rate": _codes(2)}, "x.wav", "x.npz cannot be read as codes: "),
        ("x.npz", {"a": np.array([{}])}, "x.wav", "x.npz cannot be read as codes: Object arrays"),
        ("x.npz", {"sample_rate": 24_000}, "x.wav", "x.npz holds no codes"),
    ],
)
def test_decode_refuses_before_loading(folder, model, no_weights, name, arrays, output, part):
    Path("there").mkdir()
    Path("there/b.wav").write_text("old")
    if name.endswith(".npz"):
        np.savez(name, **arrays)
    else:
        save_file(arrays, name)
    before = _contents(folder)
    assert_refused(run("codec", "decode", name, "-m", model, "-o", output), part)
    assert _contents(folder) == before


def test_codes_of_a_published_codec_are_checked_before_a_download(no_weights):
    np.savez("x.npz", a=np.full((3, 16), 2048))
    assert_refused(run("codec", "decode", "x.npz", "--offline"), "must be 0 … 2047, got 2048 in frame 0")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.npz", b""),
        ("x.npz", b"PK\x03\x04 and no more"),
        ("x.npz", b"\x80\x04N."),  # a pickle
        ("x.npy", b"\x80\x04N."),
        ("x.safetensors", b"\xff" * 20),
        ("x.safetensors", b""),
    ],
)
def test_files_that_are_no_codes(model, no_weights, name, content):
    Path(name).write_bytes(content)
    assert_refused(run("codec", "decode", name, "-m", model), f"{name} cannot be read as codes: ")


def test_names_of_files_of_codes(model, no_weights):
    assert_refused(run("codec", "decode", "x.bin", "-m", model), "must end in .npz or .safetensors or .npy")
    assert_refused(run("codec", "decode", "absent.npz", "-m", model), "there is no file absent.npz")
    assert_refused(run("codec", "decode", "absent.safetensors", "-m", model), "there is no file absent.safetensors")


def test_damaged_files_are_refused_or_read(model, no_weights):
    """Whatever is damaged, it is one line: no traceback."""
    np.savez_compressed("x.npz", a=_codes(4))
    save_file({"a": _codes(4)}, "x.safetensors")
    # The damage may go unnoticed in the codes themselves; then it is the model's turn.
    random = np.random.default_rng(0)
    for name in ("x.npz", "x.safetensors"):
        whole = Path(name).read_bytes()
        for _ in range(150):
            damaged = bytearray(whole)
            for position in random.integers(0, len(whole), 3):
                damaged[position] = random.integers(256)
            Path(name).write_bytes(damaged)
            result = run("codec", "decode", name, "-m", model)
            if str(result.exception) != "weights were loaded":
                assert_refused(result)
