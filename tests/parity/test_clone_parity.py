"""Cloned voices against the official package, from the recording to the samples: float32, greedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from qwen3_tts_jax.pipeline import Qwen3TTS
from qwen3_tts_jax.speech import Speech
from qwen3_tts_jax.voice_prompt import VoicePrompt
from tests.golden_x_vector import speech_like
from tests.parity.codec_encoder_oracle import windowed_attention
from tests.parity.oracle import quiet
from tests.parity.test_prompt_parity import official_voice

VARIANTS = ("0.6B-Base", "1.7B-Base")
GREEDY = {"do_sample": False, "subtalker_dosample": False, "repetition_penalty": 1.05}
RATE = 24_000

TEXTS = ["Hello, world.", "这是一个较长的中文句子，用来测试不同的长度。"]
LANGUAGES = ["english", "auto"]
REFERENCE_TEXTS = ["A dog ran over the hill and did not come back.", "Kurz und gut."]
# Neither is a whole number of frames of either model.
RECORDINGS = [speech_like(25_501, 1), speech_like(14_407, 2)]
# With these weights most rows end, at different frames, before the limit.
ENDING = {"eos_boost": 1.0}
MAX_NEW_TOKENS = 31

both_modes = pytest.mark.parametrize("non_streaming_mode", [True, False], ids=["all_at_once", "as_it_comes"])
both_ways = pytest.mark.parametrize("in_context", [True, False], ids=["in_context", "x_vector"])


@pytest.fixture(scope="module")
def ours(checkpoint: Callable[..., Any]) -> Callable[..., Qwen3TTS]:
    @cache
    def load(variant: str, **options: Any) -> Qwen3TTS:
        return Qwen3TTS.from_pretrained(checkpoint(variant, **options), dtype="float32")

    return load


@pytest.fixture(autouse=True)
def _windowed() -> Iterator[None]:
    """The recordings outlast the small encoders' windows, which the official package keeps on a GPU only."""
    with windowed_attention():
        yield


def official_voices(model: Any, in_context: bool = True) -> list[Any]:
    """Made one by one: in a list, the last frame of the shorter recording would see the other's padding."""
    with quiet():
        return [
            model.create_voice_clone_prompt((recording, RATE), text if in_context else None, not in_context)[0]
            for recording, text in zip(RECORDINGS, REFERENCE_TEXTS, strict=True)
        ]


def our_voices(model: Qwen3TTS, in_context: bool = True) -> list[Any]:
    sources = [(recording, RATE) for recording in RECORDINGS]
    return model.create_voice_clone_prompt(sources, REFERENCE_TEXTS if in_context else None, not in_context)


def official_speech(model: Any, *arguments: Any, **options: Any) -> SimpleNamespace:
    """One call of `generate_voice_clone`: wavs, codes, and samples decoded with the reference and not yet cut."""
    heard = SimpleNamespace(codes=[], uncut=[])
    generate, decode = model.model.generate, model.model.speech_tokenizer.decode

    def noting_codes(**keywords: Any) -> Any:
        result = generate(**keywords)
        heard.codes += [codes.numpy() for codes in result[0]]
        return result

    def noting_samples(encoded: Any) -> Any:
        wavs, rate = decode(encoded)
        heard.uncut += wavs
        return wavs, rate

    with pytest.MonkeyPatch.context() as patch, quiet(), torch.no_grad():
        patch.setattr(model.model, "generate", noting_codes)
        patch.setattr(model.model.speech_tokenizer, "decode", noting_samples)
        heard.wavs, rate = model.generate_voice_clone(*arguments, **GREEDY, **options)
    assert rate == RATE
    return heard


def our_speech(model: Qwen3TTS, *arguments: Any, **options: Any) -> list[Speech]:
    """What `generate_voice_clone` makes, with the codes that it does not return."""
    speeches: list[Speech] = []
    synthesize = model.synthesize

    def noting(*args: Any, **keywords: Any) -> list[Speech]:
        speeches.extend(synthesize(*args, **keywords))
        return speeches

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "synthesize", noting)
        wavs, rate = model.generate_voice_clone(*arguments, **GREEDY, **options)
    assert rate == RATE
    for wav, speech in zip(wavs, speeches, strict=True):
        assert wav is speech.samples
    return speeches


def check_same_speech(speeches: list[Speech], theirs: SimpleNamespace, frame_samples: int) -> None:
    """Codes equal; samples within 1e-4 of the official decode, cut exactly where the reference ends."""
    for speech, codes, uncut in zip(speeches, theirs.codes, theirs.uncut, strict=True):
        np.testing.assert_array_equal(speech.codes, codes)
        count = len(codes) * frame_samples
        assert speech.samples.shape == (count,)
        np.testing.assert_allclose(speech.samples, uncut[len(uncut) - count :], rtol=0, atol=1e-4)
    assert len({speech.codes.tobytes() for speech in speeches}) == len(speeches) > 1


