"""The option --stream: what is written to standard output, when, and what becomes of a listener that goes."""

from __future__ import annotations

import inspect
import io
import os
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile

from qwen3_tts_jax import hf_config
from qwen3_tts_jax.cli.progress import ProgressLine
from qwen3_tts_jax.cli.stream import pcm16, wav_header, write_stream
from qwen3_tts_jax.cli.text_input import arriving_text, read_text
from qwen3_tts_jax.pipeline import Qwen3TTS
from qwen3_tts_jax.speech import Speech
from tests.command import BUFFERED, assert_refused, run, start, write_model

pytestmark = pytest.mark.usefixtures("folder")

HEADER_BYTES = 44


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    return write_model(tmp_path_factory.mktemp("models"), "1.7B-CustomVoice", tokenizer_folder)


@dataclass
class Call:
    """What a model was asked."""

    request: object
    pieces: list[str] | None
    seed: int
    closed: bool = False


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """In the place of the model, one that makes three frames in two chunks and a chunk without any."""
    noted: list[Call] = []

    class Chunks:
        def __init__(self, folder, *, dtype, attention, weights, progress):
            self.config = hf_config.read_folder(folder)
            # Two samples beyond full scale, the others anywhere, with halves of a step among them.
            samples = np.random.default_rng(0).uniform(-1, 1, 3 * self.config.codec.frame_samples)
            samples[:4] = 1.25, -3, 0.5 / 32768, -1.5 / 32768
            self.samples = samples.astype(np.float32)

        def _speech(self, start, stop, reason=None):
            size = self.config.codec.frame_samples
            codes = np.zeros((stop - start, self.config.talker.num_codebooks), np.int32)
            return Speech(self.samples[start * size : stop * size], self.config.codec.sample_rate, codes, reason)

        def synthesize(self, requests, sampling, seed, progress):
            return [self._speech(0, 3, "stop")]

        def stream(self, request, sampling, seed, *, pieces):
            call = Call(request, None if pieces is None else list(pieces), seed)
            noted.append(call)

            def chunks():
                try:
                    yield self._speech(0, 1)
                    yield self._speech(1, 3)
                    yield self._speech(3, 3, "length" if request.max_frames else "stop")
                finally:
                    call.closed = True

            return chunks()

    monkeypatch.setattr(Qwen3TTS, "from_pretrained", Chunks)
    return noted


def test_the_header():
    header = wav_header(22_050)
    assert len(header) == HEADER_BYTES
    assert (header[:4], header[8:16], header[36:40]) == (b"RIFF", b"WAVEfmt ", b"data")
    assert struct.unpack("<IHHIIHH", header[16:36]) == (16, 1, 1, 22_050, 44_100, 2, 16)
    assert header[4:8] == header[40:44] == b"\xff" * 4


def test_a_stream_has_the_samples_of_the_file(model, calls):
    assert run("say", "Hi.", "-m", model, "-o", "hi.wav").exit_code == 0
    result = run("say", "Hi.", "-m", model, "--stream")
    assert result.exit_code == 0, result.stderr
    expected, rate = soundfile.read("hi.wav", dtype="int16")
    assert (expected[0], expected[1]) == (32767, -32768)
    written, written_rate = soundfile.read(io.BytesIO(result.stdout_bytes), dtype="int16")
    assert (rate, len(written)) == (written_rate, 3 * 12)
    np.testing.assert_array_equal(written, expected)
    raw = run("say", "Hi.", "-m", model, "--stream", "--raw")
    assert raw.stdout_bytes == result.stdout_bytes[HEADER_BYTES:]
    assert all(call.closed for call in calls)
    assert [path.name for path in Path.cwd().iterdir()] == ["hi.wav"]


def test_the_stream_is_timed_and_closed(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written))

    def speak():
        yield Speech(np.zeros(12, np.float32), 24_000, np.zeros((1, 16), np.int32), "stop")

    chunks = speak()
    progress = ProgressLine(0.08, quiet=True)
    assert write_stream(chunks, 24_000, raw=True, progress=progress) == (1, "stop")
    # The time until the first sound, from the start.
    assert 0 < progress.until_speech < 10
    assert inspect.getgeneratorstate(chunks) == inspect.GEN_CLOSED
    assert written.getvalue() == bytes(24)


def test_samples_that_are_not_finite_are_an_error():
    with pytest.raises(ValueError, match=r"2 of 3 samples are not finite"):
        pcm16(np.array([np.nan, 0, np.inf], np.float32))


