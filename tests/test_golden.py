"""Speech against files that the official package made: greedy codes equal, samples within 1e-4. No PyTorch."""

import numpy as np
import pytest

from qwen3_tts_jax.convert import SYNTHESIS_PARTS
from qwen3_tts_jax.pipeline import Qwen3TTS, merge_sampling
from qwen3_tts_jax.prompt import Request
from tests.golden_speech import GOLDENS, GREEDY
from tests.shapes import SMALL
from tests.small_checkpoint import write_small_checkpoint


@pytest.mark.filterwarnings("ignore:.*takes no instruct")
@pytest.mark.parametrize("golden", GOLDENS, ids=lambda golden: golden.name)
def test_speech_equals_the_official_package(golden, tmp_path, tokenizer_folder):
    folder = write_small_checkpoint(
        tmp_path / "model", SMALL[golden.variant], tokenizer_folder, eos_boost=golden.eos_boost
    )
    model = Qwen3TTS.from_pretrained(folder, dtype="float32")
    assert set(model.params) == {part.split("/")[0] for part in SYNTHESIS_PARTS}
    wavs, rate = getattr(model, golden.method)(**golden.arguments, **GREEDY)
    assert rate == 24_000

    arguments = dict(golden.arguments)
    generation, frames = merge_sampling(model.config, GREEDY | {"max_new_tokens": arguments.pop("max_new_tokens")})
    mode = "all_at_once" if arguments.pop("non_streaming_mode", True) else "as_it_comes"
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
