"""The command line: what it refuses and how, what it hands on, and one utterance from end to end."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from huggingface_hub.errors import LocalEntryNotFoundError

from qwen3_tts_jax import hf_config, hf_export
from qwen3_tts_jax.cli.console import plain_messages
from qwen3_tts_jax.cli.progress import ProgressLine
from qwen3_tts_jax.config import GenerationConfig, SamplingConfig
from qwen3_tts_jax.convert.compare import Stage, Tolerance
from qwen3_tts_jax.convert.report import Report
from qwen3_tts_jax.pipeline import Qwen3TTS
from qwen3_tts_jax.prompt import plan_prompt
from qwen3_tts_jax.speech import Speech
from qwen3_tts_jax.text.tokenizer import TextTokenizer
from tests.command import BUFFERED, assert_refused, start, write_models, write_recording
from tests.command import run as run_command
from tests.shapes import SMALL

COMMANDS = (
    "say",
    "design",
    "clone",
    "batch",
    "voices",
    "languages",
    "info",
    "convert",
    "parity",
    "warmup",
    "export-programs",
)
GROUPS = {"voice": ("save", "show", "blend"), "codec": ("encode", "decode"), "train": ("sft",)}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """A folder with a checkpoint per name of `SMALL`."""
    return write_models(tmp_path_factory.mktemp("models"), tokenizer_folder, *SMALL)


@pytest.fixture
def model(models: Path) -> str:
    return str(models / "1.7B-CustomVoice")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs a command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return run_command


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """In the place of the model, one that speaks two frames of silence and notes what it was asked."""
    noted: list[dict] = []

    class Silence:
        def __init__(self, folder, *, dtype, attention, weights, progress):
            self.loaded = {"folder": Path(folder), "computing": (dtype, attention, weights)}
            self.config = hf_config.read_folder(folder)

        def synthesize(self, requests, sampling, seed, progress):
            (request,) = requests
            if request.instruct:
                # Warns like the pipeline, where the model takes no instruction.
                plan_prompt(request, TextTokenizer.from_folder(self.loaded["folder"]), self.config)
            noted.append(self.loaded | {"request": request, "sampling": sampling, "seed": seed})
            reason = "length" if 2 in (request.max_frames, request.split) else "stop"
            samples = np.zeros(2 * self.config.codec.frame_samples, np.float32)
            codes = np.zeros((2, self.config.talker.num_codebooks), np.int32)
            return [Speech(samples, self.config.codec.sample_rate, codes, reason)]

    monkeypatch.setattr(Qwen3TTS, "from_pretrained", Silence)
    return noted


# Help.


def _assert_has_example(run, *command: str) -> None:
    help_text = run(*command, "--help").stdout
    assert "Examples:\n" in help_text
    assert f"\n    qwen3-tts-jax {' '.join(command)} " in help_text


def test_help_lists_the_commands_and_every_command_has_an_example(run):
    result = run("--help")
    assert result.exit_code == 0
    for name in (*COMMANDS, *GROUPS):
        assert f"\n  {name} " in result.stdout
    for name in COMMANDS:
        _assert_has_example(run, name)
    for group, names in GROUPS.items():
        help_text = run(group, "--help").stdout
        for name in names:
            assert f"\n  {name} " in help_text
            _assert_has_example(run, group, name)


def test_version(run):
    assert run("--version").stdout == "qwen3-tts-jax 0.1.0\n"


def test_help_and_lists_do_not_import_jax(models: Path):
    program = (
        "import sys\n"
        "from qwen3_tts_jax.cli.main import app\n"
        "helps = [[*command, '--help'] for command in (['say'], ['voice', 'save'], ['codec', 'decode'])]\n"
        "for arguments in (*helps, ['voices', '--model', sys.argv[1]], ['languages', '-m', '0.6B-Base']):\n"
        "    app(arguments, standalone_mode=False)\n"
        "print(sorted({'jax', 'flax', 'rich', 'soundfile'} & set(sys.modules)))\n"
    )
    command = [sys.executable, "-c", program, str(models / "1.7B-CustomVoice")]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[-1] == "[]"
    assert "portuguese" in lines


# Refusals.


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["hello", "--speaker", "nobody"], ["unknown speaker 'nobody'", "aiden", "vivian"]),
        (["hello", "--speaker", ""], ["--speaker is empty", "`voices`"]),
        (["hello", "--language", "klingon"], ["unknown language 'klingon'", "auto", "english"]),
        ([" \n"], ["the text is empty"]),
        (["hello", "-o", "absent/x.wav"], ["the folder absent does not exist"]),
        (["hello", "-o", "x.mp3"], [".mp3", ".wav, .flac, .ogg"]),
        (["hello", "-o", "-"], ["standard output", "--stream"]),
        (["hello", "-o", "."], ["not supported"]),
        (["hello", "--max-seconds", "0"], ["--max-seconds must be a number above 0, got 0"]),
        (["hello", "--max-seconds", "-1.5"], ["--max-seconds must be a number above 0, got -1.5"]),
        (["hello", "--max-seconds", "nan"], ["--max-seconds"]),
        (["hello", "--max-seconds", "inf"], ["--max-seconds"]),
        (["hello", "--seed", "-1"], ["--seed must be 0"]),
        (["hello", "--seed", str(2**31)], ["--seed must be 0"]),
        (["hello", "--temperature", "0"], ["--temperature must be above 0", "--greedy"]),
        (["hello", "--top-p", "1.5"], ["top_p", "1.5"]),
        (["hello", "--top-k", "-1"], ["top_k", "-1"]),
        (["hello", "--repetition-penalty", "0"], ["repetition_penalty"]),
        (["hello", "--greedy", "--top-k", "5", "--temperature", "1"], ["--greedy", "--temperature or --top-k"]),
        (["hello", "--file", "text.txt"], ["not both"]),
        (["--file", "absent.txt"], ["cannot read absent.txt: No such file"]),
        (["--file", "."], ["cannot read .: Is a directory"]),
        (["hello", "--verify"], ["model.safetensors is not the published", "sha256", "; speech_tokenizer/model.safet"]),
        (["word " * 33_000], ["context of 32768", "speak it in parts"]),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else None,
)
def test_say_refuses_in_one_line_before_loading(run, model, no_weights, arguments, parts):
    assert_refused(run("say", *arguments, "--model", model), *parts)
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("say", "Hi.", "-m", "model"),
        ("convert", "model", "copy"),
        ("export", "model", "-o", "copy"),
        ("batch", "lines.jsonl", "-o", "out", "-m", "model"),
        ("voice", "save", "me.wav", "-o", "me.safetensors", "--x-vector-only", "-m", "model"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_verifying_shows_how_far_it_is(run, models, no_weights, monkeypatch, arguments):
    monkeypatch.setattr("qwen3_tts_jax.cli.progress._FIRST_LOG", 0.0)
    write_recording(Path("me.wav"))
    Path("lines.jsonl").write_text('{"text": "Hi."}\n')
    Path("model").symlink_to(models / ("1.7B-Base" if arguments[0] == "voice" else "1.7B-CustomVoice"))
    result = run(*arguments, "--verify")
    assert result.exit_code == 2
    progress, refusal = result.stderr.splitlines()
    assert progress == "checking 0.00 of 0.00 GB"
    assert "model.safetensors is not the published" in refusal
    assert run(*arguments, "--verify", "--quiet").stderr.splitlines() == [refusal]


@pytest.mark.parametrize(
    ("content", "part"),
    [(b"", "is empty"), (b" \r\n\t", "is empty"), (b"gr\xfc\xdfe", "is not UTF-8 text: byte 2 is 0xfc")],
)
def test_unusable_texts(run, model, no_weights, content, part):
    assert_refused(run("say", "--model", model, text=content), f"standard input {part}")
    Path("text.txt").write_bytes(content)
    assert_refused(run("say", "--model", model, "--file", "text.txt"), f"text.txt {part}")


@pytest.mark.parametrize(
    ("command", "name", "parts"),
    [
        ("say", "1.7B-VoiceDesign", ["voice_design model: use it with `design`", "such as mini, 0.6B-CustomVoice or"]),
        ("say", "0.6B-Base", ["base model: use it with `clone`", "`say` needs a custom_voice model"]),
        ("design", "1.7B-CustomVoice", ["custom_voice model: use it with `say`"]),
        ("design", "1.7B-Base", ["base model: use it with `clone`", "`design` needs a voice_design model"]),
    ],
)
def test_models_of_the_wrong_type(run, models, no_weights, command, name, parts):
    assert_refused(run(command, "hello", "--model", models / name, "--instruct", "a man"), *parts)
    # The type of a published model is known without a download.
    assert_refused(run(command, "hello", "--model", name, "--offline", "--instruct", "a man"), *parts)
    repository = f"Qwen/Qwen3-TTS-12Hz-{name}"
    assert_refused(run(command, "hello", "--model", repository, "--offline", "--instruct", "a man"), *parts)


def test_design_needs_an_instruction(run, models, no_weights):
    assert_refused(run("design", "hello", "--model", models / "1.7B-VoiceDesign"), "--instruct is missing")


def test_models_that_are_not_there(run, no_weights, tmp_path):
    assert_refused(run("say", "hello", "--model", "no/such/folder"), "no/such/folder", "neither a folder")
    hint = "python -m tests.parity.random_checkpoint FOLDER --preset 1.7B-CustomVoice"
    for command in ("say", "parity", "convert"):
        given = {"say": ["hello", "--model", "1.7B-CustomVoice"], "parity": ["1.7B-CustomVoice"]}
        arguments = given.get(command, ["1.7B-CustomVoice", "out"])
        assert_refused(run(command, *arguments, "--offline", "--cache-dir", tmp_path), hint, "cannot be done offline")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert_refused(run("say", "hello", "--model", empty), "is no model: config.json is missing")


def test_options_of_the_download(run, monkeypatch, tmp_path):
    asked = {}

    def snapshot_download(repository, **options):
        asked.update(options, repository=repository)
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr("qwen3_tts_jax.convert.hub.snapshot_download", snapshot_download)
    options = ["--offline", "--revision", "v1", "--cache-dir", tmp_path]
    assert_refused(run("say", "hello", "--model", "someone/tuned", *options), "someone/tuned", "'v1'")
    assert (asked["repository"], asked["revision"], asked["cache_dir"]) == ("someone/tuned", "v1", tmp_path)
    assert asked["local_files_only"]
    assert_refused(run("say", "hello", "--model", "0.6B-CustomVoice"), "Qwen/Qwen3-TTS-12Hz-0.6B-CustomVoice")
    assert not asked["local_files_only"]


@pytest.fixture
def broken(models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(models / "1.7B-CustomVoice", tmp_path / "broken"))


@pytest.mark.parametrize("name", ["model.safetensors", "speech_tokenizer/model.safetensors"])
def test_absent_and_half_downloaded_weights(run, broken, name):
    weights = broken / name
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    assert_refused(run("say", "hello", "--model", broken), name, "download it again")
    weights.unlink()
    assert_refused(run("say", "hello", "--model", broken), f"{name} is missing")
    assert not Path("speech.wav").exists()


def test_of_many_problems_the_first_is_named_and_info_lists_all(run, broken):
    (broken / "model.safetensors").unlink()
    (broken / "speech_tokenizer" / "model.safetensors").unlink()
    assert_refused(
        run("say", "hello", "--model", broken), "broken: model.safetensors is missing", "first of 2 problems", "info"
    )
    result = run("info", broken)
    assert result.exit_code == 2
    assert result.stderr == (
        "error: model.safetensors is missing\nerror: speech_tokenizer/model.safetensors is missing\n"
    )


@pytest.mark.parametrize("name", ["config.json", "speech_tokenizer/config.json", "vocab.json"])
def test_broken_small_files(run, broken, no_weights, name):
    (broken / name).write_text("{")
    assert_refused(run("say", "hello", "--model", broken), name)
    (broken / name).unlink()
    assert_refused(run("say", "hello", "--model", broken), f"{name} is missing")


def test_errors_of_the_program_are_not_swallowed(run, model, monkeypatch, calls):
    def fail(*_, **__):
        raise ValueError("a mistake of ours")

    monkeypatch.setattr("qwen3_tts_jax.cli.speak.merge_sampling", fail)
    result = run("say", "hello", "--model", model)
    assert isinstance(result.exception, ValueError)
    assert str(result.exception) == "a mistake of ours"


# What is handed to the pipeline.


def test_options_reach_the_pipeline(run, model, calls):
    result = run(
        "say", "Hi.", "-m", model, "-s", "Ryan", "-l", "German", "-i", "sadly", "--seed", "5", "-o", "a.flac",
        "--temperature", "0.5", "--top-k", "7", "--top-p", "0.8", "--repetition-penalty", "1.5",
        "--text-mode", "as-it-comes", "--max-seconds", "0.01", "--split", "40", "--dtype", "codec=bfloat16_3x",
        "--attention", "xla", "--weights", "int8",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    (call,) = calls
    assert (call["folder"], call["computing"]) == (Path(model), ("codec=bfloat16_3x", "xla", "int8"))
    assert call["seed"] == 5
    request = call["request"]
    assert (request.text, request.speaker, request.language) == ("Hi.", "Ryan", "German")
    assert (request.instruct, request.text_mode, request.split) == ("sadly", "as_it_comes", 40)
    # 12 samples a frame at 24 kHz
    assert request.max_frames == 20
    assert call["sampling"] == GenerationConfig(
        talker=SamplingConfig(True, 0.5, 7, 0.8, 1.5), code_predictor=SamplingConfig()
    )
    assert Path("a.flac").is_file()
    assert result.stderr == ""


def test_greedy(run, model, calls):
    assert run("say", "Hi.", "-m", model, "--greedy", "--repetition-penalty", "1.2").exit_code == 0
    sampling = calls[0]["sampling"]
    assert not sampling.talker.do_sample
    assert not sampling.code_predictor.do_sample
    assert sampling.talker.repetition_penalty == 1.2


def test_design_hands_on_the_description(run, models, calls):
    command = ["design", "Hi.", "-m", models / "1.7B-VoiceDesign", "-i", "an old man", "-o", "b.wav"]
    result = run(*command, "--split", "30")
    assert result.exit_code == 0, result.stderr
    request = calls[0]["request"]
    assert (request.speaker, request.instruct, request.max_frames) == (None, "an old man", None)
    assert request.split == 30
    assert result.stdout.startswith("b.wav: 0.00 s of audio in ")


def test_the_shortest_limit_is_one_frame(run, models, calls):
    assert run("say", "Hi.", "-m", models / "0.6B-CustomVoice", "--max-seconds", "0.03").exit_code == 0
    assert calls[0]["request"].max_frames == 1


def test_limits_lose_no_frame_to_rounding(run, model, calls):
    assert run("say", "Hi.", "-m", model, "--max-seconds", "1.001").exit_code == 0
    assert calls[0]["request"].max_frames == 2002


def test_the_first_voice_of_the_config_is_the_default_and_is_named(run, model, calls):
    result = run("say", "Hi.", "-m", model)
    assert calls[0]["request"].speaker == "serena"
    assert result.stderr.startswith("voice: serena (")
    assert result.stderr.count("\n") == 1
    assert run("say", "Hi.", "-m", model, "--quiet").stderr == ""


def test_an_instruction_that_the_model_cannot_take_is_one_warning(run, models, calls):
    result = run("say", "Hi.", "-m", models / "0.6B-CustomVoice", "-s", "ryan", "-i", "sadly", "--quiet")
    assert result.exit_code == 0
    assert result.stderr.startswith("warning: ")
    assert "takes no instruct" in result.stderr
    assert result.stderr.count("\n") == 1


def test_messages_of_libraries_are_a_line_each_and_each_once(capsys):
    with plain_messages():
        for _ in range(2):
            warnings.warn("first\n  second", UserWarning, stacklevel=1)
            logging.getLogger("a.library").warning("third\nfourth %d", 5)
            logging.getLogger("a.library").info("sixth")
    assert capsys.readouterr().err == "warning: first second\nwarning: third fourth 5\n"


@pytest.mark.parametrize("way", ["dash", "no argument", "file"])
def test_texts_from_standard_input_and_files(run, model, calls, way):
    content = "\ufeff Grüße,\r\n你好。\n".encode()
    Path("text.txt").write_bytes(content)
    arguments = {"dash": ["-"], "no argument": [], "file": ["--file", "text.txt"]}[way]
    result = run("say", *arguments, "-m", model, text=b"" if way == "file" else content)
    assert result.exit_code == 0, result.stderr
    assert calls[0]["request"].text == "Grüße,\r\n你好。"


def test_what_is_said_of_the_speech(run, model, calls):
    ended = run("say", "Hi.", "-m", model).stdout
    assert ended.startswith("speech.wav: 0.00 s of audio in 0.")
    assert "x real time" in ended
    assert "cut" not in ended
    assert ended.count("\n") == 1
    cut = run("say", "Hi.", "-m", model, "--max-seconds", "0.001").stdout
    assert cut.endswith("; cut at the limit of 0.00 s: raise --max-seconds\n")
    assert soundfile.info("speech.wav").frames == 24
    part = run("say", "Hi. Hi. Hi.", "-m", model, "--split", "2").stdout
    assert part.endswith("; a part that did not end was cut: try another --seed\n")


def test_a_speech_that_fills_the_context(run, models, calls, broken):
    config = hf_config.read_folder(broken)
    text = "one two three"
    positions = 3 + 4 + 2 + 3 + 2  # role, language, speaker and pad, text, its end and the first frame's place
    talker = replace(config.talker, max_positions=positions + 2)
    top, _, _ = hf_export.to_hf(replace(config, talker=talker))
    (broken / "config.json").write_text(json.dumps(top))
    result = run("say", text, "-m", broken, "-l", "english", "--max-seconds", "0.001")
    assert "; cut at the model's context of " in result.stdout, (result.stdout, result.stderr)


# The progress line.


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stderr", "quiet"), [(_Terminal(), False), (_Terminal(), True), (io.StringIO(), False)])
def test_progress_is_shown_on_terminals_only(monkeypatch, stderr, quiet):
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    with ProgressLine(0.08, quiet) as progress:
        for stage, done, total in (("load", 5e8, 2e9), ("prefill", 0, 1), ("speak", 8, 90), ("speak", 16, 90)):
            progress(stage, int(done), int(total))
            progress._progress.refresh()
        assert progress.until_speech > 0
        progress("decode", 1, 1)
        progress._progress.refresh()
    shown = stderr.getvalue()
    if quiet or not stderr.isatty():
        assert shown == ""
        return
    for part in (
        "0.50 of 2.00 GB",
        "compiling",
        "speaking 0.6 s of audio",
        "1.3 s of audio, ",
        "x real time",
        "decoding",
    ):
        assert part in shown


def test_the_time_goes_on_when_a_stage_is_complete(monkeypatch):
    monkeypatch.setattr(sys, "stderr", _Terminal())
    with ProgressLine(0.08, quiet=False) as progress:
        (task,) = progress._progress.tasks
        progress("load", 2, 2)
        assert task.finished
        progress("prefill", 0, 1)
        assert not task.finished
        assert task.total is None


def test_an_interrupt_that_was_lost_is_noticed():
    """As where a library catches all that is raised in its callback."""
    # A shell that starts the tests in the background has them ignore interrupts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with ProgressLine(0.08, quiet=True) as progress:
        progress("speak", 8, 90)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            progress("speak", 16, 90)
        progress("speak", 24, 90)
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


@pytest.mark.parametrize(("status", "taken_apart"), [(0, True), (1, True), (130, False), (143, False)])
def test_a_signal_ends_without_taking_the_interpreter_apart(status, taken_apart):
    """What XLA compiles meanwhile would crash."""
    script = f"""