def test_what_is_said_of_a_stream(model, calls):
    stderr = run("say", "Hi.", "-m", model, "-s", "vivian", "--stream").stderr
    # 3 frames of 12 samples at 24 kHz
    assert stderr.startswith("0.00 s of audio in 0.")
    assert stderr.endswith(" s until the first sound)\n")
    assert stderr.count("\n") == 1
    cut = run("say", "Hi.", "-m", model, "-s", "vivian", "--stream", "--max-seconds", "1").stderr
    assert cut.endswith("first sound); cut at the limit of 0.00 s: raise --max-seconds\n")
    assert run("say", "Hi.", "-m", model, "--stream", "--quiet").stderr == ""
    assert run("say", "Hi.", "-m", model, "--stream").stderr.startswith("voice: serena (")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--stream", "-o", "x.wav"], "--stream writes to standard output and takes no --output"),
        (["--stream", "-o", "speech.wav"], "takes no --output"),
        (["--raw"], "--raw is for --stream"),
        (["--stream", "--speaker", "nobody"], "unknown speaker 'nobody'"),
        (["--stream", "--text-mode", "as-it-comes", "--language", "klingon"], "unknown language"),
    ],
)
def test_refusals(model, calls, arguments, part):
    for text in (["Hello."], ["-"]):
        assert_refused(run("say", *text, "-m", model, *arguments, text=b"Hello."), part)
    assert calls == []
    assert list(Path.cwd().iterdir()) == []


def test_a_text_that_is_yet_to_come_is_not_split(model, calls):
    arguments = ["-m", model, "--stream", "--text-mode", "as-it-comes", "--split", "50"]
    assert_refused(run("say", *arguments, text=b"Hello."), "--split needs the whole text")
    assert run("say", "Hello.", *arguments).exit_code == 0
    assert calls[0].request.split == 50


# The text.


def test_text_from_standard_input_is_spoken_as_it_comes(model, calls):
    options = ["-m", model, "--stream", "--text-mode", "as-it-comes", "--seed", "6"]
    for text in (["-"], []):
        assert run("say", *text, *options, text=b"\xef\xbb\xbf One.\nTwo.\n").exit_code == 0
        call = calls.pop()
        assert (call.request.text, "".join(call.pieces), call.seed) == ("", "One.\nTwo.", 6)
        assert call.request.text_mode == "as_it_comes"
    Path("text.txt").write_text("Three.")
    for text in (["Three."], ["--file", "text.txt"]):
        assert run("say", *text, *options, text=b"not this").exit_code == 0
        call = calls.pop()
        assert (call.request.text, call.pieces) == ("Three.", None)


def test_all_at_once_reads_standard_input_first(model, calls):
    assert run("say", "-m", model, "--stream", text=b"One.\nTwo.\n").exit_code == 0
    assert (calls[0].request.text, calls[0].pieces) == ("One.\nTwo.", None)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "standard input is empty"),
        (b" \n\t", "standard input is empty"),
        (b"gr\xfc\xdfe", "standard input is not UTF-8 text: it has the byte 0xfc"),
        (b"gr\xc3", "standard input is not UTF-8 text: it has the byte 0xc3"),
    ],
)
def test_unusable_texts_from_standard_input(model, calls, content, part):
    options = ["-m", model, "-s", "vivian", "--stream", "--text-mode", "as-it-comes"]
    assert_refused(run("say", *options, text=content), part)


class _Pieces(io.RawIOBase):
    """A standard input on which a piece arrives per read."""

    def __init__(self, pieces: list[bytes]):
        self._pieces = list(pieces)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        piece = self._pieces.pop(0) if self._pieces else b""
        buffer[: len(piece)] = piece
        return len(piece)


def test_the_pieces_are_the_text(monkeypatch):
    pieces = [
        b"\xef\xbb",
        b"\xbf \n",
        b" Gr",
        b"\xc3",
        b"\xbc\xc3\x9fe,",
        b"  \n",
        b"\tHans ",
        b"\xe4\xbd",
        b"\xa0.",
        b" \n",
    ]

    def given():
        return io.TextIOWrapper(io.BufferedReader(_Pieces(pieces)))

    monkeypatch.setattr(sys, "stdin", given())
    arrived = list(arriving_text())
    assert arrived == ["Gr", "üße,", "  \n\tHans", " 你."]
    monkeypatch.setattr(sys, "stdin", given())
    assert "".join(arrived) == read_text("-", None)


