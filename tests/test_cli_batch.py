"""The command `batch`: what it refuses and reports, and what it makes with the kinds of models."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from qwen3_tts_jax import Qwen3TTS, Request, voice_file
from qwen3_tts_jax.batch.speak import utterance_number
from qwen3_tts_jax.cli import batch_job
from qwen3_tts_jax.cli.progress import BatchLine, PlanLine
from tests.command import assert_refused, of_devices, run, start, write_models, write_recording
from tests.jobs import contents, index, rows, write
from tests.stand_in import StandIn

pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    return write_models(
        tmp_path_factory.mktemp("models"),
        tokenizer_folder,
        "1.7B-CustomVoice",
        "1.7B-VoiceDesign",
        "1.7B-Base",
        eos_boost=1.0,
    )


@pytest.fixture
def model(models: Path) -> Path:
    return models / "1.7B-CustomVoice"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Qwen3TTS, "from_pretrained", StandIn)


# Help and refusals.


def test_help_has_examples_and_imports_no_jax():
    help_text = run("batch", "--help").stdout
    assert "\n    qwen3-tts-jax batch lines.jsonl -o out/\n" in help_text
    assert '"reference_text": "What I say."' in help_text
    assert "for example by a full disk or a lack of memory, 2 when it was refused, 130 when" in " ".join(
        help_text.split()
    )
    program = (
        "import sys\nfrom qwen3_tts_jax.cli.main import app\napp(['batch', '--help'], standalone_mode=False)\n"
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
        (["m.jsonl", "-o", "out", "--shard-items", "9"], ["--shard-items is for --format parquet"]),
        (["m.jsonl", "-o", "out", "--workers", "2"], ["--workers is for --engine ray"]),
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


@pytest.mark.parametrize(("option", "package"), [("--format=parquet", "pyarrow"), ("--engine=ray", "ray")])
def test_packages_that_are_not_there(model, no_weights, monkeypatch, option, package):
    write(*rows(2))
    monkeypatch.setattr(batch_job, "find_spec", lambda name: None if name == package else name)
    extra = option.rpartition("=")[2]
    result = run("batch", "m.jsonl", "-o", "out", "-m", model, option)
    assert_refused(result, f'this needs {package}: in the clone of this package, pip install -e ".[{extra}]"\n')


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
    result = run("batch", "m.jsonl", "-o", "out", "-m", "0.6B-CustomVoice", "--offline", "--cache-dir", folder)
    assert result.stderr.splitlines()[-1].startswith("error: 2 lines cannot be spoken")


def test_bad_lines_are_skipped_on_request(model, fake):
    write(*rows(2), {"id": "x"}, "{", {"id": "long", "text": "length"})
    result = run("batch", "m.jsonl", "-o", "out", "-m", model, "--skip-bad")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.startswith("skipped: line 3 (x): the text is missing\nskipped: line 4: is not JSON")
    assert result.stdout.startswith("out: 3 of 3 items, ")
    facts = r" s of audio; 1 cut at their limit; 2 lines skipped; \d+\.\d s made in 0:00:\d\d, \d+\.\d\d x real time\n"
    assert re.search(f"{facts}$", result.stdout), result.stdout
    found = index()
    assert found["x"] == {"id": "x", "line": 3, "status": "bad", "reason": "the text is missing"}
    assert (found[None]["line"], found[None]["status"]) == (4, "bad")
    assert found["long"]["finish_reason"] == "length"
    assert {name for name, record in found.items() if record["status"] == "done"} == {"i0", "i1", "long"}
    # Once they are corrected the job goes on with them.
    write(*rows(2), {"id": "x", "text": "Now."}, {"id": "y", "text": "New."}, {"id": "long", "text": "length"})
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
        (["--dtype", "bfloat16"], ['dtype.talker was "float32", is "bfloat16"', "dtype.code_predictor was"]),
        (["--batch-size", "3"], ["batch size was 8, is 3"]),
        (["--format", "flac"], ['format was "wav", is "flac"']),
        (["--split", "1"], ["2 finished items of out changed since: i1: ", "split was null, is 1"]),
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
    # Of texts that are shorter than that.
    assert run(*command, "--split", "100").exit_code == 0
    assert contents("out").items() > before.items()


def test_a_job_stays_on_its_platform(model, fake, monkeypatch):
    write(*rows(2))
    command = ["batch", "m.jsonl", "-o", "out", "-m", model, "--dtype", "float32"]
    assert run(*command).exit_code == 0
    monkeypatch.setattr(jax, "local_devices", lambda backend: [SimpleNamespace(platform="gpu")])
    assert_refused(run(*command), 'out holds a job of other settings: platform was "cpu", is "gpu"; use the same')


def test_a_job_is_of_the_default_device(model, fake, monkeypatch):
    write(*rows(2))
    cpu, gpu = jax.local_devices()[0], SimpleNamespace(platform="gpu")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda backend=None: [cpu] if backend == "cpu" else [gpu, gpu])
    # As JAX_DEFAULT_DEVICE=cpu does.
    with jax.default_device("cpu"):
        assert_refused(
            run("batch", "m.jsonl", "-o", "out", "-m", model, "--devices", "2"), "--devices 2: this machine has 1"
        )
        assert run("batch", "m.jsonl", "-o", "out", "-m", model).exit_code == 0
    settings = json.loads(Path("out/job.json").read_text())["settings"]
    assert (settings["platform"], settings["devices"], settings["dtype"]["talker"]) == ("cpu", 1, "float32")


def write_copy(model: Path, other: Path) -> None:
    for path in model.rglob("*"):
        if path.is_file():
            copy = other / path.relative_to(model)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())


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
    command = ["batch", "lists/m.jsonl", "-o", "out", "-m", model, "--save-codes", "--batch-size", "1"]
    assert run(*command).exit_code == 0
    # What is finished needs its recording no more, as long as no other took its place.
    Path("me.wav").unlink()
    with Path("lists/m.jsonl").open("a") as manifest:
        manifest.write(json.dumps({"id": "late", "voice": "me.safetensors", **common}) + "\n")
    result = run(*command)
    assert (result.exit_code, "4 of 4 items" in result.stdout) == (0, True), (result.stdout, result.stderr)
    assert "3 were finished before" in result.stdout
    write_recording(Path("me.wav"), seed=1)
    assert_refused(run(*command), "2 finished items of out changed since: recording: voice")


# Progress.


def test_the_line_of_progress(monkeypatch):
    class Task:
        text_tokens = 10

    now = [100.0]
    line = BatchLine(8, [Task] * 6, quiet=False, clock=lambda: now[0])
    line("load", 1, 2)
    assert line.text() == "2 of 8 items, 0.0 s of audio"
    assert line.pace() is None
    line("prefill", 0, 2)
    now[0] += 20.0
    line.done(Task, 3.0)
    line.done(Task, 2.0)
    assert line.text() == "4 of 8 items, 5.0 s of audio, 0.25 x real time, 0:00:40 left"
    now[0] += 4000.0
    line.done(Task, 0.0)
    assert line.text() == "5 of 8 items, 5.0 s of audio, 0.00 x real time, 1:07:00 left"
    assert line.pace() == "5.0 s made in 1:07:00, 0.00 x real time"


@pytest.mark.parametrize("quiet", [False, True])
def test_a_log_gets_a_line_a_minute(capsys, quiet):
    class Task:
        text_tokens = 10

    now = [0.0]
    with BatchLine(400, [Task] * 400, quiet=quiet, clock=lambda: now[0]) as line:
        line("prefill", 0, 400)
        for _ in range(140):
            now[0] += 1.0
            line.done(Task, 2.0)
    expected = [
        "10 of 400 items, 20.0 s of audio, 2.00 x real time, 0:06:30 left",
        "70 of 400 items, 140.0 s of audio, 2.00 x real time, 0:05:30 left",
        "130 of 400 items, 260.0 s of audio, 2.00 x real time, 0:04:30 left",
    ]
    assert capsys.readouterr().err.splitlines() == ([] if quiet else expected)


def test_planning_is_logged_too(capsys):
    now = [0.0]
    with PlanLine(False, logged=True, clock=lambda: now[0]) as line:
        for number in range(1, 11):
            line(number, 10)
            now[0] += 4.0
    assert capsys.readouterr().err == "checking item 4 of 10\n"


def test_a_job_in_a_log(model, monkeypatch):
    monkeypatch.setattr("qwen3_tts_jax.cli.progress._FIRST_LOG", 0.0)
    monkeypatch.setattr(Qwen3TTS, "from_pretrained", StandIn)
    write(*rows(2))
    log = run("batch", "m.jsonl", "-o", "out", "-m", model).stderr.splitlines()
    assert log == ["checking item 1 of 2", "loading 0.00 of 0.00 GB"]


# Several devices.


def test_devices_share_each_batch(model):
    write(*rows(5))
    job = ["batch", "m.jsonl", "-m", model, "--save-codes", "--batch-size", "3", "--max-seconds", "0.003"]
    process = start(*job, "-o", "two", env=of_devices(2))
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert stdout.startswith(b"two: 5 of 5 items")
    assert json.loads(Path("two/job.json").read_text())["settings"]["devices"] == 2
    assert run(*job, "-o", "one").exit_code == 0
    for name, content in contents("one").items():
        if name.endswith(".npy"):
            assert content == contents("two")[name]
    assert_refused(run(*job, "-o", "two"), "other settings: devices was 2, is 1")
    assert_refused(run(*job, "-o", "new", "--devices", "2"), "--devices 2: this machine has 1")