@cache
def _spoken(model: Qwen3TTS, in_context: bool, non_streaming_mode: bool) -> list[Speech]:
    return our_speech(
        model,
        TEXTS,
        LANGUAGES,
        voice_clone_prompt=our_voices(model, in_context),
        non_streaming_mode=non_streaming_mode,
        max_new_tokens=MAX_NEW_TOKENS,
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_voices_are_the_same(variant, ours, official):
    for in_context in (True, False):
        mine, theirs = our_voices(ours(variant), in_context), official_voices(official(variant), in_context)
        for voice, item in zip(mine, theirs, strict=True):
            np.testing.assert_allclose(voice.x_vector, item.ref_spk_embedding.numpy(), rtol=0, atol=1e-5)
            if in_context:
                np.testing.assert_array_equal(voice.codes, item.ref_code.numpy())
                assert voice.text == item.ref_text
            else:
                assert voice.codes is voice.text is item.ref_code is None


@both_modes
@both_ways
@pytest.mark.parametrize("variant", VARIANTS)
def test_two_voices_in_a_batch(variant, in_context, non_streaming_mode, ours, official):
    model, reference = ours(variant, **ENDING), official(variant, **ENDING)
    voices = official_voices(reference, in_context)
    theirs = official_speech(
        reference,
        TEXTS,
        LANGUAGES,
        voice_clone_prompt=voices,
        non_streaming_mode=non_streaming_mode,
        max_new_tokens=MAX_NEW_TOKENS,
    )
    check_same_speech(_spoken(model, in_context, non_streaming_mode), theirs, model.config.codec.frame_samples)


@both_modes
@both_ways
@pytest.mark.parametrize("variant", VARIANTS)
def test_streams_are_the_same(variant, in_context, non_streaming_mode, ours):
    """As the whole run, which the test above holds against the official package; a text in pieces too."""
    model = ours(variant, **ENDING)
    speeches, voices = _spoken(model, in_context, non_streaming_mode), our_voices(model, in_context)
    for text, language, voice, whole in zip(TEXTS, LANGUAGES, voices, speeches, strict=True):
        texts = [text] if non_streaming_mode else [text, (text[start : start + 5] for start in range(0, len(text), 5))]
        for given in texts:
            chunks = list(
                model.stream_voice_clone(
                    given,
                    language,
                    voice_clone_prompt=voice,
                    non_streaming_mode=non_streaming_mode,
                    max_new_tokens=MAX_NEW_TOKENS,
                    **GREEDY,
                )
            )
            np.testing.assert_array_equal(np.concatenate([chunk.codes for chunk in chunks]), whole.codes)
            samples = np.concatenate([chunk.samples for chunk in chunks])
            # Shorter chunks are summed in another order, and drawn weights let that grow to 1.2e-5.
            np.testing.assert_allclose(samples, whole.samples, rtol=0, atol=2e-5)
            assert [chunk.finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + [whole.finish_reason]


def test_rows_end_early_and_late(ours):
    """The tests above need both."""
    speeches = [speech for variant in VARIANTS for speech in _spoken(ours(variant, **ENDING), True, False)]
    assert {speech.finish_reason for speech in speeches} == {"stop", "length"}
    assert len({len(speech.codes) for speech in speeches}) >= 3


@pytest.mark.parametrize(("frames", "surplus"), [(7, 1), (6, 0)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_official_cut_by_option(variant, frames, surplus, ours, official):
    """After 15 of 22 frames it leaves a sample of the reference, for int(15 / 22 × samples) is one too few."""
    model, random = ours(variant), np.random.RandomState(7)
    config = model.config
    shape = 15, config.talker.num_codebooks
    codes = random.randint(0, config.codec.encoder.codebook_size, shape).astype(np.int32)
    x_vector = random.standard_normal(config.speaker_encoder.x_vector_width).astype(np.float32)
    voice, options = VoicePrompt(x_vector, codes, REFERENCE_TEXTS[0]), {"max_new_tokens": frames + 1}
    theirs = official_speech(official(variant), TEXTS, LANGUAGES, voice_clone_prompt=[official_voice(voice)], **options)
    exact = our_speech(model, TEXTS, LANGUAGES, voice_clone_prompt=voice, **options)
    check_same_speech(exact, theirs, config.codec.frame_samples)
    speeches = our_speech(model, TEXTS, LANGUAGES, voice_clone_prompt=voice, official_decoding=True, **options)
    for speech, wav in zip(speeches, theirs.wavs, strict=True):
        assert speech.samples.shape == wav.shape == (frames * config.codec.frame_samples + surplus,)
        np.testing.assert_allclose(speech.samples, wav, rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> list[Any]:
    """A stereo file of 16 kHz, and samples of 22,050 Hz: of two rates, the official package encodes one by one."""
    path = tmp_path_factory.mktemp("recordings") / "stereo.wav"
    left, right = speech_like(11_003, 3), speech_like(11_003, 4)
    soundfile.write(path, np.stack([left, right], axis=1), 16_000)
    return [str(path), (speech_like(13_001, 5), 22_050)]


def test_recordings_given_with_the_texts(ours, official, recordings):
    """Of any kind and rate, one in context and one of the x-vector alone."""
    arguments = {
        "text": TEXTS,
        "language": LANGUAGES,
        "ref_audio": recordings,
        "ref_text": REFERENCE_TEXTS,
        "x_vector_only_mode": [False, True],
        "max_new_tokens": MAX_NEW_TOKENS,
    }
    model = ours("1.7B-Base", **ENDING)
    theirs = official_speech(official("1.7B-Base", **ENDING), **arguments)
    check_same_speech(our_speech(model, **arguments), theirs, model.config.codec.frame_samples)


@pytest.mark.parametrize("source", [0, 1], ids=["file", "samples"])
def test_one_recording_for_all_texts(source, ours, official, recordings):
    arguments = {
        "text": TEXTS,
        "ref_audio": recordings[source],
        "ref_text": REFERENCE_TEXTS[0],
        "non_streaming_mode": True,
        "max_new_tokens": 12,
    }
    model = ours("0.6B-Base", **ENDING)
    theirs = official_speech(official("0.6B-Base", **ENDING), **arguments)
    check_same_speech(our_speech(model, **arguments), theirs, model.config.codec.frame_samples)
