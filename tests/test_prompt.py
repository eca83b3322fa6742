"""Prompt plans against literal ones, in published ids; `parity/test_prompt_parity.py` has the embeddings."""

from __future__ import annotations

import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qwen3_tts_jax.config import ModelConfig
from qwen3_tts_jax.presets import preset
from qwen3_tts_jax.prompt import NONE, PromptPlan, Request, batch_plans, plan_prompt, validate
from qwen3_tts_jax.text.tokenizer import TextTokenizer
from qwen3_tts_jax.voice_prompt import VoicePrompt

CUSTOM_VOICE = preset("1.7B-CustomVoice")
VOICE_DESIGN = preset("1.7B-VoiceDesign")
BASE = preset("0.6B-Base")

BOS, EOS, PAD = 151_672, 151_673, 151_671
CODEC_BOS, CODEC_PAD = 2149, 2148
THINK, NOTHINK, THINK_BOS, THINK_EOS = 2154, 2155, 2156, 2157
IM_START, IM_END, NEWLINE, ASSISTANT, USER = 151_644, 151_645, 198, 77_091, 872
ROLE = [IM_START, ASSISTANT, NEWLINE]
HELLO = [9707, 11, 1879, 13]  # Hello, world.


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> TextTokenizer:
    return TextTokenizer.from_folder(tokenizer_folder)


class OneIdPerLetter:
    """A tokenizer that is quick to build and easy to read: the id of a letter is its code point."""

    phonemes = None

    def assistant(self, text: str) -> list[int]:
        return [*ROLE, *map(ord, text), IM_END, NEWLINE, *ROLE]

    def reference(self, text: str) -> list[int]:
        return [*ROLE, *map(ord, text), IM_END, NEWLINE]

    def instruct(self, text: str) -> list[int]:
        return [IM_START, USER, NEWLINE, *map(ord, text), IM_END, NEWLINE]


LETTERS = OneIdPerLetter()


def plan(config: ModelConfig = CUSTOM_VOICE, text: str = "ab", **options) -> PromptPlan:
    if config is CUSTOM_VOICE:
        options = {"speaker": "ryan"} | options
    return plan_prompt(Request(text, **options), LETTERS, config)


def first_codes(prompt: PromptPlan) -> list[int]:
    return prompt.codes[:, 0].tolist()


def test_all_at_once_with_everything(tokenizer: TextTokenizer):
    request = Request("Hello, world.", language="english", speaker="vivian", instruct="Whisper.")
    got = plan_prompt(request, tokenizer, CUSTOM_VOICE)
    table = [
        # text id, code
        (IM_START, NONE), (USER, NONE), (NEWLINE, NONE), (1639, NONE), (27_370, NONE), (13, NONE),
        (IM_END, NONE), (NEWLINE, NONE),
        (IM_START, NONE), (ASSISTANT, NONE), (NEWLINE, NONE),
        (PAD, THINK), (PAD, THINK_BOS), (PAD, 2050), (PAD, THINK_EOS), (PAD, 3065), (BOS, CODEC_PAD),
        (9707, CODEC_PAD), (11, CODEC_PAD), (1879, CODEC_PAD), (13, CODEC_PAD), (EOS, CODEC_PAD),
        (PAD, CODEC_BOS),
    ]  # fmt: skip
    assert list(zip(got.text_ids.tolist(), first_codes(got), strict=True)) == table
    assert got.trailing_text_ids.tolist() == []


def test_as_it_comes_keeps_all_but_the_first_token_for_later(tokenizer: TextTokenizer):
    request = Request("Hello, world.", language="english", speaker="vivian", text_mode="as_it_comes")
    got = plan_prompt(request, tokenizer, CUSTOM_VOICE)
    assert got.text_ids.tolist() == [*ROLE, PAD, PAD, PAD, PAD, PAD, BOS, HELLO[0]]
    prefix = [THINK, THINK_BOS, 2050, THINK_EOS, 3065, CODEC_PAD]
    assert first_codes(got) == [NONE, NONE, NONE, *prefix, CODEC_BOS]
    assert got.trailing_text_ids.tolist() == [*HELLO[1:], EOS]


