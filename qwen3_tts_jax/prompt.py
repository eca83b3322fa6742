"""A request → the ids that the talker's prompt is embedded from. NumPy only.

Every position of a prompt is the sum of a text channel (an id of the text vocabulary, embedded and
projected) and a codec channel (ids of the talker's and the code predictor's embeddings, one column per
codebook). With a speaker, a language and the text all at once:

    text   instruct …  role ×3  pad    pad         pad       pad         pad      bos  text …  eos  pad
    codec                       think  think_bos   language  think_eos   speaker  pad  pad …   pad  bos

With the language "auto" the prefix is [nothink, think_bos, think_eos]. Without a speaker there is no
position for one; a cloned voice has its x-vector there instead of an id. Where the text is read as it comes,
only its first token is in the prompt, over codec_bos; the rest follows one token per frame.

A voice cloned in context continues what its recording says, with the text all at once or as it comes:

    text   …  bos  reference text … text …  eos  pad  pad   pad …
    codec  …  pad  pad …                    pad  bos  reference frames …

    text   …  bos  reference text … text …       (what is left over follows one token per frame)
    codec  …  pad  bos  reference frames …
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, get_args

import numpy as np

from qwen3_tts_jax.config import ModelConfig, PromptConfig
from qwen3_tts_jax.text.tokenizer import CLOSING_IDS, REFERENCE_CLOSING_IDS, ROLE_IDS
from qwen3_tts_jax.voice_prompt import VoicePrompt, check_voice

if TYPE_CHECKING:
    from qwen3_tts_jax.text.durations import Durations

TextMode = Literal["all_at_once", "as_it_comes"]

NONE = -1
"""The id where a channel adds nothing to a position."""


class Tokenizer(Protocol):
    """What a prompt needs from `text.tokenizer.TextTokenizer`."""

    phonemes: Durations | None

    def assistant(self, text: str) -> list[int]: ...

    def reference(self, text: str) -> list[int]: ...

    def instruct(self, text: str) -> list[int]: ...


@dataclass(frozen=True)
class Request:
    """A text to speak, in one utterance or, with `split`, in several.

    Attributes:
        text: what is said.
        language: a language or dialect of the model, case-insensitive, or "auto".
        speaker: a voice of a custom-voice model, case-insensitive; without one the model chooses a voice.
        instruct: how to say it (custom voice) or who says it (voice design), in words.
        text_mode: "all_at_once" puts the whole text into the prompt; "as_it_comes" feeds it to the
            talker one token per frame, the way the official package simulates a text that streams in.
        max_frames: the most frames (80 ms each in the published models) to generate; None is the model's own limit.
        voice: what a base model clones; without one it chooses a voice.
        split: approximate maximum length of one utterance, in text tokens (each some 0.2 s of speech). A longer text is
            spoken as several, which end where sentences do and do not hear each other; each has a frame limit
            of its own, 2 s plus 0.64 s per token. By default the text is one utterance. Models that read phonemes
            (mini) always speak sentence by sentence.
    """

    text: str
    language: str = "auto"
    speaker: str | None = None
    instruct: str | None = None
    text_mode: TextMode = "all_at_once"
    max_frames: int | None = None
    voice: VoicePrompt | None = None
    split: int | None = None

    def __post_init__(self) -> None:
        """Raises a TypeError for a text or an instruction that is not a str."""
        for name in ("text", "instruct"):
            value = getattr(self, name)
            if not isinstance(value, str) and (name, value) != ("instruct", None):
                raise TypeError(f"{name} must be a str, got {value!r}")


@dataclass(frozen=True, eq=False)
class PromptPlan:
    """The prompt of one utterance, in ids.

    Attributes:
        text_ids: int32 [T], the text channel; `NONE` where it adds nothing.
        codes: int32 [T, Q], the codec channel: column 0 are ids of the talker's codec embedding (codes,
            control tokens, languages, speakers), column q ≥ 1 codes of the code predictor's embedding
            q − 1; `NONE` where a codebook adds nothing.
        trailing_text_ids: int32 [U]; the talker's input after frame k also gets entry k, and `tts_pad`
            once they are used up.
        x_vector: float32 [D] of a cloned voice.
        speaker_position: where the codec channel is `x_vector` alone.
    """

    text_ids: np.ndarray
    codes: np.ndarray
    trailing_text_ids: np.ndarray
    x_vector: np.ndarray | None = None
    speaker_position: int = NONE


class PromptBatch(NamedTuple):
    """Prompts padded on the right to one length T, and their trailing texts to one length U.

    A named tuple, so that it is a JAX tree without this module importing JAX.

    Attributes:
        text_ids: int32 [B, T]; `NONE` in the padding.
        codes: int32 [B, T, Q]; `NONE` in the padding.
        lengths: int32 [B], positions of each prompt without the padding.
        trailing_text_ids: int32 [B, U], filled up with `tts_pad`.
        x_vectors: float32 [B, D], zeros in rows without one; None where no row has one.
        speaker_position: int32 [B], where x_vectors are added; `NONE` in rows without one.
    """

    text_ids: np.ndarray
    codes: np.ndarray
    lengths: np.ndarray
    trailing_text_ids: np.ndarray
    x_vectors: np.ndarray | None
    speaker_position: np.ndarray


MAX_SEED = 2**31 - 1


def check_seed(seed: Any, name: str = "seed") -> None:
    """Raises a ValueError unless a seed, or an utterance's number, is a whole number 0 … 2³¹ − 1."""
    check_whole(name, seed)
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"{name} must be 0 … {MAX_SEED}, got {seed}")


