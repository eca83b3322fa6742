"""The command `train sft`: from recordings to a model that speaks, and what it refuses."""

import json
import shutil
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from qwen3_tts_jax import hf_config
from qwen3_tts_jax.cli.train import train_app
from qwen3_tts_jax.cli.train_common import tensorboard_writer
from qwen3_tts_jax.packaged import MINI, local_folder
from qwen3_tts_jax.pipeline import Qwen3TTS
from qwen3_tts_jax.prompt import Request
from qwen3_tts_jax.text.tokenizer import TextTokenizer
from qwen3_tts_jax.train import examples, lines
from qwen3_tts_jax.train.lines import DataError, Line, add_speakers, read_lines
from qwen3_tts_jax.train.sft import SftConfig, digest_of, prepare
from qwen3_tts_jax.utterances import spoken_as
from tests.command import assert_refused, start, write_model, write_recording
from tests.command import run as run_command
from tests.shapes import SMALL
from tests.train_model import random_codes


def run(*arguments):
    return CliRunner().invoke(train_app, ["sft", *map(str, arguments)])


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizer_folder):
    return write_model(tmp_path_factory.mktemp("models"), "1.7B-Base", tokenizer_folder, dtype="float32")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    for i in range(3):
        write_recording(folder / f"{i}.wav", 0.6 + 0.1 * i, seed=i)
    return folder


def write_data(folder, *rows, name="data.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ROWS = (
    {"audio": "0.wav", "text": "Good morning.", "speaker": "Zoe", "language": "english"},
    {"audio": "1.wav", "text": "Guten Tag!", "speaker": "Berta", "language": "German", "ref_audio": "0.wav"},
    {"audio": "2.wav", "text": "Again.", "speaker": "zoe", "instruct": "whispering"},
)
SHORT = (
    "--steps",
    3,
    "--log-every",
    1,
    "--save-every",
    2,
    "--export-dtype",
    "float32",
    "--no-remat",
)


@pytest.mark.parametrize(
    "options",
    [("--batch-size", 2, "--sample-every", 3), ("--lora", 3, "--batch-seconds", 1.6, "--buckets", 1)],
    ids=["full", "lora"],
)
def test_a_base_model_learns_speakers(options, base, recordings, tmp_path):
    data = write_data(recordings, *ROWS)
    output = tmp_path / "run"
    result = run(data, "-o", output, "-m", base, *SHORT, *options, "--learning-rate", 1e-3)
    assert result.exit_code == 0, (result.exception, result.stderr)
    assert "encoded 5 of 5 recordings" in result.stderr
    assert "warning" not in result.stderr
    log = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2, 3]
    assert all(len(line["codes"]) == 5 and line["seconds"] + line.get("compiling", 0) > 0 for line in log)
    assert f"step 3 of 3: loss {log[2]['loss']:.4f} (code 0 " in result.stderr
    lora = "--lora" in options
    assert (output / "samples" / "step-000003.wav").exists() != lora
    assert (output / "lora.safetensors").exists() == lora

    model, before = Qwen3TTS.from_pretrained(output / "model"), Qwen3TTS.from_pretrained(base)
    assert model.config.model_type == "custom_voice"
    assert model.get_supported_speakers() == ["berta", "zoe"]
    assert model.config.supports_instruct
    rows = [model.config.prompt.speakers[name] for name in ("zoe", "berta")]
    table, old = (np.asarray(each.params["talker"]["codec_embedding"]["embedding"]) for each in (model, before))
    voices = before.create_voice_clone_prompt([str(recordings / f"{i}.wav") for i in (0, 0, 2)], None, True)
    zoe = (voices[0].x_vector + voices[2].x_vector) / 2
    assert np.linalg.norm(table[rows[0]] - zoe) < 0.05 * np.linalg.norm(zoe)
    assert np.linalg.norm(table[rows[1]] - voices[1].x_vector) < 0.05 * np.linalg.norm(voices[1].x_vector)
    assert not np.array_equal(table[rows[0]], zoe.astype(np.float32))
    others = np.setdiff1d(np.arange(len(table)), rows)
    assert np.array_equal(table[others], old[others]) == lora
    if not lora:
        speech = model.synthesize([Request("Hello.", speaker="Zoe", max_frames=3)])[0]
        assert len(speech.samples) > 0
        assert np.isfinite(speech.samples).all()

    else:
        check_merged(output, base, tmp_path / "merged")

    again = run(data, "-o", output, "-m", base, *SHORT)
    assert_refused(again, "model is there already")
    made = load_file(output / "model" / "model.safetensors")
    shutil.rmtree(output / "model")
    other = write_model(tmp_path, "1.7B-Base", base, seed=1)
    for weights, differs in (({}, "encoders"), (load_file(base / "model.safetensors"), "base")):
        if weights:
            shutil.copytree(base / "speech_tokenizer", other / "speech_tokenizer", dirs_exist_ok=True)
            talker = {name: -tensor for name, tensor in weights.items() if name.startswith("talker.")}
            save_file(weights | talker, other / "model.safetensors")
        again = run(data, "-o", output, "-m", other, *SHORT, *options, "--learning-rate", 1e-3, "--quiet")
        assert_refused(again, f"00000003 is of another run: {differs} ")
    check_exported(output, made, other, tmp_path / "exported")