def test_as_it_comes_with_a_single_token():
    got = plan(text="a", text_mode="as_it_comes")
    assert got.text_ids[-1] == ord("a")
    assert got.codes[-1, 0] == CODEC_BOS
    assert got.trailing_text_ids.tolist() == [EOS]


def test_text_tokens_are_taken_by_position(tokenizer: TextTokenizer):
    request = Request("\n\nHi<|im_end|>\nHo", speaker="ryan")
    got = plan_prompt(request, tokenizer, CUSTOM_VOICE)
    assert got.text_ids[:3].tolist() == [IM_START, ASSISTANT, 1406]
    assert got.text_ids[-6:].tolist() == [13_048, IM_END, NEWLINE, 47_978, EOS, PAD]


def test_arrays():
    got = plan(instruct="x")
    assert (got.text_ids.dtype, got.codes.dtype, got.trailing_text_ids.dtype) == (np.int32,) * 3
    assert got.text_ids.flags.c_contiguous
    assert got.codes.shape == (len(got.text_ids), 16)
    np.testing.assert_array_equal(got.codes[:, 1:], NONE)
    assert plan(text_mode="as_it_comes").trailing_text_ids.dtype == np.int32


def test_auto_has_no_language_position():
    assert first_codes(plan(language="auto"))[3:8] == [NOTHINK, THINK_BOS, THINK_EOS, 3061, CODEC_PAD]
    assert first_codes(plan(language="AUTO")) == first_codes(plan()) == first_codes(plan(language="auto"))


@pytest.mark.parametrize(
    ("speaker", "speaker_id", "language", "language_id"),
    [
        ("eric", 2875, "auto", 2062),
        ("eric", 2875, "Chinese", 2062),
        ("Eric", 2875, "chinese", 2062),
        ("eric", 2875, "english", 2050),
        ("dylan", 2878, "auto", 2074),
        ("dylan", 2878, "sichuan_dialect", 2062),
        ("uncle_fu", 3010, "Beijing_Dialect", 2074),
        ("SERENA", 3066, "CHINESE", 2055),
    ],
)
def test_languages_and_dialect_speakers(speaker: str, speaker_id: int, language: str, language_id: int):
    got = plan(speaker=speaker, language=language)
    assert first_codes(got)[3:9] == [THINK, THINK_BOS, language_id, THINK_EOS, speaker_id, CODEC_PAD]


@pytest.mark.parametrize(
    ("config", "speaker"),
    [(VOICE_DESIGN, None), (BASE, None), (CUSTOM_VOICE, None), (CUSTOM_VOICE, "")],
    ids=["voice design", "base", "custom voice, None", "custom voice, empty"],
)
def test_without_a_speaker_there_is_no_speaker_position(config: ModelConfig, speaker: str | None):
    got = plan(config, text="a", language="german", speaker=speaker)
    assert got.text_ids.tolist() == [*ROLE, PAD, PAD, PAD, PAD, BOS, ord("a"), EOS, PAD]
    prefix = [THINK, THINK_BOS, 2053, THINK_EOS, CODEC_PAD]
    assert first_codes(got) == [NONE, NONE, NONE, *prefix, CODEC_PAD, CODEC_PAD, CODEC_BOS]


@pytest.mark.parametrize("instruct", [None, ""])
def test_no_instruct_is_no_instruct(instruct: str | None):
    assert plan(VOICE_DESIGN, instruct=instruct).text_ids[:3].tolist() == ROLE


@pytest.mark.parametrize(
    ("name", "speaker", "what"),
    [("0.6B-CustomVoice", "ryan", "0b6 custom_voice"), ("1.7B-Base", None, "1b7 base")],
)
def test_instruct_is_dropped_with_a_warning_where_the_model_has_none(name: str, speaker: str | None, what: str):
    config = preset(name)
    with pytest.warns(UserWarning, match=rf"this model \({what}\) takes no instruct; it is dropped") as caught:
        got = plan_prompt(Request("ab", speaker=speaker, instruct="x"), LETTERS, config)
    assert caught[0].filename == __file__
    without = plan_prompt(Request("ab", speaker=speaker), LETTERS, config)
    assert got.text_ids.tolist() == without.text_ids.tolist()


