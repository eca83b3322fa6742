"""The command `batch`: what it refuses and reports, and jobs that are interrupted in every way."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from qwen3_tts_jax import Qwen3TTS, Request, hf_config, voice_file
from qwen3_tts_jax.batch import utterance_number
from qwen3_tts_jax.batch_folder import JobFolder
from qwen3_tts_jax.cli_batch import BatchLine
from qwen3_tts_jax.synthesis import Speech
from tests.command import assert_refused, run, start, write_model, write_recording

ROOT = Path(__file__).parents[1]
FRAME_SAMPLES = 12


class Fake:
    """In the place of the model, one whose speech is a function of the utterance's number."""

    params = None

    def __init__(self, folder, dtype, codec_dtype, progress, pause: float = 0.0):
        self.config, self.pause = hf_config.read_folder(folder), pause
        progress("load", 1, 1)

    def synthesize(self, requests, sampling, seed, *, batch_size, utterances, fill, progress):
        speeches = []
        for request, number in zip(requests, utterances, strict=True):
            time.sleep(self.pause)
            progress("speak", 1, 2)
            draws = np.random.default_rng(number)
            codes = draws.integers(0, 50, (draws.integers(2, 9), 16), np.int32)
            samples = draws.uniform(-1, 1, len(codes) * FRAME_SAMPLES).astype(np.float32)
            samples[0] = np.nan if "NaN" in request.text else 0
            speeches.append(Speech(samples, 24_000, codes, "length" if "long" in request.text else "stop"))
        return speeches


# What a process of its own runs: the command with the fake, a pause per item.
_PROGRAM = """
import sys
from functools import partial
from qwen3_tts_jax.cli import main
from qwen3_tts_jax.pipeline import Qwen3TTS
from tests.test_cli_batch import Fake
Qwen3TTS.from_pretrained = partial(Fake, pause=0.004)
main()
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in ("1.7B-CustomVoice", "1.7B-VoiceDesign", "1.7B-Base"):
        write_model(folder, name, tokenizer_folder, eos_boost=1.0)
    return folder


@pytest.fixture
def model(models: Path) -> Path:
    return models / "1.7B-CustomVoice"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Qwen3TTS, "from_pretrained", Fake)


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes it an error of the program to load weights."""

    def load(*_, **__):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(Qwen3TTS, "from_pretrained", load)


def write(*rows: dict | str, name: str = "m.jsonl") -> None:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    Path(name).write_text("".join(f"{line}\n" for line in lines))


def rows(count: int) -> list[dict]:
    return [{"id": f"i{i}", "text": f"Number {i}. " * (1 + i % 3)} for i in range(count)]


def index(out: str = "out") -> dict[str, dict]:
    found = [json.loads(line) for line in Path(out, "index.jsonl").read_text().splitlines()]
    assert len({record["id"] for record in found}) == len(found)
    return {record["id"]: record for record in found}


def contents(out: str) -> dict[str, bytes]:
    """The sound and the codes that a job has made, by name."""
    files = [path for path in Path(out).rglob("*") if path.suffix in (".wav", ".npy")]
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


# Help and refusals.


