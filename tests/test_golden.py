"""Speech against files that the official package made: greedy codes equal, samples within 1e-4. No PyTorch."""

import numpy as np
import pytest

from qwen3_tts_jax.arguments import merge_sampling
from qwen3_tts_jax.pipeline import Qwen3TTS
from qwen3_tts_jax.prompt import Request
from tests.golden_speech import GOLDENS, GREEDY, voice
from tests.shapes import SMALL
from tests.small_checkpoint import write_small_checkpoint


def _numbered(voices):
    return [(row, *given) for row, given in enumerate(voices)]


@pytest.mark.filterwarnings("ignore:.*takes no instruct")
@pytest.mark.parametrize("golden", GOLDENS, ids=lambda golden: golden.name)
def test_speech_equals_the_official_package(golden, tmp_path, tokenizer_folder):
    folder = write_small_checkpoint(
        tmp_path / "model", SMALL[golden.variant], tokenizer_folder, eos_boost=golden.eos_boost
    )
    model = Qwen3TTS.from_pretrained(folder, dtype="float32")
    arguments, voices = dict(golden.arguments), [voice(golden.variant, *row) for row in _numbered(golden.voices)]
    wavs, rate = getattr(model, golden.method)(
        **arguments, **GREEDY, **({"voice_clone_prompt": voices} if voices else {})
    )
    assert rate == 24_000

    generation, frames = merge_sampling(model.config, GREEDY | {"max_new_tokens": arguments.pop("max_new_tokens")})
    at_once = arguments.pop("non_streaming_mode", golden.method != "generate_voice_clone")
    mode = "all_at_once" if at_once else "as_it_comes"
    if voices:
        arguments["voice"] = voices
    rows = [dict(zip(arguments, values, strict=True)) for values in zip(*arguments.values(), strict=True)]
    speeches = model.synthesize([Request(**row, text_mode=mode, max_frames=frames) for row in rows], generation)
    with np.load(golden.path) as expected:
        for row, speech in enumerate(speeches):
            codes = expected[f"codes_{row}"]
            np.testing.assert_array_equal(speech.codes, codes)
            assert speech.finish_reason == ("length" if len(codes) == frames else "stop")
            np.testing.assert_array_equal(speech.samples, wavs[row])
            np.testing.assert_allclose(speech.samples, expected[f"samples_{row}"], atol=1e-4)
            assert len(speech.samples) == len(codes) * model.config.codec.frame_samples
    lengths = {len(speech.codes) for speech in speeches}
    assert len(lengths) > 1 or not golden.eos_boost