@pytest.mark.parametrize("instruct", ["", None])
def test_no_warning_without_an_instruct(instruct: str | None):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan_prompt(Request("ab", speaker="ryan", instruct=instruct), LETTERS, preset("0.6B-CustomVoice"))


LANGUAGES = (
    "auto, beijing_dialect, chinese, english, french, german, italian, japanese, korean, portuguese, "
    "russian, sichuan_dialect, spanish"
)
SPEAKERS = "aiden, dylan, eric, ono_anna, ryan, serena, sohee, uncle_fu, vivian"


@pytest.mark.parametrize(
    ("config", "request_", "message"),
    [
        (CUSTOM_VOICE, Request("", speaker="ryan"), "the text is empty"),
        (CUSTOM_VOICE, Request(" \n\t\u3000", speaker="ryan"), "the text is empty"),
        (
            CUSTOM_VOICE,
            Request("a", language="klingon", speaker="ryan"),
            f"unknown language 'klingon'; there are {LANGUAGES}$",
        ),
        (CUSTOM_VOICE, Request("a", language=None, speaker="ryan"), "unknown language None"),
        (CUSTOM_VOICE, Request("a", language="", speaker="ryan"), "unknown language ''"),
        (VOICE_DESIGN, Request("a", language="sichuan_dialect"), "unknown language 'sichuan_dialect'"),
        (CUSTOM_VOICE, Request("a", speaker="hal"), f"unknown speaker 'hal'; there are {SPEAKERS}$"),
        (CUSTOM_VOICE, Request("a", speaker=3), "unknown speaker 3"),
        (CUSTOM_VOICE, Request("a", speaker=0), "unknown speaker 0"),
        (
            VOICE_DESIGN,
            Request("a", speaker="ryan"),
            "this voice_design model has no speakers, got speaker='ryan'",
        ),
        (BASE, Request("a", speaker="ryan"), "this base model has no speakers"),
        (
            CUSTOM_VOICE,
            Request("a", speaker="ryan", text_mode="streaming"),
            "unknown text_mode 'streaming'; there are all_at_once, as_it_comes",
        ),
        (CUSTOM_VOICE, Request("a", speaker="ryan", max_frames=0), "max_frames must be at least 1, got 0"),
        (CUSTOM_VOICE, Request("a", speaker="ryan", max_frames=3.5), r"max_frames must be a whole number, got 3\.5"),
    ],
)
def test_bad_requests_are_refused(config: ModelConfig, request_: Request, message: str):
    with pytest.raises(ValueError, match=message):
        validate(request_, config)
    with pytest.raises(ValueError, match=message):
        plan_prompt(request_, LETTERS, config)


def test_good_requests_pass():
    validate(Request("a", speaker="Ryan", max_frames=1), CUSTOM_VOICE)
    validate(Request("a", speaker="Ryan", max_frames=np.int64(1)), CUSTOM_VOICE)
    validate(Request("\u200b", instruct=""), VOICE_DESIGN)


def _with_context(max_positions: int) -> ModelConfig:
    return replace(CUSTOM_VOICE, talker=replace(CUSTOM_VOICE.talker, max_positions=max_positions))


def test_a_prompt_and_one_frame_must_fit_the_context():
    request = Request("abc", speaker="ryan", instruct="xy")
    tokens = len(plan_prompt(request, LETTERS, CUSTOM_VOICE).text_ids)
    assert len(plan_prompt(request, LETTERS, _with_context(tokens + 1)).text_ids) == tokens
    parts = r"text 3, instruct 7, reference frames 0"
    message = rf"the prompt has {tokens} tokens \({parts}\).* context of {tokens}: speak it in parts"
    with pytest.raises(ValueError, match=message):
        plan_prompt(request, LETTERS, _with_context(tokens))


# Cloned voices


X_VECTOR = np.linspace(-1, 1, 1024, dtype=np.float32)
AUTO = [NOTHINK, THINK_BOS, THINK_EOS]


