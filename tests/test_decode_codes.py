"""The codec's loops over utterances: references once per voice, any order, little on the device."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_tts_jax import Qwen3TTS, Request, VoicePrompt, codec_decoding
from qwen3_tts_jax.codec.decoder import decode
from qwen3_tts_jax.codec_decoding import LastVoices, decode_codes
from qwen3_tts_jax.convert.rules import codec_rules
from qwen3_tts_jax.streaming import decoding as stream_decoding
from tests.drawn_tree import drawn_tree
from tests.shapes import SMALL
from tests.small_checkpoint import write_small_checkpoint

MODEL = SMALL["1.7B-Base"]
CODEC = MODEL.codec
FRAME = CODEC.frame_samples

whole_decode = jax.jit(decode, static_argnums=1)


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(jnp.asarray, drawn_tree(codec_rules(CODEC))["codec"]["decoder"])


@pytest.fixture
def steps(monkeypatch):
    """Rows of each step of the decoder."""
    rows, step = [], codec_decoding.codec_step

    def noting(params, config, state, codes):
        rows.append(len(codes))
        return step(params, config, state, codes)

    monkeypatch.setattr(codec_decoding, "codec_step", noting)
    monkeypatch.setattr(stream_decoding, "codec_step", noting)
    return rows


def _codes(frames, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, CODEC.decoder.codebook_size, (frames, CODEC.num_codebooks)).astype(np.int32)


@pytest.mark.parametrize("together", [1, 3])
def test_references_of_any_lengths_are_heard_before_the_speech(params, monkeypatch, together):
    """Less than a chunk, whole chunks and between, twice the same, and none."""
    monkeypatch.setattr(codec_decoding, "codec_rows", lambda *_: together)
    references = [_codes(frames, seed=frames) for frames in (37, 0, 32, 37, 5, 49)]
    codes = [_codes(frames, seed=frames) for frames in (3, 20, 16, 31, 8, 12)]
    samples = decode_codes(params, CODEC, codes, references)
    for row, reference, speech in zip(samples, references, codes, strict=True):
        assert (row.dtype, row.shape) == (np.float32, (len(speech) * FRAME,))
        expected = whole_decode(params, CODEC.decoder, np.concatenate([reference, speech])[None])[0]
        np.testing.assert_allclose(row, expected[len(reference) * FRAME :], rtol=0, atol=1e-5)


@pytest.mark.parametrize("together", [1, 3])
def test_a_voice_is_heard_once_and_gives_the_same_samples(params, monkeypatch, steps, together):
    monkeypatch.setattr(codec_decoding, "codec_rows", lambda *_: together)
    reference, codes = _codes(70), [_codes(20, seed) for seed in range(together)]
    heard, many = LastVoices(), [reference] * together
    cold = decode_codes(params, CODEC, codes, many, voices=heard)
    # Four chunks of the reference; the other 6 frames are decoded with each utterance.
    assert steps == [together] * (4 + 2)
    warm = decode_codes(params, CODEC, codes, many, voices=heard)
    assert steps == [together] * (4 + 2 + 2)
    np.testing.assert_array_equal(cold, warm)
    # Beside others, too, one of whom was heard before and one was not.
    others = [*many[1:], _codes(90, 1)]
    np.testing.assert_array_equal(decode_codes(params, CODEC, codes, others, voices=heard)[:-1], cold[:-1])


def test_few_voices_are_kept(params, monkeypatch, steps):
    monkeypatch.setattr(codec_decoding, "_VOICES", 2)
    heard, voices = LastVoices(), [_codes(16, seed) for seed in range(3)]
    for voice in (0, 1, 0, 2, 0, 1):
        decode_codes(params, CODEC, [_codes(3)], [voices[voice]], voices=heard)
        assert len(heard) <= 2
    # The first is never the one that spoke longest ago; the second is forgotten once.
    assert len(steps) == 6 + 4


def test_a_model_hears_the_voice_of_its_requests_once(tmp_path, tokenizer_folder, steps):
    folder = write_small_checkpoint(tmp_path, MODEL, tokenizer_folder, eos_boost=-1.0)
    model = Qwen3TTS.from_pretrained(folder, dtype="float32")
    x_vector = np.ones(MODEL.speaker_encoder.x_vector_width, np.float32)
    voice = VoicePrompt(x_vector, _codes(50) % MODEL.code_predictor.codebook_size, "What it says.")
    requests = [Request(text, "english", voice=voice, max_frames=9) for text in ("One.", "Two.", "Three.")]
    speeches = model.synthesize(requests)
    # Three chunks of the reference, and one of each utterance with 2 frames before it.
    assert steps == [1] * (3 + 3)
    (alone,) = model.synthesize(requests[2:], utterances=[2], batch_size=3, fixed_shapes=True)
    np.testing.assert_array_equal(alone.samples, speeches[2].samples)
    assert len(steps) == 3 + 3 + 1
    # A stream hears all of the reference, in chunks of 16, 16, 16 and 2 frames, and after it 1, 2, 4 and 2 frames.
    steps.clear()
    streams = [list(model.stream(requests[0])) for _ in range(2)]
    assert steps == [1] * (4 + 4 + 4)
    batch = model.stream_batch(batch_size=1)
    batch.add(requests[0])
    streams.append([chunk for _ in range(4) for _, chunk in batch.step()])
    assert steps == [1] * (4 + 4 + 4 + 4)
    for chunks in streams:
        samples = np.concatenate([chunk.samples for chunk in chunks])
        np.testing.assert_allclose(samples, speeches[0].samples, rtol=0, atol=1e-5)


def test_voices_are_of_one_decoder(params):
    """That of other parameters hears them anew."""
    other = jax.tree.map(lambda leaf: leaf * 1.1, params)
    heard, reference, codes = LastVoices(), [_codes(16)], [_codes(3, 1)]
    for tree in (params, other, params):
        np.testing.assert_array_equal(
            decode_codes(tree, CODEC, codes, reference, voices=heard), decode_codes(tree, CODEC, codes, reference)
        )
        assert len(heard) == 1
    # A leaf of the same tree may be replaced, too.
    tree = jax.tree.map(lambda leaf: leaf, params)
    before = decode_codes(tree, CODEC, codes, reference, voices=heard)[0]
    tree["pre_conv"] = other["pre_conv"]
    after = decode_codes(tree, CODEC, codes, reference, voices=heard)
    np.testing.assert_array_equal(after, decode_codes(tree, CODEC, codes, reference))
    assert np.abs(after[0] - before).max() > 1e-3


def test_the_longest_are_decoded_together(params, monkeypatch, steps):
    """And are returned in the order that they came in."""
    monkeypatch.setattr(codec_decoding, "codec_rows", lambda *_: 2)
    codes = [_codes(frames, seed=frames) for frames in (3, 100, 5, 90)]
    samples = decode_codes(params, CODEC, codes)
    assert steps == [2] * (7 + 1)
    for row, speech in zip(samples, codes, strict=True):
        np.testing.assert_allclose(row, whole_decode(params, CODEC.decoder, speech[None])[0], rtol=0, atol=1e-5)


def test_arrays_are_fetched_a_few_behind():
    made = []

    def make():
        for number in range(9):
            made.append(number)
            yield jnp.full(1, number)

    found = []
    for array in codec_decoding.fetched(make()):
        assert isinstance(array, np.ndarray)
        found.append(int(array[0]))
        assert len(made) == min(len(found) + codec_decoding._STEPS_AHEAD, 9)
    assert found == list(range(9))
