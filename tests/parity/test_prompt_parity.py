"""Prompt plans, embedded with the official model's weights, against the prompts that it builds itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen3_tts_jax.prompt import NONE, PromptBatch, Request, batch_plans, plan_prompt
from qwen3_tts_jax.text.tokenizer import TextTokenizer
from qwen3_tts_jax.voice_prompt import VoicePrompt
from tests.parity.oracle import import_official, quiet
from tests.shapes import SMALL

CUSTOM_VOICES = ("0.6B-CustomVoice", "1.7B-CustomVoice")
BASES = ("0.6B-Base", "1.7B-Base")
TEXT_MODES = ("all_at_once", "as_it_comes")
TEXTS = (
    "Guten Tag! Wie geht's?",
    "好",
    "\n\nparseHTTPResponse said <|im_end|>\nand then some more, a long way longer than the others.",
)


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> TextTokenizer:
    return TextTokenizer.from_folder(tokenizer_folder)


class _Captured(Exception):
    def __init__(self, arguments: dict[str, Any]):
        self.arguments = arguments


def official_prompt(model: Any, requests: Sequence[Request], through_package: bool = True) -> dict[str, np.ndarray]:
    """What the official package hands to its talker for one batch of requests of equal text mode.

    `through_package=False` enters below its checks of names, which refuse dialects as languages and know
    no way to run a Base model without a reference.
    """

    def capture(**arguments: Any) -> None:
        raise _Captured(arguments)

    def column(name: str) -> list[Any]:
        return [getattr(request, name) for request in requests]

    (text_mode,) = {request.text_mode for request in requests}
    options: dict[str, Any] = {"non_streaming_mode": text_mode == "all_at_once"}
    with pytest.MonkeyPatch.context() as patch, quiet():
        patch.setattr(model.model.talker, "generate", capture)
        if not through_package:
            options |= {"languages": column("language"), "speakers": column("speaker")}
            texts = [model._build_assistant_text(text) for text in column("text")]
            options["input_ids"] = model._tokenize_texts(texts)
            generate = model.model.generate
        else:
            options |= {"text": column("text"), "language": column("language")}
            match model.model.tts_model_type:
                case "custom_voice":
                    generate = model.generate_custom_voice
                    options |= {"speaker": column("speaker"), "instruct": column("instruct")}
                case "voice_design":
                    generate, options["instruct"] = model.generate_voice_design, column("instruct")
                case "base":
                    generate = model.generate_voice_clone
                    options["voice_clone_prompt"] = [official_voice(voice) for voice in column("voice")]
        with pytest.raises(_Captured) as captured:
            generate(**options)
    names = ("inputs_embeds", "attention_mask", "trailing_text_hidden", "tts_pad_embed")
    return {name: captured.value.arguments[name].float().numpy() for name in names}


def official_voice(voice: VoicePrompt) -> Any:
    """The official package's item for a voice."""
    import_official()
    import torch
    from qwen_tts.inference.qwen3_tts_model import VoiceClonePromptItem

    return VoiceClonePromptItem(
        ref_code=None if voice.codes is None else torch.from_numpy(voice.codes.astype(np.int64)),
        ref_spk_embedding=torch.from_numpy(voice.x_vector),
        x_vector_only_mode=voice.codes is None,
        icl_mode=voice.codes is not None,
        ref_text=voice.text,
    )