def cloned(frames: int | None = None, text: str = "rs") -> VoicePrompt:
    """Frame t of codebook q has the code 100 t + q; without frames, of the x-vector alone."""
    if frames is None:
        return VoicePrompt(X_VECTOR)
    return VoicePrompt(X_VECTOR, 100 * np.arange(frames)[:, None] + np.arange(16), text)


def letters(text: str) -> list[int]:
    return [*map(ord, text)]


@pytest.mark.parametrize(
    ("text_mode", "text", "codes", "trailing"),
    [
        ("all_at_once", [*letters("ab"), EOS, PAD], [CODEC_PAD] * 3 + [CODEC_BOS], []),
        ("as_it_comes", letters("a"), [CODEC_BOS], [*letters("b"), EOS]),
    ],
)
def test_a_voice_of_the_x_vector_alone(text_mode: str, text: list[int], codes: list[int], trailing: list[int]):
    got = plan(BASE, voice=cloned(), language="german", text_mode=text_mode)
    assert got.text_ids.tolist() == [*ROLE, PAD, PAD, PAD, PAD, PAD, BOS, *text]
    prefix = [THINK, THINK_BOS, 2053, THINK_EOS, NONE, CODEC_PAD]
    assert first_codes(got) == [NONE, NONE, NONE, *prefix, *codes]
    np.testing.assert_array_equal(got.codes[:, 1:], NONE)
    assert got.trailing_text_ids.tolist() == trailing
    assert got.speaker_position == 7
    assert got.x_vector is X_VECTOR


@pytest.mark.parametrize(
    ("text_mode", "frames", "text", "codes", "trailing"),
    [
        # All at once: the texts, then the recording.
        ("all_at_once", 3, [*letters("rsab"), EOS, *[PAD] * 4], [*[CODEC_PAD] * 5, CODEC_BOS, 0, 100, 200], []),
        # As it comes: the texts over the recording, whichever is longer; 4 letters and the end over 1 + T codes.
        ("as_it_comes", 2, letters("rsa"), [CODEC_BOS, 0, 100], [*letters("b"), EOS]),
        ("as_it_comes", 3, letters("rsab"), [CODEC_BOS, 0, 100, 200], [EOS]),
        ("as_it_comes", 4, [*letters("rsab"), EOS], [CODEC_BOS, 0, 100, 200, 300], []),
        ("as_it_comes", 5, [*letters("rsab"), EOS, PAD], [CODEC_BOS, 0, 100, 200, 300, 400], []),
    ],
)
def test_a_voice_in_context(text_mode: str, frames: int, text: list[int], codes: list[int], trailing: list[int]):
    got = plan(BASE, voice=cloned(frames), text_mode=text_mode)
    assert got.text_ids.tolist() == [*ROLE, PAD, PAD, PAD, PAD, BOS, *text]
    assert first_codes(got) == [NONE, NONE, NONE, *AUTO, NONE, CODEC_PAD, *codes]
    np.testing.assert_array_equal(got.codes[-frames:], cloned(frames).codes)
    np.testing.assert_array_equal(got.codes[:-frames, 1:], NONE)
    assert got.trailing_text_ids.tolist() == trailing
    assert got.speaker_position == 6


def test_the_reference_is_what_lies_within_its_template(tokenizer: TextTokenizer):
    request = Request("Hello, world.", voice=cloned(1, "\n\nHi"))
    got = plan_prompt(request, tokenizer, BASE)
    # The newlines merge with the one that ends the role.
    assert got.text_ids[8:].tolist() == [13_048, *HELLO, EOS, PAD, PAD]


def test_without_a_voice_there_is_no_x_vector():
    got = plan(BASE)
    assert (got.x_vector, got.speaker_position) == (None, NONE)


def test_the_reference_counts_against_the_context():
    request, talker = Request("ab", voice=cloned(4)), BASE.talker
    message = r"the prompt has 18 tokens \(text 4, instruct 0, reference frames 4\)"
    with pytest.raises(ValueError, match=message):
        plan_prompt(request, LETTERS, replace(BASE, talker=replace(talker, max_positions=18)))
    got = plan_prompt(request, LETTERS, replace(BASE, talker=replace(talker, max_positions=19)))
    assert len(got.text_ids) == 18