def check_exported(run_folder, made, other, exported):
    """What was refused changed nothing of the run: its last state is still `made`. On `other` weights it is nothing."""
    result = run_command("export", run_folder, "-o", exported)
    assert result.exit_code == 0, (result.exception, result.stderr)
    found = load_file(exported / "model.safetensors")
    assert found.keys() == made.keys()
    for name, tensor in made.items():
        np.testing.assert_allclose(found[name], tensor, atol=1e-6, err_msg=name)
    job = json.loads((run_folder / "job.json").read_text())
    (run_folder / "job.json").write_text(json.dumps(job | {"source": str(other)}))
    result = run_command("export", run_folder, "-o", exported.with_name("none"))
    assert_refused(result, f"{other} does not hold the weights that {run_folder} started from")
    assert not exported.with_name("none").exists()


def check_merged(output, base, merged):
    """`train merge` makes of base and adapters what the run made, and refuses another base."""

    def merge(model, lora=output / "lora.safetensors", *options):
        arguments = ["merge", lora, "-m", model, "-o", merged, *options]
        return CliRunner().invoke(train_app, list(map(str, arguments)))

    result = merge(base, output / "lora.safetensors", "--dtype", "float32")
    assert result.exit_code == 0, (result.exception, result.stderr)
    assert "speakers zoe, berta" in result.stdout
    assert (output / "lora.safetensors").stat().st_mode == (output / "job.json").stat().st_mode
    made, ours = (load_file(folder / "model.safetensors") for folder in (output / "model", merged))
    assert made.keys() == ours.keys()
    for name, tensor in made.items():
        np.testing.assert_allclose(ours[name], tensor, atol=1e-6, err_msg=name)
    made, ours = (hf_config.read_folder(folder) for folder in (output / "model", merged))
    assert ours == made
    # By which `say` chooses where no speaker is named.
    assert list(ours.prompt.speakers) == list(made.prompt.speakers)
    assert_refused(merge(base), "is there already")
    shutil.rmtree(merged)
    assert_refused(merge(output / "model"), "trained on another base model")
    assert_refused(merge(base, output / "none"), "none is not there")
    assert_refused(merge(base, base / "model.safetensors"), "holds no LoRA")
    assert not merged.exists()