def check_whole(name: str, value: Any, least: int | None = None) -> None:
    """Refuses a count below `least` or not whole: the device would round it down, and the host wait for the rest.

    Raises:
        ValueError: names it and its value.
    """
    try:
        operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, got {value!r}") from None
    if least is not None and value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def validate(request: Request, config: ModelConfig) -> None:
    """Refuses a request that the model cannot speak.

    Raises:
        ValueError: an empty text, an unknown language or speaker (the message lists what there is), a
            speaker or voice given to the wrong kind of model, an unknown text mode, or a frame limit that is
            below 1 or no whole number.
    """
    if not request.text.strip():
        raise ValueError("the text is empty; give at least one character that can be spoken")
    if request.text_mode not in get_args(TextMode):
        raise ValueError(f"unknown text_mode {request.text_mode!r}; there are {', '.join(get_args(TextMode))}")
    if request.max_frames is not None:
        check_whole("max_frames", request.max_frames, least=1)
    languages = config.prompt.languages
    if str(request.language).lower() not in ("auto", *languages):
        raise ValueError(f"unknown language {request.language!r}; there are auto, {', '.join(sorted(languages))}")
    speakers = config.prompt.speakers
    if request.speaker not in (None, ""):
        if not speakers:
            raise ValueError(
                f"this {config.model_type} model has no speakers, got speaker={request.speaker!r}; "
                "a custom_voice model has them"
            )
        if str(request.speaker).lower() not in speakers:
            raise ValueError(f"unknown speaker {request.speaker!r}; there are {', '.join(sorted(speakers))}")
    if request.voice is not None:
        check_voice(request.voice, config)


def plan_prompt(request: Request, tokenizer: Tokenizer, config: ModelConfig) -> PromptPlan:
    """The prompt of `request`, position by position as the official `generate` builds it.

    Raises:
        ValueError: as `validate`, or the prompt and one frame do not fit the talker's context.

    Warns:
        UserWarning: `instruct` was given to a model that was not trained with instructions; it is dropped.
    """
    validate(request, config)
    ids = config.prompt
    instruct = tokenizer.instruct(request.instruct) if request.instruct else []
    if instruct and not config.supports_instruct:
        warnings.warn(
            f"this model ({config.model_size} {config.model_type}) takes no instruct; it is dropped",
            UserWarning,
            stacklevel=2,
        )
        instruct = []
    wrapped = tokenizer.assistant(request.text)
    text = wrapped[ROLE_IDS:-CLOSING_IDS]
    voice = request.voice
    if voice is not None and voice.codes is not None:
        text = [*tokenizer.reference(voice.text)[ROLE_IDS:-REFERENCE_CLOSING_IDS], *text]
        frames = voice.codes
    else:
        frames = np.empty((0, config.talker.num_codebooks), np.int32)

    # The text channel of each position, and the codec channel's column 0.
    opening = [(token, NONE) for token in instruct + wrapped[:ROLE_IDS]]
    control = _language_codes(request, ids)
    speaker_position = NONE
    if voice is not None:
        speaker_position = len(opening) + len(control)
        control.append(NONE)
    control += [*_speaker_codes(request, ids), ids.codec_pad]
    positions = opening + [(ids.tts_pad, code) for code in control[:-1]] + [(ids.tts_bos, control[-1])]
    spoken = [*text, ids.tts_eos]
    if request.text_mode == "all_at_once":
        positions += [(token, ids.codec_pad) for token in spoken]
        spoken = []
    # The text that is left goes over codec_bos and the reference's frames, as far as they reach.
    codec = [ids.codec_bos, *frames[:, 0].tolist()]
    over, trailing = spoken[: len(codec)], spoken[len(codec) :]
    over += [ids.tts_pad] * (len(codec) - len(over))
    positions += zip(over, codec, strict=True)

    if len(positions) + 1 > config.talker.max_positions:
        raise ValueError(
            f"the prompt has {len(positions)} tokens (text {len(text)}, instruct {len(instruct)}, reference frames "
            f"{len(frames)}); with one frame it exceeds the model's context of {config.talker.max_positions}: "
            "speak it in parts (split=100)"
        )
    text_ids, first_codes = np.array(positions, np.int32).T
    codes = np.full((len(positions), config.talker.num_codebooks), NONE, np.int32)
    codes[:, 0] = first_codes
    codes[len(positions) - len(frames) :, 1:] = frames[:, 1:]
    x_vector = None if voice is None else voice.x_vector
    trailing_ids = np.array(trailing, np.int32)
    return PromptPlan(np.ascontiguousarray(text_ids), codes, trailing_ids, x_vector, speaker_position)