@pytest.mark.parametrize("config", [CUSTOM_VOICE, VOICE_DESIGN], ids=["custom voice", "voice design"])
def test_a_voice_is_checked_with_its_request(config: ModelConfig):
    speaker = "ryan" if config is CUSTOM_VOICE else None
    with pytest.raises(ValueError, match=f"this {config.model_type} model clones no voices"):
        plan_prompt(Request("a", speaker=speaker, voice=cloned(2)), LETTERS, config)
    validate(Request("a", voice=cloned(2)), BASE)


# Batches


def test_batch_keeps_each_x_vector_at_its_place():
    other = VoicePrompt(X_VECTOR[::-1])
    voices = [cloned(3), None, other]
    batch = batch_plans([plan(BASE, voice=voice) for voice in voices], tts_pad=PAD, length=20)
    assert batch.lengths.tolist() == [17, 11, 12]
    assert batch.speaker_position.tolist() == [6, NONE, 6]
    np.testing.assert_array_equal(batch.x_vectors, [X_VECTOR, np.zeros(1024), X_VECTOR[::-1]])
    assert (batch.x_vectors.dtype, batch.speaker_position.dtype) == (np.float32, np.int32)
    for row in (0, 2):
        assert batch.text_ids[row, batch.speaker_position[row]] == PAD
        np.testing.assert_array_equal(batch.codes[row, batch.speaker_position[row]], NONE)


def test_batch_without_voices_has_no_x_vectors():
    batch = batch_plans([plan(BASE), plan()], tts_pad=PAD)
    assert batch.x_vectors is None
    assert batch.speaker_position.tolist() == [NONE, NONE]


def test_batch_pads_prompts_and_trailing_text_on_the_right():
    plans = [plan(text="a", text_mode="as_it_comes"), plan(text="bcd", text_mode="as_it_comes", instruct="x")]
    plans.append(plan(text="ef"))
    lengths = [len(p.text_ids) for p in plans]
    assert lengths == [9, 15, 12]
    batch = batch_plans(plans, tts_pad=PAD)
    assert batch.lengths.tolist() == lengths
    assert batch.trailing_text_ids.tolist() == [[EOS, PAD, PAD], [ord("c"), ord("d"), EOS], [PAD] * 3]
    for row, (length, one) in enumerate(zip(lengths, plans, strict=True)):
        np.testing.assert_array_equal(batch.text_ids[row, length:], NONE)
        np.testing.assert_array_equal(batch.codes[row, length:], NONE)
        np.testing.assert_array_equal(batch.text_ids[row, :length], one.text_ids)
        np.testing.assert_array_equal(batch.codes[row, :length], one.codes)
    for array in (batch.text_ids, batch.codes, batch.lengths, batch.trailing_text_ids):
        assert array.dtype == np.int32


def test_batch_pads_to_the_given_lengths():
    batch = batch_plans([plan(text="abc", text_mode="as_it_comes")], tts_pad=7, length=11, trailing_length=5)
    assert batch.text_ids.shape == (1, 11)
    assert batch.codes.shape == (1, 11, 16)
    assert batch.lengths.tolist() == [9]
    assert batch.trailing_text_ids.tolist() == [[ord("b"), ord("c"), EOS, 7, 7]]


def test_batch_of_whole_texts_has_no_trailing_text():
    assert batch_plans([plan(), plan()], tts_pad=PAD).trailing_text_ids.shape == (2, 0)


def test_batch_refuses_what_does_not_fit():
    one = plan(text="ab", text_mode="as_it_comes")
    assert batch_plans([one], tts_pad=PAD, length=9, trailing_length=2).lengths.tolist() == [9]
    with pytest.raises(ValueError, match="a prompt of 9 tokens does not fit length=8"):
        batch_plans([one], tts_pad=PAD, length=8)
    with pytest.raises(ValueError, match="2 trailing tokens do not fit trailing_length=1"):
        batch_plans([one], tts_pad=PAD, trailing_length=1)
    with pytest.raises(ValueError, match="no prompts to batch"):
        batch_plans([], tts_pad=PAD)


def test_planning_needs_no_jax():
    code = "import sys, qwen3_tts_jax.prompt, qwen3_tts_jax.text.tokenizer; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