def test_a_base_model_stays_one_without_speakers(base, recordings, tmp_path):
    data = write_data(
        recordings,
        {"audio": "0.wav", "text": "Good morning.", "ref_audio": "1.wav", "ref_text": "What one says."},
        {"audio": "2.wav", "text": "Yes.", "ref_audio": "1.wav"},
        name="clone.jsonl",
    )
    cache, options = tmp_path / "cache", (*SHORT, "--batch-size", 2, "--steps", 1)
    result = run(data, "-o", tmp_path / "one", "-m", base, *options, "--cache", cache)
    assert result.exit_code == 0, (result.exception, result.stderr)
    assert "encoded 4 of 4 recordings" in result.stderr
    converted = tmp_path / "converted"
    assert run_command("convert", base, converted).exit_code == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(examples, "encode_recordings", None)
        patch.setattr(examples, "make_voices", None)
        patch.setattr(examples, "check_folder", None)
        result = run(data, "-o", tmp_path / "two", "-m", converted, *options, "--cache", cache)
    assert result.exit_code == 0, (result.exception, result.stderr)
    assert "encoded" not in result.stderr
    assert hf_config.read_folder(tmp_path / "one" / "model").model_type == "base"
    saved = json.loads((tmp_path / "one" / "checkpoints" / "00000001" / "run.json").read_text())
    assert saved["batch"] == [2, 1, ["all_at_once", "as_it_comes"], 0]
    one, two = (Qwen3TTS.from_pretrained(tmp_path / name / "model").params for name in ("one", "two"))
    np.testing.assert_array_equal(one["talker"]["codec_head"]["weight"], two["talker"]["codec_head"]["weight"])
    assert "speaker_encoder" in one
    assert not (tmp_path / "two" / "model" / "qwen3_tts_jax.json").exists()


def test_a_signal_while_recordings_are_encoded(base, recordings, tmp_path, monkeypatch):
    """It ends the command once those are kept that are encoded together; the same command goes on."""
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        pytest.skip("another handles SIGTERM")
    data, output = write_data(recordings, *ROWS), tmp_path / "run"
    encoded, stops = [], {"read": 1, "encode": 1}

    def passing(name, value):
        stops[name] -= 1
        if not stops[name]:
            signal.raise_signal(signal.SIGTERM)
        return value

    def encode(params, config, recordings):
        encoded.extend(recordings)
        return passing("encode", [random_codes((4,))] * len(recordings))

    check = examples.check_recording
    monkeypatch.setattr(examples, "_TOGETHER", 2)
    monkeypatch.setattr(examples, "encode_recordings", encode)
    monkeypatch.setattr(examples, "check_recording", lambda *told: passing("read", check(*told)))
    monkeypatch.setattr(examples, "make_voices", None)
    for line in ("before recordings were encoded", "after 2 of 5 recordings, which are kept"):
        result = run(data, "-o", output, "-m", base, *SHORT, "--quiet")
        assert (result.exit_code, result.stderr) == (143, f"stopped {line}; the same command goes on\n")
    assert len(encoded) == 2
    assert len(list((output / "cache").iterdir())) == 2
    stops["encode"] = 1
    result = run(data, "-o", output, "-m", base, *SHORT, "--quiet")
    assert result.stderr == "stopped after 1 of 3 recordings, which are kept; the same command goes on\n"
    assert len(encoded) == 3


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_an_interrupt_while_the_encoder_is_compiled(base, recordings, tmp_path):
    """XLA does that in a thread, which must not outlive the interpreter."""
    output = tmp_path / "run"
    process = start("train", "sft", write_data(recordings, *ROWS), "-o", output, "-m", base, text=True)
    while process.poll() is None and not (output / "cache").exists():
        time.sleep(0.01)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)
    assert (process.returncode, stdout) == (130, ""), stderr
    assert stderr.endswith("; the same command goes on\n")


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({"text": "Hi."}, ["data.jsonl line 1 has no audio"]),
        ({"audio": "0.wav"}, ["line 1 has no text"]),
        ({"audio": "9.wav", "text": "Hi."}, ["line 1: audio", "9.wav is not there"]),
        ({"audio": "0.wav", "text": "... !"}, ["line 1: text says nothing"]),
        ({"audio": "0.wav", "text": ""}, ["text must be a text that is not empty"]),
        ({"audio": "0.wav", "text": "Hi.", "language": "klingon"}, ["unknown language 'klingon'", "russian"]),
        ({"audio": "0.wav", "text": "Hi.", "lang": "english"}, ["unknown field 'lang'", "language"]),
        ({"audio": "0.wav", "text": "Hi.", "ref_text": "Who?"}, ["ref_text but no ref_audio"]),
        ({"audio": "0.wav", "text": "Hi.", "instruct": "loud"}, ["has an instruct", "does not read"]),
        ({"audio": "data.jsonl", "text": "Hi."}, ["line 1: audio", "is no sound file"]),
        ([1], ["line 1 is not a JSON object"]),
    ],
)
def test_refused_lines(row, parts, base, recordings, tmp_path):
    result = run(write_data(recordings, row), "-o", tmp_path / "run", "-m", base)
    assert_refused(result, *parts)
    assert not (tmp_path / "run").exists()