class Embedder:
    """The embeddings of a plan in NumPy, with the weights of the official model."""

    def __init__(self, model: Any):
        talker = model.model.talker
        self.weights = {
            name: tensor.detach().float().numpy()
            for name, tensor in talker.state_dict().items()
            if "embedding" in name or "text_projection" in name
        }
        self.num_codebooks = model.model.config.talker_config.num_code_groups

    def text(self, ids: np.ndarray) -> np.ndarray:
        """[...] → [..., D], zeros for `NONE`."""
        hidden = self.weights["model.text_embedding.weight"][ids]
        hidden = self._linear("linear_fc1", hidden)
        hidden = self._linear("linear_fc2", hidden / (1 + np.exp(-hidden)))
        return np.where(ids[..., None] == NONE, 0, hidden)

    def _linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self.weights[f"text_projection.{name}.weight"].T + self.weights[f"text_projection.{name}.bias"]

    def codes(self, codes: np.ndarray) -> np.ndarray:
        """[..., Q] → [..., D], zeros for `NONE`."""
        tables = ["model.codec_embedding.weight"]
        tables += [f"code_predictor.model.codec_embedding.{q}.weight" for q in range(self.num_codebooks - 1)]
        assert codes.shape[-1] == len(tables)
        return sum(
            np.where(codes[..., q, None] == NONE, 0, self.weights[name][codes[..., q]]) for q, name in enumerate(tables)
        )


def assert_equal_prompts(batch: PromptBatch, model: Any, theirs: dict[str, np.ndarray], tts_pad: int) -> None:
    embed = Embedder(model)
    ours = embed.text(batch.text_ids) + embed.codes(batch.codes)
    cloned = np.flatnonzero(batch.speaker_position != NONE)
    if len(cloned):
        ours[cloned, batch.speaker_position[cloned]] += batch.x_vectors[cloned]
    # The official package pads on the left.
    np.testing.assert_array_equal(batch.lengths, theirs["attention_mask"].sum(axis=1))
    for row, length in enumerate(batch.lengths):
        expected = theirs["inputs_embeds"][row, -length:]
        assert theirs["attention_mask"][row, -length:].all()
        np.testing.assert_allclose(ours[row, :length], expected, rtol=0, atol=1e-5)
        # A wrong row of an embedding is far off, so the comparison above can tell ids apart.
        assert np.abs(expected).mean() > 0.1

    trailing = theirs["trailing_text_hidden"]
    padding = max(trailing.shape[1] - batch.trailing_text_ids.shape[1], 0)
    padded = np.pad(batch.trailing_text_ids, ((0, 0), (0, padding)), constant_values=tts_pad)
    np.testing.assert_allclose(embed.text(padded), trailing, rtol=0, atol=1e-5)
    pad_embed = embed.text(np.array([[tts_pad]]))
    np.testing.assert_allclose(pad_embed, theirs["tts_pad_embed"], rtol=0, atol=1e-5)


def check(
    model: Any, variant: str, tokenizer: TextTokenizer, requests: Sequence[Request], through_package: bool = True
) -> None:
    config = SMALL[variant]
    batch = batch_plans(
        [plan_prompt(request, tokenizer, config) for request in requests], tts_pad=config.prompt.tts_pad
    )
    theirs = official_prompt(model, requests, through_package)
    assert_equal_prompts(batch, model, theirs, config.prompt.tts_pad)


@pytest.mark.parametrize("text_mode", TEXT_MODES)
@pytest.mark.parametrize("variant", CUSTOM_VOICES)
def test_custom_voice(variant: str, text_mode: str, official: Callable[..., Any], tokenizer: TextTokenizer):
    model = official(variant)
    voices = zip(TEXTS, ("German", "auto", "english"), ("Ryan", "serena", "uncle_fu"), strict=True)
    requests = [Request(text, language, speaker, text_mode=text_mode) for text, language, speaker in voices]
    check(model, variant, tokenizer, requests)
    for request in requests:
        check(model, variant, tokenizer, [request])


@pytest.mark.parametrize("variant", CUSTOM_VOICES)
def test_custom_voice_without_a_speaker(variant: str, official: Callable[..., Any], tokenizer: TextTokenizer):
    voices = (("German", None), ("auto", ""), ("chinese", None), ("auto", "dylan"))
    requests = [Request(TEXTS[0], language, speaker) for language, speaker in voices]
    check(official(variant), variant, tokenizer, requests)


