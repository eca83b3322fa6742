"""Teacher forcing in one pass against the logits that the official package's own decoding steps compute."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
import torch

from qwen3_tts_jax.convert import load_params
from qwen3_tts_jax.prompt import Request, batch_plans, plan_prompt
from qwen3_tts_jax.text.tokenizer import TextTokenizer
from qwen3_tts_jax.train.score import score, teacher_force
from qwen3_tts_jax.voice_prompt import VoicePrompt
from tests.parity.oracle import quiet
from tests.parity.test_prompt_parity import official_voice
from tests.shapes import SMALL

TEXTS = ["Hello, world.", "这是一个较长的中文句子，用来测试不同的长度。", "Ein kurzer Satz mit Umlauten: äöü!"]
LANGUAGES = ["english", "chinese", "auto"]
FRAMES = 9
GREEDY = {"do_sample": False, "subtalker_dosample": False, "repetition_penalty": 1.05, "max_new_tokens": FRAMES + 1}


def watch_steps(model, call):
    """Runs `call()`: the codes of each row, and the logits of every step: [B, T + 1, V] and [B, T, Q − 1, V']."""
    seen = SimpleNamespace(codes=[], first=[], rest=[])
    generate = model.generate

    def noting(**options):
        result = generate(**options)
        seen.codes += [codes.numpy() for codes in result[0]]
        return result

    talker, predictor = model.talker, model.talker.code_predictor
    hooks = [
        talker.register_forward_hook(lambda _, __, output: seen.first.append(output.logits[:, -1].numpy())),
        predictor.register_forward_hook(lambda _, __, output: seen.rest.append(output.logits[:, -1].numpy())),
    ]
    try:
        with pytest.MonkeyPatch.context() as patch, quiet(), torch.no_grad():
            patch.setattr(model, "generate", noting)
            call()
    finally:
        for hook in hooks:
            hook.remove()
    first, rest = np.stack(seen.first, axis=1), np.stack(seen.rest, axis=1)
    return seen.codes, first, rest.reshape(len(first), first.shape[1] - 1, -1, rest.shape[-1])


def voices(config, in_context):
    rng = np.random.default_rng(4)
    for frames in (5, 8, 3):
        x_vector = rng.normal(size=config.speaker_encoder.x_vector_width).astype(np.float32)
        codes = rng.integers(0, config.code_predictor.codebook_size, (frames, config.talker.num_codebooks))
        yield VoicePrompt(x_vector, codes.astype(np.int32), "What it says.") if in_context else VoicePrompt(x_vector)


def speak(kind, text_mode, model, config):
    """The official package says the texts, and the requests that are the same to us."""
    at_once = text_mode == "all_at_once"
    if kind == "custom_voice":
        speakers, instructs = ["Ryan", "eric", "serena"], ["Speak gladly.", "", "langsam und leise"]
        fields = [{"speaker": s, "instruct": i} for s, i in zip(speakers, instructs, strict=True)]
        arguments = (TEXTS, speakers, LANGUAGES, instructs, at_once)
        seen = watch_steps(model.model, lambda: model.generate_custom_voice(*arguments, **GREEDY))
    else:
        fields = [{"voice": voice} for voice in voices(config, kind == "in_context")]
        items = [official_voice(each["voice"]) for each in fields]
        options = {"voice_clone_prompt": items, "non_streaming_mode": at_once, **GREEDY}
        seen = watch_steps(model.model, lambda: model.generate_voice_clone(TEXTS, LANGUAGES, **options))
    rows = zip(TEXTS, LANGUAGES, fields, strict=True)
    return seen, [Request(text, language, text_mode=text_mode, **each) for text, language, each in rows]


@pytest.mark.parametrize(
    ("variant", "kind", "text_mode"),
    [
        ("1.7B-CustomVoice", "custom_voice", "all_at_once"),
        ("1.7B-Base", "x_vector", "as_it_comes"),
        ("1.7B-Base", "in_context", "as_it_comes"),
        ("0.6B-Base", "in_context", "all_at_once"),
    ],
)
def test_one_pass_gives_the_logits_of_official_decoding(variant, kind, text_mode, checkpoint, official):
    folder, config = checkpoint(variant), SMALL[variant].with_dtypes("float32")
    (codes, first, rest), requests = speak(kind, text_mode, official(variant), config)
    params = load_params(folder, config, ["talker", "code_predictor"])
    tokenizer = TextTokenizer.from_folder(folder)
    plans = [plan_prompt(request, tokenizer, config) for request in requests]
    batch = batch_plans(plans, tts_pad=config.prompt.tts_pad)
    counts = [len(row) for row in codes]
    assert max(counts) == FRAMES
    padded = np.full((3, FRAMES, config.talker.num_codebooks), -1, np.int32)
    for row, own in enumerate(codes):
        padded[row, : len(own)] = own
    forced = jax.jit(teacher_force, static_argnums=1)(params, config, batch, padded)
    assert np.abs(first).max() > 1
    for row, count in enumerate(counts):
        np.testing.assert_allclose(forced.logits[row, :count], first[row, :count], atol=1e-4)
        np.testing.assert_allclose(forced.code_logits[row, :count], rest[row, :count], atol=1e-4)

    # The official predictor, over all frames of a row at once as its fine-tuning runs it, but on the right states.
    states = torch.tensor(np.asarray(forced.hidden[0, : counts[0]]))
    with quiet(), torch.no_grad():
        logits, _ = official(variant).model.talker.forward_sub_talker_finetune(torch.tensor(codes[0]).long(), states)
    np.testing.assert_allclose(forced.code_logits[0, : counts[0]], logits.numpy(), atol=1e-4)
    every = torch.log_softmax(logits, -1).gather(-1, torch.tensor(codes[0][:, 1:]).long()[..., None])[..., 0]
    scores = jax.jit(score, static_argnums=1)(params, config, batch, padded)
    np.testing.assert_allclose(scores[0, : counts[0], 1:], every.numpy(), atol=1e-4)