import atexit, sys
from qwen3_tts_jax.cli import main
atexit.register(print, "taken apart")
main.app = lambda **_: print("said") or sys.exit({status})
main.main()
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (status, "said\n" + "taken apart\n" * taken_apart)


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda *_: None])
def test_how_others_handle_an_interrupt_is_left_alone(handler):
    before = signal.signal(signal.SIGINT, handler)
    try:
        with ProgressLine(0.08, quiet=True):
            assert signal.getsignal(signal.SIGINT) is handler
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("closed", "arguments", "status", "message"),
    [
        ("2>&-", "say Hi. -o hi.wav", 0, ""),
        (">&-", "voices", 0, ""),
        ("<&-", "say -o hi.wav", 2, "error: standard input is empty: there is nothing to speak\n"),
    ],
)
def test_standard_streams_that_are_closed(tmp_path, closed, arguments, status, message):
    line = f"exec {sys.executable} -c 'from qwen3_tts_jax.cli.main import main; main()' {arguments} {closed}"
    result = subprocess.run(["sh", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (status, message)
    assert (tmp_path / "hi.wav").exists() is (closed == "2>&-")


def test_what_is_no_terminal_gets_a_line_now_and_then(capsys):
    """After 10 s, then every minute."""
    now = 100.0

    def speak(quiet: bool) -> str:
        nonlocal now
        progress = ProgressLine(0.05, quiet, lambda: now)
        for part, (frames, seconds) in enumerate([(20, 6), (40, 5), (60, 54), (80, 6)]):
            progress("prefill", part, 3)
            now += seconds
            progress("speak", frames, 90)
        return capsys.readouterr().err

    assert speak(quiet=False).splitlines() == [
        "speaking 2.0 s of audio, 0.20 x real time, part 1 of 3",
        "speaking 4.0 s of audio, 0.05 x real time, part 3 of 3",
    ]
    assert speak(quiet=True) == ""


# Other commands.


def test_voices_with_dialects(run, model, models, no_weights):
    lines = run("voices", "--model", model).stdout.splitlines()
    assert len(lines) == 9
    # As in the config: the first is the default.
    assert lines[:2] == ["serena", "vivian"]
    assert lines[-2:] == ["eric      sichuan_dialect", "dylan     beijing_dialect"]
    assert run("voices", "--model", "0.6B-CustomVoice", "--offline").stdout.splitlines() == lines
    assert_refused(run("voices", "--model", models / "0.6B-Base"), "base model", "clones")
    assert_refused(run("voices", "--model", models / "1.7B-VoiceDesign"), "voice_design", "describe")


def test_languages(run, model, models):
    lines = run("languages", "--model", model).stdout.splitlines()
    assert lines[:2] == ["auto", "chinese"]
    assert lines[-2:] == ["beijing_dialect", "sichuan_dialect"]
    assert len(lines) == 13
    assert len(run("languages", "--model", models / "0.6B-Base").stdout.splitlines()) == 11


def test_info_of_a_folder(run, models):
    result = run("info", models / "1.7B-Base")
    assert result.exit_code == 0, result.stderr
    rows = {line.split()[0]: line.split() for line in result.stdout.splitlines() if line}
    assert rows["voices"][1:3] == ["cloned", "from"]
    config = SMALL["1.7B-Base"]
    assert rows["talker"][2] == "bfloat16"
    assert rows["codec/decoder"][2] == "float32"
    assert f"1 of width {config.talker.transformer.width}, mlp 80, 6 heads (2 kv) of 16" in result.stdout
    stored = sum(
        (models / "1.7B-Base" / part / "model.safetensors").stat().st_size for part in ("", "speech_tokenizer")
    )
    assert float(rows["all"][2]) == pytest.approx(stored / 1e6, abs=0.1)
    assert "speaker_encoder" in rows


def test_info_of_a_published_model_that_is_not_here(run, tmp_path):
    result = run("info", "0.6B-CustomVoice", "--cache-dir", tmp_path, "--offline")
    assert result.exit_code == 0, result.stderr
    assert "is not on this machine" in result.stderr
    rows = {line.split()[0]: line.split() for line in result.stdout.splitlines() if line}
    parameters = {part: int(rows[part][1].replace(",", "")) for part in ("talker", "code_predictor")}
    assert sum(parameters.values()) == 905_788_672
    assert rows["instruct"] == ["instruct", "no"]


def test_convert_and_use_the_result(run, model, calls, caplog):
    result = run("convert", model, "converted", "--dtype", "float32")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("converted: ")
    assert result.stdout.count("\n") == 1
    assert result.stderr == ""
    assert caplog.records == []
    rows = {line.split()[0]: line.split() for line in run("info", "converted").stdout.splitlines() if line}
    # Tables that are only looked up stay as they are in the file.
    assert rows["talker"][2] == "bfloat16/float32"
    assert rows["codec/encoder"][2] == "float32"
    assert run("say", "Hi.", "-m", "converted").exit_code == 0
    assert calls[0]["folder"] == Path("converted")


def test_convert_keeps_the_dtype_and_refuses(run, model, monkeypatch):
    assert run("convert", model, "converted").exit_code == 0
    info = run("info", "converted").stdout
    assert "talker" in info
    assert "bfloat16/float32" not in info
    monkeypatch.setattr("qwen3_tts_jax.convert.load_params", None)  # refused before any weight is read
    assert_refused(run("convert", model, "converted"), "converted is there already")
    for command in (("convert", model, "/proc/x"), ("export", model, "-o", "/proc/x")):
        assert_refused(run(*command), "cannot write into the folder /proc: ")
    assert_refused(run("convert", "converted", "again"), "is converted already")
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["converted"]


@pytest.mark.parametrize("passed", [True, False])
def test_parity_shows_the_numbers_and_exits_by_them(run, model, monkeypatch, passed):
    asked = {}

    def run_parity(folder, texts, **options):
        asked.update(options, folder=folder, texts=texts)
        stage = Stage(
            name="talker logits", kind="logits", shape="1 × 3", max_abs=1e-3, max_rel=1e-4, cosine=1.0, agreement=1.0,
            first_difference=None, tolerance=Tolerance("relative", 1e-4), passed=passed, errors=(1e-4,),
        )  # fmt: skip
        return Report({"model": "m", "dtype": "float32"}, [stage])

    monkeypatch.setattr("qwen3_tts_jax.convert.verify.run_parity", run_parity)
    given = ("--text", "One.", "--text", "Two.", "--frames", "3", "--layers")
    for report, why in (("nowhere/r.md", "the folder nowhere does not exist"), (".", ". is a folder, not a file")):
        assert_refused(run("parity", model, *given, "--report", report), why)
    assert asked == {}
    result = run("parity", model, *given, "--report", "r.md")
    assert result.exit_code == (0 if passed else 1), result.stderr
    assert any("talker logits" in line and "1.00e-04" in line for line in result.stdout.splitlines())
    assert result.stdout.splitlines()[-1].startswith("passed" if passed else "FAILED")
    assert asked["texts"] == ["One.", "Two."]
    assert (asked["frames"], asked["dtype"], asked["layers"]) == (3, "float32", True)
    assert asked["text_mode"] == "all_at_once"
    assert ("FAILED" in Path("r.md").read_text(encoding="utf-8")) is not passed


# From end to end.


def test_the_sound_is_that_of_the_library(run, model):
    sampling = {"temperature": 0.7, "top_k": 9}
    tts = Qwen3TTS.from_pretrained(model)
    (samples,), rate = tts.generate_custom_voice("Hello.", "vivian", "english", seed=3, max_new_tokens=21, **sampling)
    arguments = ["-m", model, "-s", "vivian", "-l", "english", "--temperature", "0.7", "--top-k", "9"]
    result = run("say", *arguments, "--seed", "3", "--max-seconds", "0.01", "-o", "a.wav", text=b"Hello.\n")
    assert result.exit_code == 0, result.stderr
    written, written_rate = soundfile.read("a.wav", dtype="float32")
    assert written_rate == rate
    assert 0 < len(samples) <= 20 * 12
    np.testing.assert_allclose(written, samples, atol=2 / 32768)
    assert np.abs(samples).max() > 0.01
    assert run("say", "Hello.", *arguments, "--seed", "4", "--max-seconds", "0.01", "-o", "b.wav").exit_code == 0
    other = soundfile.read("b.wav")[0]
    common = min(len(other), len(written))
    assert np.abs(other[:common] - written[:common]).max() > 0.01


def test_a_refusal_of_thestart(model, tmp_path):
    process = start("say", "-", "-m", model, "-s", "nobody", stdin=subprocess.PIPE, cwd=tmp_path, text=True)
    stdout, stderr = process.communicate("Hello.")
    assert (process.returncode, stdout) == (2, "")
    assert stderr.startswith("error: unknown speaker 'nobody'")
    assert stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("buffered", [True, False])
def test_a_full_disk_behind_standard_output_is_one_line(buffered):
    with open("/dev/full", "wb") as full:
        process = start("voices", stdout=full, env=BUFFERED | ({} if buffered else {"PYTHONUNBUFFERED": "1"}))
        stderr = process.communicate(timeout=120)[1]
    assert process.returncode == 2
    assert stderr == b"error: cannot write to standard output: No space left on device\n"


def test_a_full_disk_is_named_with_the_file(run, model, calls, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", fail)
    result = run("say", "Hi.", "-m", model, "-s", "vivian", "-o", "x.wav")
    assert_refused(result, "error: x.wav: No space left on device\n")
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs pseudo-terminals")
def test_a_terminal_is_no_text(model, tmp_path):
    terminal, stdin = os.openpty()
    process = start("say", "-m", model, stdin=stdin, cwd=tmp_path, text=True)
    stderr = process.communicate(timeout=60)[1]
    os.close(stdin)
    os.close(terminal)
    assert process.returncode == 2
    assert stderr.startswith("error: no text: ")


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_an_interrupted_command_leaves_nothing(model, tmp_path):
    process = start("say", "Hello.", "-m", model, cwd=tmp_path, text=True)
    assert process.stderr.readline().startswith("voice: ")
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)
    assert (process.returncode, stdout) == (130, "")
    assert stderr.startswith("interrupted: speech.wav is not written; ")
    assert stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