@pytest.mark.parametrize("text_mode", TEXT_MODES)
def test_custom_voice_with_instruct(text_mode: str, official: Callable[..., Any], tokenizer: TextTokenizer):
    requests = [
        Request(TEXTS[0], "german", "vivian", "Very sad.", text_mode),
        Request(TEXTS[1], "Auto", "dylan", None, text_mode),
        Request(TEXTS[2], "chinese", "sohee", "用特别愤怒的语气说", text_mode),
        Request(TEXTS[1], "japanese", "ono_anna", "", text_mode),
    ]
    check(official("1.7B-CustomVoice"), "1.7B-CustomVoice", tokenizer, requests)


def test_the_small_model_drops_instruct_as_the_official_one(official: Callable[..., Any], tokenizer: TextTokenizer):
    request = Request(TEXTS[0], "german", "vivian", "Very sad.")
    with pytest.warns(UserWarning, match="takes no instruct"):
        check(official("0.6B-CustomVoice"), "0.6B-CustomVoice", tokenizer, [request])


@pytest.mark.parametrize("text_mode", TEXT_MODES)
def test_voice_design(text_mode: str, official: Callable[..., Any], tokenizer: TextTokenizer):
    model = official("1.7B-VoiceDesign")
    voices = zip(TEXTS, ("GERMAN", "auto", "chinese"), ("An old man.", "", "童声"), strict=True)
    requests = [Request(text, language, instruct=instruct, text_mode=text_mode) for text, language, instruct in voices]
    check(model, "1.7B-VoiceDesign", tokenizer, requests)
    for request in requests:
        check(model, "1.7B-VoiceDesign", tokenizer, [request])


@pytest.mark.parametrize("language", ["auto", "chinese", "Chinese", "english"])
@pytest.mark.parametrize("speaker", ["eric", "Dylan", "ryan"])
def test_dialect_speakers(speaker: str, language: str, official: Callable[..., Any], tokenizer: TextTokenizer):
    request = Request(TEXTS[1], language, speaker)
    check(official("0.6B-CustomVoice"), "0.6B-CustomVoice", tokenizer, [request])


def test_every_speaker_and_language(official: Callable[..., Any], tokenizer: TextTokenizer):
    """Dialects by name too: only the package's check of names refuses them, the model knows them."""
    prompt = SMALL["1.7B-CustomVoice"].prompt
    requests = [Request(TEXTS[1], language, "ryan") for language in prompt.languages]
    requests += [Request(TEXTS[1], "beijing_dialect", speaker) for speaker in prompt.speakers]
    check(official("1.7B-CustomVoice"), "1.7B-CustomVoice", tokenizer, requests, through_package=False)


@pytest.mark.parametrize("text_mode", TEXT_MODES)
@pytest.mark.parametrize("variant", BASES)
def test_base_without_a_reference(variant: str, text_mode: str, official: Callable[..., Any], tokenizer: TextTokenizer):
    requests = [Request(TEXTS[0], "german", text_mode=text_mode), Request(TEXTS[2], text_mode=text_mode)]
    check(official(variant), variant, tokenizer, requests, through_package=False)


REFERENCE = "What the recording says, été."


def voice(variant: str, frames: int | None, seed: int = 0, text: str = REFERENCE) -> VoicePrompt:
    """Drawn; without frames of the x-vector alone."""
    random, config = np.random.RandomState(seed), SMALL[variant]
    x_vector = random.standard_normal(config.speaker_encoder.x_vector_width).astype(np.float32)
    if frames is None:
        return VoicePrompt(x_vector)
    shape = frames, config.talker.num_codebooks
    codes = random.randint(0, config.code_predictor.codebook_size, shape).astype(np.int32)
    return VoicePrompt(x_vector, codes, text)


@pytest.mark.parametrize("text_mode", TEXT_MODES)
@pytest.mark.parametrize("variant", BASES)
def test_clones(variant: str, text_mode: str, official: Callable[..., Any], tokenizer: TextTokenizer):
    """In context with less and with more frames than text, and of the x-vector alone, in batches and alone."""
    model = official(variant)
    voices = [voice(variant, 4), voice(variant, None, 1), voice(variant, 47, 2), voice(variant, 1, 3, "好")]
    languages = ("German", "auto", "english", "chinese")
    requests = [
        Request(text, language, text_mode=text_mode, voice=cloned)
        for text, language, cloned in zip([*TEXTS, TEXTS[0]], languages, voices, strict=True)
    ]
    check(model, variant, tokenizer, requests)
    check(model, variant, tokenizer, requests[1::-1])
    for request in requests:
        check(model, variant, tokenizer, [request])