def test_a_piece_is_there_before_the_next_one_or_the_end_of_the_line(monkeypatch):
    reader, writer = os.pipe()
    monkeypatch.setattr(sys, "stdin", open(reader))  # noqa: SIM115
    os.write(writer, b"Once upon")
    # So that a mistake ends the test, too.
    late = threading.Timer(30, os.write, (writer, b" a time.\n"))
    late.start()
    pieces = arriving_text()
    try:
        assert next(pieces) == "Once upon"
    finally:
        late.cancel()
        os.close(writer)
    assert list(pieces) == []
    sys.stdin.close()


# Processes. The model in them makes a chunk whenever the test says so.

_STEPWISE = """
import pathlib, sys, time
import numpy as np
from qwen3_tts_jax import hf_config
from qwen3_tts_jax.cli.main import main
from qwen3_tts_jax.pipeline import Qwen3TTS
from qwen3_tts_jax.speech import Speech

class Stepwise:
    def __init__(self, folder, *_, **__):
        self.config = hf_config.read_folder(folder)

    def stream(self, request, sampling, seed, *, pieces):
        codes = np.zeros((1, self.config.talker.num_codebooks), np.int32)
        try:
            for number in range(1, 100):
                yield Speech(np.full(12, number / 1000, np.float32), 24_000, codes, None)
                while not pathlib.Path(f"go-{number}").exists():
                    time.sleep(0.01)
        finally:
            pathlib.Path("closed").touch()

Qwen3TTS.from_pretrained = Stepwise
main()
"""


def _stepwise(model: Path, **options) -> subprocess.Popen:
    command = [sys.executable, "-c", _STEPWISE, "say", "Hi.", "-m", str(model), "-s", "vivian", "--stream"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, env=BUFFERED, **options)


def test_every_chunk_is_heard_at_once_and_a_listener_may_go(model):
    process = _stepwise(model, stdout=subprocess.PIPE, bufsize=0)
    deadline = threading.Timer(120, process.kill)
    deadline.start()
    try:
        assert process.stdout.read(HEADER_BYTES)[:4] == b"RIFF"
        for number in (1, 2):
            # The third chunk is not made before its file is there, so these come alone.
            chunk = np.frombuffer(process.stdout.read(24), "<i2")
            np.testing.assert_array_equal(chunk, np.full(12, int(number / 1000 * 32768)))
            if number == 1:
                Path("go-1").touch()
        process.stdout.close()
        assert process.poll() is None
        Path("go-2").touch()
        stderr = process.stderr.read()
        assert (process.wait(), stderr) == (0, b"")
        assert Path("closed").exists()
    finally:
        deadline.cancel()
        process.stderr.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line(model):
    with open("/dev/full", "wb") as full:
        process = _stepwise(model, stdout=full)
        stderr = process.communicate(timeout=120)[1]
    assert process.returncode == 2
    assert stderr == b"error: cannot write to standard output: No space left on device\n"


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs pseudo-terminals")
def test_a_terminal_is_no_place_for_sound(model):
    terminal, stdout = os.openpty()
    process = start("say", "Hello.", "-m", model, "--stream", stdout=stdout)
    os.close(stdout)
    stderr = process.communicate(timeout=120)[1]
    os.close(terminal)
    assert process.returncode == 2
    assert stderr.startswith(b"error: --stream writes sound to standard output, which is a terminal: pipe it")
    assert stderr.count(b"\n") == 1


def test_a_true_model_speaks_a_text_that_arrives_as_it_speaks_a_file(model):
    options = ["-m", model, "-s", "vivian", "-l", "english", "--text-mode", "as-it-comes", "--max-seconds", "0.02"]
    process = start("say", *options, "--stream", stdin=subprocess.PIPE)
    for piece in (b"Hello ", b"you, and y", b"ou.\n"):
        process.stdin.write(piece)
        process.stdin.flush()
        time.sleep(0.1)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert b"until the first sound" in stderr
    assert run("say", "Hello you, and you.", *options, "-o", "whole.wav").exit_code == 0
    expected, rate = soundfile.read("whole.wav", dtype="int16")
    streamed, streamed_rate = soundfile.read(io.BytesIO(stdout), dtype="int16")
    assert streamed_rate == rate
    assert len(streamed) == len(expected) > 0
    assert np.abs(expected).max() > 300
    np.testing.assert_allclose(streamed, expected, atol=1)