def test_refused_before_anything_is_encoded(base, recordings, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    soundfile.write(recordings / "silent.wav", np.zeros(16_000, np.float32), 16_000)
    data = write_data(recordings, ROWS[0], {"audio": "silent.wav", "text": "Hm.", "speaker": "anna"})
    result = run(data, "-o", tmp_path / "run", "-m", base, *SHORT)
    assert_refused(result, "data.jsonl line 2: audio", "is silent")
    assert not list((tmp_path / "run").glob("**/*.npy"))

    some = write_data(recordings, ROWS[0], {"audio": "1.wav", "text": "Hm."})
    assert_refused(run(some, "-o", tmp_path / "run", "-m", base), "line 2 has no speaker")
    two = write_data(recordings, {"text": "a"}, {"audio": "1.wav"})
    assert_refused(run(two, "-o", tmp_path / "run", "-m", base), "line 1 has no audio; data.jsonl line 2 has no text")
    assert_refused(run(tmp_path / "none.jsonl", "-o", tmp_path / "run", "-m", base), "none.jsonl cannot be read")
    assert_refused(run(write_data(recordings), "-o", tmp_path / "run", "-m", base), "data.jsonl has no lines")
    sound = recordings / "0.wav"
    assert_refused(run(sound, "-o", tmp_path / "run", "-m", base), "0.wav holds no JSON lines: it is not UTF-8 text")
    assert_refused(run(data, "-o", sound, "-m", base), "0.wav is a file, not a folder")
    assert_refused(run(data, "-o", sound / "run", "-m", base), "0.wav is a file, not a folder")
    for options, part in (
        (("--warmup", 9, "--steps", 9), "--warmup must be 0 … 8, got 9"),
        (("--lora", 2, "--freeze", "talker"), "--freeze"),
        (("--freeze", "taker"), "nothing to freeze in 'taker'"),
        (("--lora", 2, "--lora-modules", "mpl"), "no weight of a transformer lies in 'mpl'"),
        (("--patience", 2), "--patience does nothing without --validation"),
        (("--lora-alpha", 2), "--lora-alpha does nothing without --lora"),
        (("--lora-modules", "mlp"), "--lora-modules does nothing without --lora"),
        (("--buckets", 2), "--buckets does nothing without --batch-seconds"),
        (("--batch-size", 8, "--batch-seconds", 9), "--batch-size does nothing with --batch-seconds"),
        (("--tensorboard",), "tensorboardX"),
        (("--cache", sound / "cache"), "0.wav is a file, not a folder"),
        (("--seed", -1), "--seed must be 0 … 2147483647, got -1"),
        (("--seed", 2**31), "--seed must be 0 … 2147483647, got 2147483648"),
    ):
        assert_refused(run(write_data(recordings, *ROWS), "-o", tmp_path / "other", "-m", base, *options), part)
    assert not (tmp_path / "other").exists()


def test_what_is_refused_leaves_nothing_for_tensorboard(base, recordings, tmp_path, monkeypatch):
    writers = SimpleNamespace(SummaryWriter=lambda folder: Path(folder).mkdir(parents=True))
    monkeypatch.setitem(sys.modules, "tensorboardX", writers)
    data = write_data(recordings, *ROWS)
    result = run(data, "-o", tmp_path / "run", "-m", base, "--tensorboard", "--freeze", "taker")
    assert_refused(result, "nothing to freeze")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("ends", ["well", "badly"])
def test_what_is_written_for_tensorboard_is_closed(ends, tmp_path, monkeypatch):
    told = []
    writer = SimpleNamespace(
        add_scalar=lambda *scalar: told.append(scalar), flush=lambda: None, close=lambda: told.append("closed")
    )
    monkeypatch.setitem(sys.modules, "tensorboardX", SimpleNamespace(SummaryWriter=lambda folder: writer))
    with suppress(DataError), tensorboard_writer(tmp_path, True) as write:
        write({"step": 2, "codes": [0.5, 0.25]})
        if ends == "badly":
            raise DataError("a recording that is silent")
    assert told == [("step", 2, 2), ("codes/0", 0.5, 2), ("codes/1", 0.25, 2), "closed"]
    with tensorboard_writer(tmp_path, False) as write:
        assert write is None


def test_a_model_that_goes_on_cloning_reads_texts_as_clone_does(base, recordings, tmp_path):
    """And all at once, too; one with speakers only that, as `say` does."""
    cloning = write_data(recordings, {"audio": "0.wav", "text": "Good morning."}, name="clone.jsonl")
    speaking = write_data(recordings, *ROWS)
    for data, given, modes in (
        (cloning, None, ("all_at_once", "as_it_comes")),
        (cloning, ("all_at_once",), ("all_at_once",)),
        (speaking, None, ("all_at_once",)),
        (speaking, ("as_it_comes",), ("as_it_comes",)),
    ):
        assert prepare(base, data, tmp_path / "run", SftConfig(text_modes=given)).text_modes == modes


def test_texts_for_a_model_that_reads_phonemes_are_such_already(tmp_path):
    mini = local_folder(MINI)
    np.save(tmp_path / "one.npy", random_codes((9,)))
    data = write_data(tmp_path, {"text": "hɛˈloʊ", "codes": "one.npy", "speaker": "heart", "language": "english"})
    job = prepare(mini, data, tmp_path / "run", SftConfig(known_speakers=True))
    assert TextTokenizer.from_folder(mini).phonemes is not None
    assert [each.text for each in spoken_as(Request("hɛˈloʊ"), job.tokenizer)] == ["hɛˈloʊ"]


def test_held_out_speakers_are_learnt_ones(base, recordings, tmp_path):
    data = write_data(recordings, ROWS[0])
    for row, part in ((ROWS[1], "nothing is learnt of the speaker 'Berta'; there are zoe"), (
        {"audio": "1.wav", "text": "Yes."}, "line 1 has no speaker, and what is learnt has"
    )):  # fmt: skip
        held_out = write_data(recordings, row, name="held-out.jsonl")
        result = run(data, "-o", tmp_path / "run", "-m", base, *SHORT, "--validation", held_out)
        assert_refused(result, "held-out.jsonl line 1", part)


def test_other_data_has_another_digest(recordings, tmp_path):
    line = Line("data.jsonl line 1", recordings / "0.wav", "Hi.", ref_audio=recordings / "1.wav", durations=(1, 2))
    others = [replace(line, where="line 2"), replace(line, durations=(2, 1)), replace(line, ref_audio=None)]
    first, same, *rest = (digest_of([each], {}) for each in (line, *others))
    assert first == same
    assert first not in rest
    shutil.copy(recordings / "2.wav", tmp_path / "1.wav")
    assert first != digest_of([replace(line, ref_audio=tmp_path / "1.wav")], {})

    line = replace(line, audio=None, ref_audio=None, codes=Path("codes.npz"), key="a")
    codes = random_codes((4,))
    first, same, other = (digest_of([line], {line: each}) for each in (codes, codes.copy(), codes[::-1]))
    assert first == same != other


def test_ends_of_lines_in_texts(recordings):
    data = write_data(recordings, ROWS[0])
    data.write_text(json.dumps(ROWS[0] | {"text": "One\u2028two.\x85Three."}, ensure_ascii=False), encoding="utf-8")
    assert read_lines(data, SMALL["1.7B-Base"])[0].text == "One\u2028two.\x85Three."


def test_two_runs_may_encode_into_one_folder(tmp_path, recordings):
    stores = [examples._Encoded(tmp_path, "codes", "") for _ in range(2)]
    line, files = Line("line 1", recordings / "0.wav", "Hi."), [recordings / f"{i}.wav" for i in range(3)]
    for store in stores:
        for file in files:
            store.want(file, line, "audio")

    def put(store):
        for _ in range(50):
            for file in files:
                store.put(file, np.arange(2000))

    with ThreadPoolExecutor() as pool:
        list(pool.map(put, stores))
    for file in files:
        np.testing.assert_array_equal(stores[0].get(file), np.arange(2000))


def test_a_clip_longer_than_the_context(recordings, tokenizer_folder):
    config = SMALL["1.7B-Base"]
    config = replace(config, talker=replace(config.talker, max_positions=70))
    data = read_lines(write_data(recordings, {"audio": "2.wav", "text": "Hi."}), config)
    tokenizer = TextTokenizer.from_folder(tokenizer_folder)
    with pytest.raises(DataError, match=r"line 1: .*2.wav is too long: its 80 frames .* the model has 70"):
        examples.check_lengths(data, {}, tokenizer, config)
    examples.check_lengths(data, {}, tokenizer, replace(config, talker=replace(config.talker, max_positions=110)))


def test_durations_of_as_many_frames_as_the_codec_makes(tmp_path, tokenizer_folder):
    config, tokenizer = SMALL["0.6B-CustomVoice"], TextTokenizer.from_folder(tokenizer_folder)
    soundfile.write(tmp_path / "0.wav", np.full(14 * config.codec.frame_samples, 0.1), 24_000)
    ids = len(tokenizer.assistant("Hi.")) - len(tokenizer.assistant(""))
    line = Line("line 1", tmp_path / "0.wav", "Hi.", speaker="ryan", durations=(14, *[0] * (ids - 1)))
    examples.check_lengths([line], {}, tokenizer, config)
    with pytest.raises(DataError, match=r"durations are of 15 frames; .* what says it 14 frames"):
        examples.check_lengths([replace(line, durations=(15, *line.durations[1:]))], {}, tokenizer, config)


def test_rows_for_new_speakers():
    custom = SMALL["1.7B-CustomVoice"]
    size = custom.talker.codec_vocab_size

    def line(speaker, number=1):
        return Line(f"d line {number}", None, "Hi.", speaker=speaker)

    config, rows = add_speakers(custom, [line("Anna"), line("bob"), line("anna")])
    assert rows == {"anna": size - 72, "bob": size - 71}
    assert config.prompt.speakers == {**custom.prompt.speakers, **rows}
    with pytest.raises(DataError, match="d line 2: the model has a speaker 'ryan' already"):
        add_speakers(custom, [line("anna"), line("Ryan", 2)])
    assert add_speakers(custom, [line("Ryan")], known=True)[1] == {}
    many = [line(f"s{i}") for i in range(80)]
    with pytest.raises(DataError, match=r"80 new speakers do not fit: the codec embedding has 6\d free rows"):
        add_speakers(custom, many)
    used = set(add_speakers(custom, many[:60])[1].values())
    assert not used & {*custom.prompt.speakers.values(), *custom.prompt.languages.values(), custom.prompt.codec_eos}
    assert lines.add_speakers(SMALL["1.7B-VoiceDesign"], [line(None)]) == (SMALL["1.7B-VoiceDesign"], {})