@pytest.mark.parametrize("text_mode", TEXT_MODES)
@pytest.mark.parametrize("surplus", [-1, 0, 1, 2])
def test_clones_with_about_as_many_frames_as_text(
    surplus: int, text_mode: str, official: Callable[..., Any], tokenizer: TextTokenizer
):
    """`surplus` text tokens, the end among them, find no frame; at 0 the official branches meet."""
    text_tokens = len(tokenizer.encode(REFERENCE)) + len(tokenizer.encode(TEXTS[0])) + 1
    cloned = voice("1.7B-Base", text_tokens - 1 - surplus)
    request = Request(TEXTS[0], "french", text_mode=text_mode, voice=cloned)
    planned = plan_prompt(request, tokenizer, SMALL["1.7B-Base"])
    assert len(planned.trailing_text_ids) == (max(surplus, 0) if text_mode == "as_it_comes" else 0)
    check(official("1.7B-Base"), "1.7B-Base", tokenizer, [request])


def test_clones_in_every_language(official: Callable[..., Any], tokenizer: TextTokenizer):
    cloned = voice("0.6B-Base", 5)
    languages = ["auto", *SMALL["0.6B-Base"].prompt.languages]
    requests = [Request(TEXTS[1], language, voice=cloned) for language in languages]
    check(official("0.6B-Base"), "0.6B-Base", tokenizer, requests)


def test_a_text_that_merges_with_its_template(official: Callable[..., Any], tokenizer: TextTokenizer):
    """Reference and text are what lies between fixed positions, whatever the ids are."""
    cloned = voice("0.6B-Base", 5, text="\n\nHo<|im_end|>\n")
    request = Request(TEXTS[2], voice=cloned, text_mode="as_it_comes")
    check(official("0.6B-Base"), "0.6B-Base", tokenizer, [request])


def test_another_voice_does_not_pass(official: Callable[..., Any], tokenizer: TextTokenizer):
    """The comparison must notice one wrong code, x-vector or word of the reference."""
    model, config, cloned = official("1.7B-Base"), SMALL["1.7B-Base"], voice("1.7B-Base", 6)
    request = Request(TEXTS[0], voice=cloned)
    theirs = official_prompt(model, [request])
    codes, x_vector = cloned.codes.copy(), cloned.x_vector.copy()
    codes[5, 4] = (codes[5, 4] + 1) % config.code_predictor.codebook_size
    x_vector[7] += 1e-3
    others = [
        replace(cloned, codes=codes),
        replace(cloned, x_vector=x_vector),
        replace(cloned, text=REFERENCE.replace("says", "said")),
    ]
    for other in others:
        batch = batch_plans(
            [plan_prompt(replace(request, voice=other), tokenizer, config)], tts_pad=config.prompt.tts_pad
        )
        with pytest.raises(AssertionError, match="Not equal to tolerance"):
            assert_equal_prompts(batch, model, theirs, config.prompt.tts_pad)


def test_another_prompt_does_not_pass(official: Callable[..., Any], tokenizer: TextTokenizer):
    """The comparison above must notice one wrong id."""
    model, config = official("0.6B-CustomVoice"), SMALL["0.6B-CustomVoice"]
    request = Request(TEXTS[0], "german", "ryan")
    theirs = official_prompt(model, [request])
    for other in (replace(request, language="english"), replace(request, speaker="aiden")):
        batch = batch_plans([plan_prompt(other, tokenizer, config)], tts_pad=config.prompt.tts_pad)
        with pytest.raises(AssertionError, match="Not equal to tolerance"):
            assert_equal_prompts(batch, model, theirs, config.prompt.tts_pad)
