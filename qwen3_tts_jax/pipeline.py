"""`Qwen3TTS`: text in, speech out. The only stateful object of the package: it holds a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import jax
import numpy as np

from qwen3_tts_jax import convert, hf_config
from qwen3_tts_jax.config import GenerationConfig, ModelConfig
from qwen3_tts_jax.prompt import PromptPlan, Request, plan_prompt
from qwen3_tts_jax.synthesis import Progress, decode_codes, make_codes
from qwen3_tts_jax.text import TextTokenizer


@dataclass(frozen=True)
class Speech:
    """One utterance.

    Attributes:
        samples: float32 [N] in [−1, 1].
        sample_rate: samples per second.
        codes: int32 [T, Q], the frames that `samples` were decoded from.
        finish_reason: "stop" where the model ended the utterance, "length" where the limit cut it.
    """

    samples: np.ndarray
    sample_rate: int
    codes: np.ndarray
    finish_reason: Literal["stop", "length"]

    @property
    def seconds(self) -> float:
        """Length of the audio in seconds."""
        return len(self.samples) / self.sample_rate


class Qwen3TTS:
    """A checkpoint ready to speak; make one with `from_pretrained`.

    Attributes:
        config: the checkpoint's `ModelConfig`, with the dtypes that it computes in.
        params: its parameter tree, usable with the functions of `generate` and `codec.decoder`.
        tokenizer: its text tokenizer.
    """

    def __init__(self, config: ModelConfig, params: dict[str, Any], tokenizer: TextTokenizer, *, chunk_frames: int = 8):
        """`chunk_frames` is how many frames are made between two looks at whether all rows have ended."""
        self.config, self.params, self.tokenizer = config, params, tokenizer
        self.chunk_frames = chunk_frames

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        dtype: str = "auto",
        codec_dtype: str = "float32",
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool | None = None,
        verify: bool = False,
        chunk_frames: int = 8,
        progress: Progress | None = None,
    ) -> Self:
        """Loads a checkpoint.

        Args:
            model: a folder in the published layout, a folder written by `qwen3-tts-jax convert`, a Hugging
                Face repo id, or a short name such as "0.6B-CustomVoice".
            dtype: of talker and code predictor: "float32", "bfloat16", or "auto", which is bfloat16 on GPU
                and TPU and float32 on a CPU, where products in bfloat16 are ten times slower.
            codec_dtype: of the codec.
            revision: branch, tag or commit on Hugging Face.
            cache_dir: where downloads are kept; Hugging Face's own cache by default.
            local_files_only: never ask the network; None lets the environment variable HF_HUB_OFFLINE decide.
            verify: compare the files' sha256 with the published ones first.
            chunk_frames: see `__init__`.
            progress: called as progress("load", bytes_done, bytes_total).

        Raises:
            FileNotFoundError: no such folder or repo, or files are missing.
            qwen3_tts_jax.config.ConfigError: a model that this package cannot run.
            qwen3_tts_jax.convert.CheckpointError: weights that do not fit the config, all errors at once.
        """
        if dtype == "auto":
            dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
        folder = convert.resolve(
            str(model), revision=revision, cache_dir=cache_dir, local_files_only=local_files_only, verify=verify
        )
        config = hf_config.read_folder(folder).with_dtypes(dtype, codec_dtype)
        tokenizer = TextTokenizer.from_folder(folder)
        report = None if progress is None else lambda done, total: progress("load", done, total)
        params = convert.load_checkpoint(folder, config, progress=report)
        return cls(config, params, tokenizer, chunk_frames=chunk_frames)

    # What the official package offers, under its names.

    def get_supported_speakers(self) -> list[str]:
        """Names of the preset voices, sorted; empty where the model has none."""
        return sorted(self.config.prompt.speakers)

    def get_supported_languages(self) -> list[str]:
        """Names of the languages, "auto" included, sorted. Dialects are left out, as in the official package."""
        return sorted(["auto", *(name for name in self.config.prompt.languages if "dialect" not in name)])

    def generate_custom_voice(
        self,
        text: str | list[str],
        speaker: str | list[str],
        language: str | list[str] | None = None,
        instruct: str | list[str] | None = None,
        non_streaming_mode: bool = True,
        *,
        seed: int = 0,
        **sampling: Any,
    ) -> tuple[list[np.ndarray], int]:
        """Speaks with a preset voice (CustomVoice models).

        Args:
            text: one text or several; the other arguments are one for all, or as many.
            speaker: a name of `get_supported_speakers`, in any case.
            language: a name of `get_supported_languages`, or a dialect; "auto" by default.
            instruct: how to speak, in words. The 0.6B model has no instructions: it warns and leaves them out.
            non_streaming_mode: True gives the model all the text at once, False one token per frame.
            seed: the same seed gives the same speech.
            **sampling: do_sample, top_k, top_p, temperature, repetition_penalty, subtalker_dosample,
                subtalker_top_k, subtalker_top_p, subtalker_temperature, max_new_tokens; where they are not
                given, the checkpoint's generation_config.json decides. As in the official package,
                max_new_tokens=N makes at most N − 1 frames.

        Returns:
            The waveforms (float32 [N] each) and their sample rate.

        Raises:
            ValueError: a bad argument, or a model of another kind.
        """
        self._require_type("custom_voice", "generate_custom_voice")
        requests = _requests(non_streaming_mode, text=text, speaker=speaker, language=language, instruct=instruct)
        return self._generate(requests, seed, sampling)

    def generate_voice_design(
        self,
        text: str | list[str],
        instruct: str | list[str],
        language: str | list[str] | None = None,
        non_streaming_mode: bool = True,
        *,
        seed: int = 0,
        **sampling: Any,
    ) -> tuple[list[np.ndarray], int]:
        """Speaks with a voice that `instruct` describes (VoiceDesign models); see `generate_custom_voice`."""
        self._require_type("voice_design", "generate_voice_design")
        requests = _requests(non_streaming_mode, text=text, language=language, instruct=instruct)
        return self._generate(requests, seed, sampling)

    def _require_type(self, model_type: str, method: str) -> None:
        if self.config.model_type != model_type:
            other = {
                "custom_voice": "use generate_custom_voice",
                "voice_design": "use generate_voice_design",
                "base": "it clones voices",
            }[self.config.model_type]
            raise ValueError(f"{method} needs a {model_type} model; this is a {self.config.model_type} model: {other}")

    def _generate(self, requests: list[Request], seed: int, sampling: dict[str, Any]) -> tuple[list[np.ndarray], int]:
        generation, max_frames = merge_sampling(self.config, sampling)
        requests = [replace(request, max_frames=max_frames) for request in requests]
        speeches = self.synthesize(requests, generation, seed)
        return [speech.samples for speech in speeches], self.config.codec.sample_rate

    # The general call.

    def synthesize(
        self,
        requests: Sequence[Request],
        sampling: GenerationConfig | None = None,
        seed: int = 0,
        *,
        batch_size: int = 32,
        official_codec_chunks: bool = False,
        progress: Progress | None = None,
    ) -> list[Speech]:
        """Speaks any number of requests, `batch_size` at a time.

        Utterance i draws from the key fold_in(seed, i), so its codes do not depend on its company.

        Args:
            requests: what to say, in which voice, and for how long at most.
            sampling: the checkpoint's own by default.
            seed: the same seed gives the same speech.
            batch_size: the most utterances in one batch.
            official_codec_chunks: decode as the official package does, in chunks of 300 frames that see 25
                frames before them, which differs from the exact decode beyond 24 s.
            progress: see `synthesis.Progress`.

        Raises:
            ValueError: a bad request, before anything is computed.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        plans = [plan_prompt(request, self.tokenizer, self.config) for request in requests]
        limits = [self._frame_limit(request, plan) for request, plan in zip(requests, plans, strict=True)]
        speeches: list[Speech] = []
        for first in range(0, len(plans), batch_size):
            rows = slice(first, first + batch_size)
            codes, ended = make_codes(
                self.params,
                self.config,
                sampling or self.config.generation,
                plans[rows],
                frame_limits=limits[rows],
                seed=seed,
                first_utterance=first,
                chunk_frames=self.chunk_frames,
                progress=progress,
            )
            samples = decode_codes(
                self.params["codec"]["decoder"],
                self.config.codec,
                codes,
                official_chunks=official_codec_chunks,
                progress=progress,
            )
            reasons = ["stop" if row else "length" for row in ended]
            rate = self.config.codec.sample_rate
            speeches += [Speech(*row) for row in zip(samples, [rate] * len(codes), codes, reasons, strict=True)]
        return speeches

    def _frame_limit(self, request: Request, plan: PromptPlan) -> int:
        limit = self.config.max_new_tokens - 1 if request.max_frames is None else request.max_frames
        return min(limit, self.config.talker.max_positions - len(plan.text_ids))


