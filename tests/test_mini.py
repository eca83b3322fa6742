"""The model in the package: it speaks without a network, sentence by sentence, from every way in."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from qwen3_tts_jax import Qwen3TTS, Request, SpeechTokenizer, synthesis
from qwen3_tts_jax.buckets import UTTERANCE_BUCKET
from qwen3_tts_jax.config import ConfigError
from qwen3_tts_jax.convert import load_codec, resolve, resolve_codec
from qwen3_tts_jax.hf_config import read_codec
from qwen3_tts_jax.packaged import MINI, local_folder
from qwen3_tts_jax.prompt import plan_prompt
from qwen3_tts_jax.text.phonemes import LONGEST_UTTERANCE, utterances
from qwen3_tts_jax.utterances import joined, spoken_as, spoken_as_it_arrives, utterance_number
from tests.command import assert_refused, run, write_recording

LINE = (
    "speaking with mini, the small English voice in the package{}; "
    "--model 0.6B-CustomVoice downloads the published one\n"
)
TEXT = "Hello there. How are you? I am fine."


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """An empty folder, and no way out of this machine."""

    def connect(*_):
        raise OSError("the network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.fixture(scope="module")
def mini() -> Qwen3TTS:
    return Qwen3TTS.from_pretrained("mini")


def test_its_files():
    found = local_folder(MINI)
    assert sum(path.stat().st_size for path in found.rglob("*")) < 40e6
    assert json.loads((found / "tokenizer_config.json").read_text(encoding="utf-8"))["phonemes"] == "en-us"
    assert load_codec(resolve_codec(MINI), read_codec(resolve_codec(MINI))).keys() == {"encoder", "decoder"}


def test_its_name_is_no_folder():
    Path("mini").mkdir()
    assert resolve("mini") == local_folder("mini") != Path("mini")
    assert resolve("./mini") == Path("mini")
    assert local_folder("") is None


# Speech.


def test_both_speak_and_equal_seeds_speak_alike(mini):
    def speak(speaker: str, seed: int) -> np.ndarray:
        (samples,), rate = mini.generate_custom_voice("Hello there.", speaker, seed=seed, max_new_tokens=9)
        assert rate == 24_000
        assert np.isfinite(samples).all()
        assert len(samples) > 0
        return samples

    assert mini.get_supported_speakers() == ["heart", "henry"]
    assert mini.get_supported_languages() == ["auto", "english"]
    heart = speak("heart", 1)
    np.testing.assert_array_equal(speak("Heart", 1), heart)
    for other in (speak("henry", 1), speak("heart", 2)):
        assert not np.array_equal(other, heart)


@pytest.mark.parametrize("most", [None, 20])
def test_a_stream_is_the_whole(mini, most):
    (whole,) = mini.synthesize([Request(TEXT, speaker="heart", max_frames=most)], seed=3)
    chunks = list(mini.stream(Request(TEXT, speaker="heart", max_frames=most), seed=3))
    np.testing.assert_array_equal(np.concatenate([chunk.codes for chunk in chunks]), whole.codes)
    np.testing.assert_allclose(np.concatenate([chunk.samples for chunk in chunks]), whole.samples, atol=1e-4)
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].finish_reason == whole.finish_reason
    assert len(whole.samples) == 1200 * len(whole.codes)
    assert len(whole.codes) <= (most or 150)


def test_a_limit_cuts_the_whole_and_what_is_behind_it_is_not_spoken(mini):
    read = []
    (whole,) = mini.synthesize([Request(TEXT, speaker="henry")], seed=3)
    request = Request(TEXT, speaker="henry", max_frames=30)
    (cut,) = mini.synthesize([request], seed=3, progress=lambda stage, done, total: read.append((stage, total)))
    np.testing.assert_array_equal(cut.codes, whole.codes[:30])
    np.testing.assert_array_equal(cut.samples, whole.samples[: 30 * 1200])
    assert (whole.finish_reason, cut.finish_reason) == ("stop", "length")
    assert ("prefill", 2) in read


@pytest.mark.parametrize(("sentences", "rows"), [(7, 1), (11, 2), (60, 16)])
def test_sentences_of_a_long_text_are_spoken_side_by_side(mini, monkeypatch, sentences, rows):
    class Noted(Exception):
        pass

    def note(params, config, count, *shape):
        raise Noted(count)

    monkeypatch.setattr(synthesis, "empty_batch_compiled", note)
    with pytest.raises(Noted, match=rf"^{rows}$"):
        mini.synthesize([Request("It is late. " * sentences, speaker="henry")])


def test_text_in_pieces_is_spoken_sentence_by_sentence(mini):
    said = []

    def pieces():
        for start in range(0, len(TEXT), 5):
            said.append(start)
            yield TEXT[start : start + 5]

    chunks = mini.stream_custom_voice(pieces(), speaker="heart", seed=3)
    first = next(chunks)
    # "Hello there. H" is what is needed of it.
    assert said == [0, 5, 10]
    rest = list(chunks)
    whole = list(mini.stream_custom_voice(TEXT, speaker="heart", seed=3))
    codes = [np.concatenate([chunk.codes for chunk in each]) for each in ([first, *rest], whole)]
    np.testing.assert_array_equal(*codes)
    assert rest[-1].finish_reason == whole[-1].finish_reason


def test_pieces_without_a_word_are_refused(mini):
    with pytest.raises(ValueError, match="there is nothing to say in"):
        list(mini.stream_custom_voice(iter(["?! ", "😀"]), speaker="heart"))


def test_what_cannot_be_spoken_is_refused(mini):
    for text, options, message in [
        ("!!!", {"speaker": "heart"}, "there is nothing to say in '!!!'"),
        ("Hello.", {"speaker": "ryan"}, "unknown speaker 'ryan'; there are heart, henry"),
        ("Hello.", {"speaker": "heart", "language": "german"}, "unknown language 'german'; there are auto, english"),
    ]:
        for method in (mini.generate_custom_voice, mini.stream_custom_voice):
            with pytest.raises(ValueError, match=message):
                method(text, **options)
    with pytest.warns(UserWarning, match="takes no instruct"):
        mini.stream_custom_voice("Hello.", speaker="heart", instruct="sadly")


# How a request is divided.


def test_an_utterance_is_a_sentence_in_phonemes(mini):
    request = Request(TEXT, speaker="heart")
    parts = spoken_as(request, mini.tokenizer)
    spoken = ["hɛlˈoʊ ðˈɛɹ.", "hˈaʊ ɑɹ jˈu?", "aɪ æm fˈaɪn."]
    assert utterances(TEXT) == spoken
    assert [part.text for part in parts] == [mini.tokenizer.phonemes.frame_text(text) for text in spoken]
    assert [(part.text[0], set(part.text)) for part in parts] == [
        (text[-1], set(text.replace(" ", ""))) for text in spoken
    ]
    assert {part.text_mode for part in parts} == {"as_it_comes"}
    # The phonemes' frames, the mark ahead of them, and what is left to end in.
    assert [part.max_frames for part in parts] == [sum(mini.tokenizer.phonemes.frames(text)) + 21 for text in spoken]
    first, second, _ = (sum(mini.tokenizer.phonemes.frames(text)) for text in spoken)
    for most, count in [(1, 1), (first - 1, 1), (first, 2), (first + second - 1, 2), (first + second, 3), (999, 3)]:
        limited = spoken_as(Request(TEXT, speaker="heart", max_frames=most), mini.tokenizer)
        assert limited == [replace(part, max_frames=min(part.max_frames, most)) for part in parts[:count]]
    arriving = spoken_as_it_arrives(
        Request("Hello ", speaker="heart"), iter(["there. How are", " you? I am fine."]), mini.tokenizer
    )
    assert list(arriving) == parts


def test_a_mark_that_is_missing_or_yet_to_arrive_is_the_same(mini):
    whole = spoken_as(Request("Hello.", speaker="heart"), mini.tokenizer)
    assert spoken_as(Request("Hello", speaker="heart"), mini.tokenizer) == whole
    for pieces in (["Hel", "lo"], ["Hello", "."]):
        assert list(spoken_as_it_arrives(Request("", speaker="heart"), iter(pieces), mini.tokenizer)) == whole


def test_the_longest_utterance_has_the_smallest_shape(mini):
    text = ("wˈɚdz ænd wˈɚdz, " * LONGEST_UTTERANCE)[: LONGEST_UTTERANCE - 1] + "."
    longest = spoken_as(Request("words", "english", "heart"), mini.tokenizer)[0]
    longest = replace(longest, text=mini.tokenizer.phonemes.frame_text(text))
    assert len(plan_prompt(longest, mini.tokenizer, mini.config).trailing_text_ids) + 10 <= UTTERANCE_BUCKET


def test_other_models_speak_requests_as_they_are(tokenizer):
    request = Request(TEXT)
    assert spoken_as(request, tokenizer) == [request]


def test_utterances_are_joined_in_order():
    codes = [np.full((i + 1, 2), i, np.int32) for i in range(4)]
    spoken = [(2, codes[2], "stop"), (3, codes[3], "length"), (0, codes[0], "stop"), (1, codes[1], "stop")]

    def together(counts, limits):
        groups = joined([spoken[:1], spoken[1:3], spoken[3:]], counts, limits)
        return [[(index, rows[:, 0].tolist(), reason) for index, rows, reason in group] for group in groups]

    assert together([1, 1, 2], [None, None, None]) == [
        [],
        [(2, [2, 2, 2, 3, 3, 3, 3], "length"), (0, [0], "stop")],
        [(1, [1, 1], "stop")],
    ]
    assert together([3, 1], [3, 4]) == [[], [(1, [3, 3, 3, 3], "length")], [(0, [0, 1, 1], "length")]]
    # What ends where its limit is, is cut there.
    assert together([2, 1, 1], [3, 4, None])[2] == [(0, [0, 1, 1], "length")]
    assert together([2, 1, 1], [4, 4, None])[2] == [(0, [0, 1, 1], "stop")]
    assert utterance_number(5, 0) == 5
    assert len({utterance_number(number, place) for number in range(50) for place in range(50)}) == 2500


# The command.


def test_say_without_a_model_speaks_with_mini(mini):
    result = run("say", "Hello there.", "-o", "a.wav", "--max-seconds", "0.7", "--seed", "3")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == LINE.format(" (heart; `voices` lists others)")
    samples, rate = soundfile.read("a.wav", dtype="float32")
    (same,) = mini.synthesize([Request("Hello there.", speaker="heart", max_frames=14)], seed=3)
    assert rate == 24_000
    np.testing.assert_allclose(samples, same.samples, atol=2 / 32768)
    options = ["--max-seconds", "0.1", "-o", "b.wav"]
    assert run("say", "Hi.", "-s", "henry", *options).stderr == LINE.format("")
    assert run("say", "Hi.", "--model", "mini", *options).stderr.startswith("voice: heart (")
    assert run("say", "Hi.", "--quiet", *options).stderr == ""


def test_say_refuses_before_loading(no_weights):
    for arguments, part in [
        (["!!!"], "there is nothing to say in '!!!'"),
        (["--stream", "!!!"], "there is nothing to say in '!!!'"),
        (["Hi.", "--speaker", "ryan"], "unknown speaker 'ryan'; there are heart, henry"),
        (["Hi.", "--language", "german"], "unknown language 'german'; there are auto, english"),
        ([" "], "the text is empty"),
        (["Hi.", "--model", ""], "'' is neither a folder, nor"),
        (["Hi.", "--model", "mini", "--revision", "main"], "--revision is for repositories, and mini is not one"),
        (["Hi.", "--verify"], "mini comes with this package: there is no published file"),
    ]:
        assert_refused(run("say", *arguments), part)
    assert list(Path.cwd().iterdir()) == []


def test_an_instruction_is_left_out_with_a_warning():
    result = run("say", TEXT, "--instruct", "sadly", "--max-seconds", "0.1", "--quiet")
    assert result.exit_code == 0
    assert result.stderr == "warning: this model (0b6 custom_voice) takes no instruct; it is dropped\n"


def test_sentences_in_other_alphabets_are_left_out_with_a_warning(mini):
    spoken = utterances("Hello.")
    for pieces in (["Привет. Hello there."], ["Hello there. При", "вет."]):
        arriving = spoken_as_it_arrives(Request("", speaker="heart"), iter(pieces), mini.tokenizer)
        with pytest.warns(UserWarning, match="letters that are not English are left out: Привет"):
            assert len(list(arriving)) == 1
    with pytest.warns(UserWarning, match="letters that are not English are left out: Привет"):
        assert utterances("Привет. Hello.") == spoken
    with pytest.raises(ValueError, match=r"nothing to say in 'Привет\.': this model reads English alone"):
        utterances("Привет.")


def test_its_encoder_is_not_trained():
    """Which is known of its copies too."""
    write_recording(Path("a.wav"), 0.7)
    Path("a.jsonl").write_text(json.dumps({"audio": "a.wav", "text": "Hi.", "speaker": "anna"}) + "\n")
    assert run("export", "mini", "-o", "copy").exit_code == 0
    for model in ("mini", "copy"):
        assert_refused(run("codec", "encode", "a.wav", "-m", model), "encoder is not trained: it cannot encode")
        result = run("train", "sft", "a.jsonl", "-m", model, "-o", "run", "--quiet")
        assert_refused(result, "encoder is not trained")
    codec = SpeechTokenizer.from_pretrained("copy")
    with pytest.raises(ConfigError, match="encoder is not trained"):
        codec.encode("a.wav")
    assert_refused(run("train", "codec", ".", "--start", "copy", "--decoder-only", "-o", "run"), "is not trained")
    assert not Path("run").exists()


def test_a_text_that_is_piped_in_is_streamed():
    result = run("say", "--stream", "--raw", "--text-mode", "as-it-comes", "--max-seconds", "0.4", text=TEXT.encode())
    assert result.exit_code == 0, result.stderr
    assert len(result.stdout_bytes) == 2 * 1200 * 8
    assert "cut at the limit of 0.40 s: raise --max-seconds" in result.stderr


def test_a_text_without_a_word_that_is_piped_in_is_refused():
    result = run("say", "--stream", "--raw", "--text-mode", "as-it-comes", "--quiet", text="?! 😀".encode())
    assert_refused(result, "there is nothing to say in '?! 😀'")


def test_its_voices_languages_and_parts():
    assert run("voices").stdout == "heart  American woman\nhenry  American man\n"
    assert run("languages").stdout == "auto\nenglish\n"
    info = run("info", "mini")
    assert info.exit_code == 0, info.stderr
    assert "its own: heart, henry" in info.stdout
    assert info.stderr == ""


def test_batch_without_a_model_speaks_with_mini():
    Path("lines.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in [
            {"id": "a", "text": TEXT, "max_seconds": 0.5},
            {"id": "b", "text": "Good morning.", "speaker": "henry", "max_seconds": 0.5},
            {"id": "c", "text": "???"},
        ])
    )  # fmt: skip
    refused = run("batch", "lines.jsonl", "-o", "out")
    assert refused.exit_code == 2
    assert "there is nothing to say in '???'" in refused.stderr
    result = run("batch", "lines.jsonl", "-o", "out", "--skip-bad", "--batch-size", "2")
    assert result.exit_code == 0, result.stderr
    assert LINE.format("") in result.stderr
    assert {path.name for path in Path("out").glob("*.wav")} == {"a.wav", "b.wav"}
    assert 0 < soundfile.info("out/a.wav").frames <= 10 * 1200


def test_export_writes_it_and_its_phonemes():
    assert run("export", "mini", "-o", "copy").exit_code == 0
    config = json.loads(Path("copy/tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["phonemes"] == "en-us"


def test_what_is_not_needed_is_not_imported():
    program = (
        "import sys\n"
        "from qwen3_tts_jax.cli.main import app\n"
        "app(['voices'], standalone_mode=False)\n"
        "print(sorted({'jax', 'gruut', 'num2words', 'huggingface_hub'} & set(sys.modules)))\n"
        "import qwen3_tts_jax.pipeline\n"
        "print(sorted({'gruut', 'num2words', 'qwen3_tts_jax.text.phonemes'} & set(sys.modules)))\n"
    )
    lines = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert lines[-2:] == ["[]", "[]"]