def _language_codes(request: Request, ids: PromptConfig) -> list[int]:
    language = str(request.language).lower()
    if language in ("chinese", "auto") and request.speaker:
        language = ids.dialects.get(request.speaker.lower(), language)
    if language == "auto":
        return [ids.codec_nothink, ids.codec_think_bos, ids.codec_think_eos]
    return [ids.codec_think, ids.codec_think_bos, ids.languages[language], ids.codec_think_eos]


def _speaker_codes(request: Request, ids: PromptConfig) -> list[int]:
    return [ids.speakers[request.speaker.lower()]] if request.speaker else []


def batch_plans(
    plans: Sequence[PromptPlan],
    *,
    tts_pad: int,
    length: int | None = None,
    trailing_length: int | None = None,
) -> PromptBatch:
    """Pads prompts to one length T, and their trailing texts to one length U.

    Args:
        plans: at least one, all with the same number of codebooks.
        tts_pad: the text id that fills up the trailing texts (`PromptConfig.tts_pad`).
        length: T; None takes the longest prompt's.
        trailing_length: U; None takes the longest trailing text's, which may be 0.

    Raises:
        ValueError: no plans, or one that is longer than `length` or `trailing_length`.
    """
    if not plans:
        raise ValueError("no prompts to batch; give at least one")
    longest = max(len(plan.text_ids) for plan in plans)
    longest_trailing = max(len(plan.trailing_text_ids) for plan in plans)
    length = longest if length is None else length
    trailing_length = longest_trailing if trailing_length is None else trailing_length
    if longest > length:
        raise ValueError(f"a prompt of {longest} tokens does not fit length={length}")
    if longest_trailing > trailing_length:
        raise ValueError(f"{longest_trailing} trailing tokens do not fit trailing_length={trailing_length}")

    batch, num_codebooks = len(plans), plans[0].codes.shape[1]
    text_ids = np.full((batch, length), NONE, np.int32)
    codes = np.full((batch, length, num_codebooks), NONE, np.int32)
    trailing_text_ids = np.full((batch, trailing_length), tts_pad, np.int32)
    lengths = np.array([len(plan.text_ids) for plan in plans], np.int32)
    speaker_position = np.full(batch, NONE, np.int32)
    widths = {len(plan.x_vector) for plan in plans if plan.x_vector is not None}
    x_vectors = np.zeros((batch, *widths), np.float32) if widths else None
    for row, plan in enumerate(plans):
        text_ids[row, : lengths[row]] = plan.text_ids
        codes[row, : lengths[row]] = plan.codes
        trailing_text_ids[row, : len(plan.trailing_text_ids)] = plan.trailing_text_ids
        if plan.x_vector is not None:
            x_vectors[row] = plan.x_vector
            speaker_position[row] = plan.speaker_position
    return PromptBatch(text_ids, codes, lengths, trailing_text_ids, x_vectors, speaker_position)