def merge_sampling(config: ModelConfig, options: dict[str, Any]) -> tuple[GenerationConfig, int | None]:
    """The official package's sampling arguments over a checkpoint's own; None leaves one as it is.

    Returns:
        The sampling, and the frame limit where `max_new_tokens` is given.

    Raises:
        TypeError: an unknown option.
        ValueError: an impossible value.
    """
    talker = {name: name for name in ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty")}
    predictor = {"subtalker_dosample": "do_sample"} | {
        f"subtalker_{name}": name for name in ("temperature", "top_k", "top_p")
    }
    known = [*talker, *predictor, "max_new_tokens"]
    for name in options:
        if name not in known:
            raise TypeError(f"unknown option {name!r}; there are {', '.join(known)}")

    def chosen(names: dict[str, str]) -> dict[str, Any]:
        return {names[name]: options[name] for name in names if options.get(name) is not None}

    generation = GenerationConfig(
        talker=replace(config.generation.talker, **chosen(talker)),
        code_predictor=replace(config.generation.code_predictor, **chosen(predictor)),
    )
    max_new_tokens = options.get("max_new_tokens")
    if max_new_tokens is not None and max_new_tokens < 2:
        raise ValueError(f"max_new_tokens must be at least 2 (it makes one frame fewer), got {max_new_tokens}")
    return generation, None if max_new_tokens is None else max_new_tokens - 1


def _requests(non_streaming_mode: bool, **columns: str | list[str] | None) -> list[Request]:
    """One request per text; every other column is one value for all or a list of the same length."""
    texts = columns["text"] if isinstance(columns["text"], list) else [columns["text"]]
    rows: dict[str, list] = {}
    for name, values in columns.items():
        values = values if isinstance(values, list) else [values]
        rows[name] = values * len(texts) if len(values) == 1 else values
    lengths = {name: len(values) for name, values in rows.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{name}={count}" for name, count in lengths.items())
        raise ValueError(f"batch lengths differ: {counts}; give one value for all texts or one per text")
    rows["language"] = [language or "auto" for language in rows["language"]]
    mode = "all_at_once" if non_streaming_mode else "as_it_comes"
    return [
        Request(**dict(zip(rows, values, strict=True)), text_mode=mode) for values in zip(*rows.values(), strict=True)
    ]