def test_help_has_examples_and_imports_no_jax():
    help_text = run("batch", "--help").stdout
    assert "\n    qwen3-tts-jax batch lines.jsonl -o out/\n" in help_text
    assert '"reference_text": "What I say."' in help_text
    program = (
        "import sys\nfrom qwen3_tts_jax.cli import app\napp(['batch', '--help'], standalone_mode=False)\n"
        "print(sorted({'jax', 'rich', 'soundfile', 'numpy'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["absent.jsonl", "-o", "out"], ["absent.jsonl: No such file"]),
        ([".", "-o", "out"], ["Is a directory"]),
        (["empty.jsonl", "-o", "out"], ["empty.jsonl is empty"]),
        (["m.jsonl", "-o", "no/out"], ["the folder no does not exist"]),
        (["m.jsonl", "-o", "m.jsonl"], ["m.jsonl is a file, not a folder"]),
        (["m.jsonl", "-o", "."], [". holds no job but other files, such as empty.jsonl"]),
        (["m.jsonl", "-o", "out", "--max-seconds", "0"], ["--max-seconds must be a number above 0"]),
        (["m.jsonl", "-o", "out", "--seed", "-1"], ["--seed must be 0"]),
        (["m.jsonl", "-o", "out", "--greedy", "--top-p", "0.5"], ["--greedy draws nothing and takes no --top-p"]),
        (["m.jsonl", "-o", "out", "--temperature", "0"], ["--temperature must be above 0"]),
        (["m.jsonl", "-o", "out", "--top-p", "1.5"], ["top_p"]),
        (["m.jsonl", "-o", "out", "--model", "no/such/folder"], ["no/such/folder", "neither a folder"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_refusals_before_loading(folder, model, no_weights, arguments, parts):
    write(*rows(2))
    Path("empty.jsonl").touch()
    before = sorted(folder.iterdir())
    assert_refused(run("batch", *arguments, *([] if "--model" in arguments else ["--model", model])), *parts)
    assert sorted(folder.iterdir()) == before


def test_all_bad_lines_are_listed_before_loading(folder, model, no_weights):
    write(*rows(1), {"id": "x"}, "{", *[{"text": "Hi.", "speaker": f"no{i}"} for i in range(30)])
    result = run("batch", "m.jsonl", "-o", "out", "-m", model)
    assert result.exit_code == 2
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert lines[0] == "error: line 2 (x): the text is missing"
    assert lines[1].startswith("error: line 3: is not JSON")
    assert lines[2].startswith("error: line 4: unknown speaker 'no0'; there are aiden")
    assert lines[19].startswith("error: line 21: ")
    assert lines[20] == "error: and 12 more"
    assert lines[21].startswith("error: 32 lines cannot be spoken: correct them; --skip-bad speaks the others")
    assert len(lines) == 22
    assert not Path("out").exists()
    # Before a download what the lines themselves tell.
    result = run("batch", "m.jsonl", "-o", "out", "--offline", "--cache-dir", folder)
    assert result.stderr.splitlines()[-1].startswith("error: 2 lines cannot be spoken")


def test_bad_lines_are_skipped_on_request(model, fake):
    write(*rows(2), {"id": "x"}, "{", {"id": "long", "text": "long"})
    result = run("batch", "m.jsonl", "-o", "out", "-m", model, "--skip-bad")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.startswith("skipped: line 3 (x): the text is missing\nskipped: line 4: is not JSON")
    assert result.stdout.startswith("out: 3 of 3 items, ")
    assert result.stdout.endswith(" s of audio; 1 cut at their limit; 2 lines skipped\n")
    found = index()
    assert found["x"] == {"id": "x", "line": 3, "status": "bad", "reason": "the text is missing"}
    assert (found[None]["line"], found[None]["status"]) == (4, "bad")
    assert found["long"]["finish_reason"] == "length"
    assert {name for name, record in found.items() if record["status"] == "done"} == {"i0", "i1", "long"}
    # Once they are corrected the job goes on with them.
    write(*rows(2), {"id": "x", "text": "Now."}, {"id": "y", "text": "New."}, {"id": "long", "text": "long"})
    result = run("batch", "m.jsonl", "-o", "out", "-m", model)
    assert "5 of 5 items" in result.stdout
    assert "3 were finished before" in result.stdout
    assert {record["status"] for record in index().values()} == {"done"}
    # A manifest of bad lines alone is no job.
    write("{")
    assert run("batch", "m.jsonl", "-o", "other", "-m", model, "--skip-bad").exit_code == 2


def test_an_item_that_fails_is_tried_again(model, fake):
    write(*rows(2), {"id": "bad", "text": "NaN"})
    for _ in range(2):
        result = run("batch", "m.jsonl", "-o", "out", "-m", model)
        assert result.exit_code == 1
        assert result.stderr == "failed: bad: the model made samples that are not finite\n"
        assert "2 of 3 items" in result.stdout
        assert "1 failed" in result.stdout
        assert index()["bad"] == {
            "id": "bad", "status": "failed", "reason": "the model made samples that are not finite"
        }  # fmt: skip
    write(*rows(2), {"id": "bad", "text": "Good."})
    assert run("batch", "m.jsonl", "-o", "out", "-m", model).exit_code == 0
    assert index()["bad"]["status"] == "done"


def test_other_settings_are_refused_by_name(model, models, fake):
    write(*rows(2))
    command = ["batch", "m.jsonl", "-o", "out", "-m", model]
    assert run(*command).exit_code == 0
    before = contents("out")
    for options, parts in (
        (["--seed", "1"], ["seed was 0, is 1"]),
        (["--top-k", "7"], ["sampling.talker.top_k was 50, is 7"]),
        (["--greedy"], ["sampling.talker.do_sample was true, is false"]),
        (["--dtype", "bfloat16"], ['dtype was "float32", is "bfloat16"']),
        (["--batch-size", "3"], ["batch size was 8, is 3"]),
        (["--format", "flac"], ['format was "wav", is "flac"']),
        (["--max-seconds", "0.02"], ["2 finished items of out changed since: i1: max_frames was", "is 40"]),
    ):
        assert_refused(run(*command, *options), *parts)
    config = json.loads((model / "generation_config.json").read_text())
    other = models / "other"
    if not other.exists():
        write_copy(model, other)
    (other / "generation_config.json").write_text(json.dumps(config) + "\n\n")
    assert_refused(run(*command[:-1], other), "model.digest was")
    write({"id": "i0", "text": "Other."}, rows(2)[1])
    assert_refused(run(*command), "1 finished item of out changed since: i0: text was", 'is "Other."')
    assert contents("out") == before
    write(*rows(3))
    assert run(*command).exit_code == 0
    assert contents("out").items() > before.items()


def write_copy(model: Path, other: Path) -> None:
    for path in model.rglob("*"):
        if path.is_file():
            copy = other / path.relative_to(model)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())


def test_two_jobs_in_one_folder(model, no_weights):
    write(*rows(1))
    with JobFolder(Path("out")):
        result = run("batch", "m.jsonl", "-o", "out", "-m", model)
        assert_refused(result, f"another job is at work in out (process {os.getpid()})")


def test_a_full_disk_ends_the_job_with_one_line(model, fake, monkeypatch):
    write(*rows(5))
    add = JobFolder._append

    def append(self, record):
        if len(self.finished) == 2:
            raise OSError(28, "No space left on device")
        add(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(JobFolder, "_append", append)
        result = run("batch", "m.jsonl", "-o", "out", "-m", model)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert "No space left on device; 2 of 5 items are finished, and the same command goes on" in result.stderr
    assert len(index()) == 2
    assert run("batch", "m.jsonl", "-o", "out", "-m", model).exit_code == 0
    assert len(index()) == 5


# Interruptions.


def start_fake(model: Path, out: str) -> subprocess.Popen:
    options = ["batch", Path("m.jsonl").absolute(), "-o", Path(out).absolute(), "-m", model, "--save-codes"]
    command = [sys.executable, "-c", _PROGRAM, *map(str, options), "--batch-size", "5"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for_lines(process: subprocess.Popen, count: int, out: str = "out") -> None:
    path = Path(out, "index.jsonl")
    while process.poll() is None and not (path.exists() and path.read_bytes().count(b"\n") >= count):
        time.sleep(0.001)


def test_a_job_that_is_killed_again_and_again(model, fake):
    count = 60
    write(*rows(count))
    moments, kills = random.Random(3), 0
    for _ in range(5):
        process = start_fake(model, "out")
        done = Path("out/index.jsonl").read_bytes().count(b"\n") if Path("out/index.jsonl").exists() else 0
        wait_for_lines(process, done + moments.randrange(1, 12))
        time.sleep(moments.random() * 0.01)
        kills += process.poll() is None
        process.kill()
        process.communicate()
        finished = [json.loads(line)["id"] for line in Path("out/index.jsonl").read_bytes().split(b"\n")[:-1]]
        assert len(set(finished)) == len(finished) > done
        assert {f"{name}.wav" for name in finished} <= contents("out").keys()
    assert kills >= 3
    assert len(finished) < count
    options = ["m.jsonl", "-m", model, "--save-codes", "--batch-size", "5"]
    resumed = run("batch", *options, "-o", "out")
    assert f"{count} of {count} items" in resumed.stdout
    before = int(resumed.stdout.split(" were finished before")[0].split("; ")[-1])
    assert before == len(finished)
    assert "were finished before" not in run("batch", *options, "-o", "whole").stdout
    assert contents("out") == contents("whole")
    assert index("out") == index("whole")
    assert len(contents("out")) == 2 * count


def test_an_interrupt_keeps_what_is_finished(model):
    write(*rows(200))
    process = start_fake(model, "out")
    wait_for_lines(process, 3)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate()
    assert process.returncode == 130
    assert stdout == b""
    assert b"Traceback" not in stderr
    finished = len(index())
    assert 3 <= finished < 200
    assert stderr.decode() == (
        f"interrupted; {finished} of 200 items are finished, and the same command goes on from there\n"
    )


def test_the_speech_of_a_killed_job_is_that_of_a_whole_one(model):
    """With the true model, and the rest of the manifest in another order."""
    write(*rows(7))
    options = ["-m", model, "--batch-size", "2", "--save-codes"]
    process = start("batch", "m.jsonl", "-o", "out", *options, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_lines(process, 1)
    process.kill()
    process.wait()
    before = contents("out")
    finished = len(index())
    assert 1 <= finished < 7
    write(*rows(7)[::-1])
    result = run("batch", "m.jsonl", "-o", "out", *options)
    assert result.exit_code == 0, (result.exception, result.stderr)
    assert f"{finished} were finished before" in result.stdout
    assert run("batch", "m.jsonl", "-o", "whole", *options).exit_code == 0
    whole = contents("whole")
    assert contents("out") == whole
    assert before.items() <= whole.items()
    assert len(whole) == 14
    assert index("out") == index("whole")


# The kinds of models.


def test_voice_design_from_csv(models):
    Path("m.csv").write_text('id,text,instruct,seed\na,"Hello, you.",an old man,4\nb,Bye.,a girl,\n')
    model = models / "1.7B-VoiceDesign"
    options = ["--format", "flac", "--max-seconds", "0.02", "--seed", "2", "--save-codes", "--greedy"]
    result = run("batch", "m.csv", "-o", "out", "-m", model, *options)
    assert result.exit_code == 0, (result.exception, result.stderr)
    assert sorted(path.name for path in Path("out").glob("*.flac")) == ["a.flac", "b.flac"]
    assert [(name, index()[name]["seed"]) for name in ("a", "b")] == [("a", 4), ("b", 2)]
    tts = Qwen3TTS.from_pretrained(model)
    wavs, _ = tts.generate_voice_design(
        ["Hello, you.", "Bye."], ["an old man", "a girl"], do_sample=False, subtalker_dosample=False, max_new_tokens=21
    )
    assert [round(index()[name]["seconds"] * 24_000) for name in ("a", "b")] == [len(wav) for wav in wavs]


def test_cloned_voices(models):
    write_recording(Path("me.wav"))
    model = models / "1.7B-Base"
    tts = Qwen3TTS.from_pretrained(model)
    (voice,) = tts.create_voice_clone_prompt("me.wav", "one two")
    Path("lists").mkdir()
    voice_file.save(voice, "lists/me.safetensors")
    common = {"text": "Hello.", "max_seconds": 0.1}
    write(
        {"id": "file", "voice": "me.safetensors", **common},
        {"id": "recording", "reference": "../me.wav", "reference_text": "one two", **common},
        {"id": "alone", "reference": "../me.wav", "x_vector_only": True, **common},
        name="lists/m.jsonl",
    )
    result = run("batch", "lists/m.jsonl", "-o", "out", "-m", model, "--save-codes", "--batch-size", "1")
    assert result.exit_code == 0, (result.exception, result.stderr)
    request = Request("Hello.", text_mode="as_it_comes", max_frames=10, voice=voice)
    for name in ("file", "recording"):
        (speech,) = tts.synthesize([request], utterances=[utterance_number(0, name)])
        np.testing.assert_array_equal(np.load(f"out/codes/{name}.npy"), speech.codes)
    assert index()["alone"]["frames"] > 0
    voice_file.save(voice, "lists/me.safetensors", name="the same voice")
    assert run("batch", "lists/m.jsonl", "-o", "out", "-m", model, "--save-codes", "--batch-size", "1").exit_code == 0


# Progress.


def test_the_line_of_progress(monkeypatch):
    class Task:
        text_tokens = 10

    now = [100.0]
    line = BatchLine([Task] * 8, [Task] * 6, quiet=False, clock=lambda: now[0])
    line("load", 1, 2)
    assert line.text() == "2 of 8 items, 0.0 s of audio"
    line("prefill", 0, 2)
    now[0] += 20.0
    line.done(Task, 3.0)
    line.done(Task, 2.0)
    assert line.text() == "4 of 8 items, 5.0 s of audio, 0.25 x real time, 0:00:40 left"
    now[0] += 4000.0
    line.done(Task, 0.0)
    assert line.text() == "5 of 8 items, 5.0 s of audio, 0.00 x real time, 1:07:00 left"
