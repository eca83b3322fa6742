"""`Qwen3TTS`: a loaded checkpoint; text in, speech out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import jax
import numpy as np

from qwen3_tts_jax import audio, convert, generate, hf_config, sharding
from qwen3_tts_jax.arguments import as_list, make_requests, merge_sampling, pair_references, part_dtypes
from qwen3_tts_jax.attention import Choice, configure
from qwen3_tts_jax.codec import hopper
from qwen3_tts_jax.codec_decoding import LastVoices
from qwen3_tts_jax.config import ConfigError, GenerationConfig, ModelConfig
from qwen3_tts_jax.devices import automatic_dtype, default_device
from qwen3_tts_jax.prompt import Request, check_whole
from qwen3_tts_jax.quantize import quantize_leaf
from qwen3_tts_jax.speech import Progress, Speech
from qwen3_tts_jax.speech_tokenizer import SpeechTokenizer
from qwen3_tts_jax.streaming.batch import StreamBatch
from qwen3_tts_jax.streaming.codes import CHUNK_FRAMES
from qwen3_tts_jax.streaming.stream import stream
from qwen3_tts_jax.synthesis import synthesize_each
from qwen3_tts_jax.text.tokenizer import TextTokenizer
from qwen3_tts_jax.voice_prompt import VoicePrompt
from qwen3_tts_jax.voices import make_voices


class Qwen3TTS:
    """A checkpoint ready to speak; make one with `from_pretrained`.

    Attributes:
        config: the checkpoint's `ModelConfig`, with the dtypes that it computes in.
        params: its parameter tree, usable with the functions of `generate` and `codec.decoder`.
        tokenizer: its text tokenizer.
    """

    def __init__(self, config: ModelConfig, params: dict[str, Any], tokenizer: TextTokenizer, *, chunk_frames: int = 8):
        """`chunk_frames`, at least 1, is how many frames are made between two checks for rows that have ended.

        Raises:
            ValueError: `chunk_frames` is no whole number, or below 1.
        """
        check_whole("chunk_frames", chunk_frames, least=1)
        self.config, self.params, self.tokenizer = config, params, tokenizer
        self.chunk_frames = chunk_frames
        self._heard = LastVoices()

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        dtype: str | np.dtype | type = "auto",
        *,
        attention: Choice = "auto",
        weights: Literal["float", "int8"] = "float",
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool | None = None,
        verify: bool = False,
        chunk_frames: int = 8,
        mesh: jax.sharding.Mesh | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Loads a checkpoint.

        Args:
            model: "mini" (the small English voice in this package), a folder in the published layout, a folder
                written by `qwen3-tts-jax convert`, a Hugging Face repo id, or a short name such as
                "0.6B-CustomVoice".
            dtype: to compute in: "float32", "bfloat16", or "auto", which is bfloat16 on GPU and TPU and float32 on
                a CPU, where products in bfloat16 are ten times slower. A single dtype, `jnp.bfloat16` and the like
                included, sets talker and code predictor; parts can be named, as in
                "talker=bfloat16,code_predictor=float32" or "bfloat16,codec=bfloat16_3x". The codec defaults to float32;
                "bfloat16_3x" computes its decoder's convolutions as three products, for the fast units of accelerators,
                at 65 dB of float32 or better, and "bfloat16" as one, at 17 dB.
            attention: the form for many queries at once, in parts that compute in bfloat16: "cudnn" on NVIDIA GPUs,
                "pallas" on one TPU chip, "xla" anywhere, or "auto", which takes the kernel where there is one. "xla"
                also keeps the three-pass codec from using the kernels for Hopper GPUs (`codec.hopper`).
            weights: "int8" rounds those of the talker and the code predictor to a quarter of the size (see `quantize`).
                It saves memory, and time where that goes into reading weights: on accelerators, and on CPUs that
                speak a few utterances at a time. Codes are no longer those of the reference.
            revision: branch, tag or commit on Hugging Face.
            cache_dir: where downloads are kept; Hugging Face's own cache by default.
            local_files_only: never ask the network; None lets the environment variable HF_HUB_OFFLINE decide.
            verify: compare the files' sha256 with the published ones first.
            chunk_frames: see `__init__`.
            mesh: devices that share the work, from `sharding.make_mesh`; by default JAX's default device alone.
            progress: called as progress("load", bytes_done, bytes_total).

        Raises:
            ValueError: unknown `weights`, a bad `chunk_frames`, or a mesh whose `model` axis does not divide the
                key/value heads.
            FileNotFoundError: no such folder or repo, or files are missing.
            qwen3_tts_jax.config.ConfigError: a model that this package cannot run, unknown dtypes, or attention that
                this machine does not have.
            qwen3_tts_jax.convert.CheckpointError: weights that do not fit the config, all errors at once.
        """
        if weights not in ("float", "int8"):
            raise ValueError(f'weights must be "float" or "int8", got {weights!r}')
        dtypes = part_dtypes(dtype, automatic_dtype())
        folder = convert.resolve(
            str(model), revision=revision, cache_dir=cache_dir, local_files_only=local_files_only, verify=verify
        )
        config = hf_config.read_folder(folder).with_dtypes(dtypes["talker"], dtypes["codec"], dtypes["code_predictor"])
        devices = 1 if mesh is None else mesh.size
        config = configure(config, attention, devices)
        config = replace(config, codec=hopper.configure(config.codec, devices, kernels=attention != "xla"))
        config = generate.configure(config, default_device().platform, 1 if mesh is None else mesh.shape[sharding.DATA])
        tokenizer = TextTokenizer.from_folder(folder)
        if tokenizer.size > config.talker.text_vocab_size:
            raise ConfigError(
                f"{folder}: its tokenizer has {tokenizer.size} ids, but text_vocab_size in config.json is "
                f"{config.talker.text_vocab_size}: they are of different models"
            )
        placement = None if mesh is None else sharding.placement(mesh, config)
        report = None if progress is None else partial(progress, "load")
        parts = convert.PARTS if config.model_type == "base" else convert.SYNTHESIS_PARTS
        finish = quantize_leaf if weights == "int8" else None
        params = convert.load_checkpoint(folder, config, parts, report, placement, finish)
        return cls(config, params, tokenizer, chunk_frames=chunk_frames)

    @property
    def speech_tokenizer(self) -> SpeechTokenizer:
        """The codec, with the same parameters. Only Base models encode: others are loaded without its encoder."""
        return SpeechTokenizer(self.config.codec, self.params["codec"])

    # The methods of the official package, under its names.

    def get_supported_speakers(self) -> list[str]:
        """Names of the preset voices, sorted; empty where the model has none."""
        return sorted(self.config.prompt.speakers)

    def get_supported_languages(self) -> list[str]:
        """Names of the languages, "auto" included, sorted. Dialects are left out, as in the official package."""
        return sorted(["auto", *(name for name in self.config.prompt.languages if "dialect" not in name)])

    def generate_custom_voice(
        self,
        text: str | list[str],
        speaker: str | list[str | None] | None,
        language: str | list[str] | None = None,
        instruct: str | list[str] | None = None,
        non_streaming_mode: bool = True,
        *,
        split: int | None = None,
        seed: int = 0,
        official_decoding: bool = False,
        **sampling: Any,
    ) -> tuple[list[np.ndarray], int]:
        """Speaks with a preset voice (CustomVoice models).

        Args:
            text: one text or several; each other argument is one for all, or a list of as many. Models that read
                phonemes (mini) speak sentence by sentence.
            speaker: a name from `get_supported_speakers`, case-insensitive. With None or "" the model chooses the
                voice.
            language: a name from `get_supported_languages`, or a dialect; "auto" by default.
            instruct: how to speak, in words. The 0.6B model takes no instructions: it warns and drops them.
            non_streaming_mode: True gives the model all the text at once, False one token per frame.
            split: speak a text of more tokens than this as several utterances, side by side in a batch (see
                `Request.split`): long texts take a fraction of the time, and may have any length.
            seed: the same seed gives the same speech.
            official_decoding: see `synthesize`.
            **sampling: do_sample, top_k, top_p, temperature, repetition_penalty, subtalker_dosample,
                subtalker_top_k, subtalker_top_p, subtalker_temperature, max_new_tokens; the checkpoint's
                generation_config.json supplies those that are not given. As in the official package,
                max_new_tokens=N makes at most N − 1 frames.

        Returns:
            The waveforms (float32 [N] each) and their sample rate.

        Raises:
            ValueError: a bad argument, or a model of another kind.
        """
        self._require_type("custom_voice", "generate_custom_voice")
        requests = make_requests(
            non_streaming_mode, text=text, speaker=speaker, language=language, instruct=instruct, split=split
        )
        return self._generate(requests, seed, sampling, official_decoding)

    def generate_voice_design(
        self,
        text: str | list[str],
        instruct: str | list[str],
        language: str | list[str] | None = None,
        non_streaming_mode: bool = True,
        *,
        split: int | None = None,
        seed: int = 0,
        official_decoding: bool = False,
        **sampling: Any,
    ) -> tuple[list[np.ndarray], int]:
        """Speaks with a voice that `instruct` describes (VoiceDesign models); see `generate_custom_voice`."""
        self._require_type("voice_design", "generate_voice_design")
        requests = make_requests(non_streaming_mode, text=text, language=language, instruct=instruct, split=split)
        return self._generate(requests, seed, sampling, official_decoding)

    def create_voice_clone_prompt(
        self,
        ref_audio: audio.AudioLike | list[audio.AudioLike],
        ref_text: str | list[str | None] | None = None,
        x_vector_only_mode: bool | list[bool] = False,
    ) -> list[VoicePrompt]:
        """Makes voices from recordings (Base models); `voices.save` saves them.

        Args:
            ref_audio: one recording or several, each 3 to 30 s of one clear voice, in any form `audio.read` takes.
            ref_text: what each says; required unless `x_vector_only_mode`.
            x_vector_only_mode: take only the x-vector and ignore the text; one for all, or a list of as many.

        Raises:
            ValueError: a recording or a text that cannot be used, or a model of another type.
            OSError: a recording that cannot be read.
        """
        self._require_type("base", "create_voice_clone_prompt")
        sources, texts = pair_references(ref_audio, ref_text, x_vector_only_mode)
        return make_voices(self.params, self.config, [audio.read(source) for source in sources], texts)

    def generate_voice_clone(
        self,
        text: str | list[str],
        language: str | list[str] | None = None,
        ref_audio: audio.AudioLike | list[audio.AudioLike] | None = None,
        ref_text: str | list[str | None] | None = None,
        x_vector_only_mode: bool | list[bool] = False,
        voice_clone_prompt: VoicePrompt | list[VoicePrompt] | None = None,
        non_streaming_mode: bool = False,
        *,
        split: int | None = None,
        seed: int = 0,
        official_decoding: bool = False,
        **sampling: Any,
    ) -> tuple[list[np.ndarray], int]:
        """Speaks with a cloned voice (Base models).

        Args:
            text: one text or several; each other argument is one for all, or a list of as many.
            language: a name from `get_supported_languages`; "auto" by default.
            ref_audio: see `create_voice_clone_prompt`, like `ref_text` and `x_vector_only_mode`.
            ref_text: what the recording says.
            x_vector_only_mode: leave the recording's words and codes out of the prompt.
            voice_clone_prompt: voices made beforehand, instead of the three above.
            non_streaming_mode: see `generate_custom_voice`.
            split: see `generate_custom_voice`.
            seed: the same seed gives the same speech.
            official_decoding: see `synthesize`.
            **sampling: see `generate_custom_voice`.

        Returns:
            The waveforms (float32 [N] each), without the reference, and their sample rate.

        Raises:
            ValueError: a bad argument, or a model of another type.
            OSError: a recording that cannot be read.
        """
        self._require_type("base", "generate_voice_clone")
        given = voice_clone_prompt
        voices = self._voices(ref_audio, ref_text, x_vector_only_mode) if given is None else as_list(given)
        requests = make_requests(non_streaming_mode, text=text, language=language, voice=voices, split=split)
        return self._generate(requests, seed, sampling, official_decoding)

    def _voices(self, ref_audio: Any, ref_text: Any, x_vector_only_mode: Any) -> list[VoicePrompt]:
        if ref_audio is None:
            raise ValueError("there is no voice to clone: give ref_audio (with its ref_text) or voice_clone_prompt")
        return self.create_voice_clone_prompt(ref_audio, ref_text, x_vector_only_mode)

    def _require_type(self, model_type: str, method: str) -> None:
        if self.config.model_type != model_type:
            kind = method.partition("_")[0] if method != "create_voice_clone_prompt" else "generate"
            what = {"base": "voice_clone"}.get(self.config.model_type, self.config.model_type)
            raise ValueError(
                f"{method} needs a {model_type} model; this is a {self.config.model_type} model: use {kind}_{what}"
            )

    def _generate(
        self, requests: list[Request], seed: int, sampling: dict[str, Any], official_decoding: bool
    ) -> tuple[list[np.ndarray], int]:
        generation, max_frames = merge_sampling(self.config, sampling)
        requests = [replace(request, max_frames=max_frames) for request in requests]
        speeches = self.synthesize(requests, generation, seed, official_decoding=official_decoding)
        return [speech.samples for speech in speeches], self.config.codec.sample_rate

    # The same, streamed.

    def stream_custom_voice(
        self,
        text: str | Iterable[str],
        speaker: str | None,
        language: str | None = None,
        instruct: str | None = None,
        non_streaming_mode: bool | None = None,
        *,
        split: int | None = None,
        seed: int = 0,
        schedule: Sequence[int] = CHUNK_FRAMES,
        **sampling: Any,
    ) -> Iterator[Speech]:
        """Speaks with a preset voice (CustomVoice models) and yields the speech as it is made.

        The samples are those of `generate_custom_voice` with the same arguments, within float rounding.

        Args:
            text: a text, or its pieces as they are written, such as the output of a language model. Pieces are
                spoken as they arrive; by models that read phonemes (mini), once a sentence has ended. A generator
                is closed when the stream ends; an open file, or any other source of pieces, is not.
            speaker: see `generate_custom_voice`, like `language` and `instruct`.
            language: a name from `get_supported_languages`.
            instruct: how to speak, in words.
            non_streaming_mode: by default True for a text and False for pieces, for which it must be False.
            split: speak a text of more tokens than this as several utterances, one after the other (see
                `Request.split`); not for pieces.
            seed: the same seed gives the same speech.
            schedule: frames (80 ms each in the published models) of the first chunk, the second, …; the last entry is
                repeated.
            **sampling: see `generate_custom_voice`.

        Yields:
            Chunks. The last has a finish_reason, and may have no samples.

        Raises:
            ValueError: at once, a bad argument or a model of another type; while it runs, a text in pieces
                that turns out to be empty or too long.
        """
        self._require_type("custom_voice", "stream_custom_voice")
        fields = {"speaker": speaker, "language": language or "auto", "instruct": instruct, "split": split}
        return self._stream(text, fields, non_streaming_mode, seed, schedule, sampling, at_once_by_default=True)

    def stream_voice_design(
        self,
        text: str | Iterable[str],
        instruct: str,
        language: str | None = None,
        non_streaming_mode: bool | None = None,
        *,
        split: int | None = None,
        seed: int = 0,
        schedule: Sequence[int] = CHUNK_FRAMES,
        **sampling: Any,
    ) -> Iterator[Speech]:
        """Streams a voice that `instruct` describes (VoiceDesign models); see `stream_custom_voice`."""
        self._require_type("voice_design", "stream_voice_design")
        fields = {"language": language or "auto", "instruct": instruct, "split": split}
        return self._stream(text, fields, non_streaming_mode, seed, schedule, sampling, at_once_by_default=True)

    def stream_voice_clone(
        self,
        text: str | Iterable[str],
        language: str | None = None,
        ref_audio: audio.AudioLike | None = None,
        ref_text: str | None = None,
        x_vector_only_mode: bool = False,
        voice_clone_prompt: VoicePrompt | list[VoicePrompt] | None = None,
        non_streaming_mode: bool | None = None,
        *,
        split: int | None = None,
        seed: int = 0,
        schedule: Sequence[int] = CHUNK_FRAMES,
        **sampling: Any,
    ) -> Iterator[Speech]:
        """Streams a cloned voice (Base models); see `generate_voice_clone` and `stream_custom_voice`.

        `non_streaming_mode` is False by default. A voice made beforehand and passed as `voice_clone_prompt`
        starts sooner.
        """
        self._require_type("base", "stream_voice_clone")
        given = voice_clone_prompt
        voices = self._voices(ref_audio, ref_text, x_vector_only_mode) if given is None else as_list(given)
        if len(voices) != 1:
            raise ValueError(f"a stream speaks with one voice, got {len(voices)}")
        fields = {"language": language or "auto", "voice": voices[0], "split": split}
        return self._stream(text, fields, non_streaming_mode, seed, schedule, sampling, at_once_by_default=False)

    def _stream(
        self,
        text: str | Iterable[str],
        fields: dict[str, Any],
        non_streaming_mode: bool | None,
        seed: int,
        schedule: Sequence[int],
        sampling: dict[str, Any],
        *,
        at_once_by_default: bool,
    ) -> Iterator[Speech]:
        generation, max_frames = merge_sampling(self.config, sampling)
        pieces = None if isinstance(text, str) else text
        at_once = (pieces is None and at_once_by_default) if non_streaming_mode is None else non_streaming_mode
        request = Request(
            text if pieces is None else "",
            text_mode="all_at_once" if at_once else "as_it_comes",
            max_frames=max_frames,
            **fields,
        )
        return self.stream(request, generation, seed, pieces=pieces, schedule=schedule)

    # The general calls.

    def synthesize(
        self,
        requests: Iterable[Request],
        sampling: GenerationConfig | None = None,
        seed: int = 0,
        *,
        batch_size: int = 32,
        utterances: Sequence[int] | None = None,
        fixed_shapes: bool = False,
        official_decoding: bool = False,
        progress: Progress | None = None,
    ) -> list[Speech]:
        """Speaks any number of requests, `batch_size` at a time.

        Utterance i draws from the key fold_in(seed, i), so its codes do not depend on the others in its batch.

        Args:
            requests: what to say, in which voice, and for how long at most.
            sampling: the checkpoint's own by default.
            seed: the same seed gives the same speech.
            batch_size: the most utterances at a time; when one ends, the next begins.
            utterances: a number for each request, 0 … 2³¹ − 1; by default 0, 1, 2, ….
            fixed_shapes: compute `batch_size` rows, however few are used, with a cache for the longest limit from
                the start. Shapes, and with them the rounding, then depend on the largest request in each respect, not
                on how many requests there are or how long the others speak.
            official_decoding: decode as the official package does: in chunks of 300 frames that see the 25
                frames before them, which differs from the exact decode beyond 24 s, and with the reference cut
                off in proportion to its frames, which may leave one of its samples.
            progress: see `speech.Progress`.

        Raises:
            ValueError: a bad request or utterance number, before anything is computed.
            TypeError: an item that is not a `Request`.
        """
        speeches = dict(
            self._synthesize(
                requests,
                sampling,
                seed,
                full_groups=True,
                batch_size=batch_size,
                utterances=utterances,
                fixed_shapes=fixed_shapes,
                official_decoding=official_decoding,
                progress=progress,
            )
        )
        return [speeches[index] for index in sorted(speeches)]

    def synthesize_each(
        self,
        requests: Iterable[Request],
        sampling: GenerationConfig | None = None,
        seed: int = 0,
        *,
        batch_size: int = 32,
        utterances: Sequence[int] | None = None,
        fixed_shapes: bool = False,
        official_decoding: bool = False,
        progress: Progress | None = None,
    ) -> Iterator[tuple[int, Speech]]:
        """As `synthesize`, but yields each request's index and speech after the chunk of frames in which it ended.

        With `fixed_shapes` that holds on one CPU only: elsewhere requests wait until a full group is decoded together.
        """
        return self._synthesize(
            requests,
            sampling,
            seed,
            # The decoder then always computes all its rows: fewer utterances would cost as much.
            full_groups=fixed_shapes,
            batch_size=batch_size,
            utterances=utterances,
            fixed_shapes=fixed_shapes,
            official_decoding=official_decoding,
            progress=progress,
        )

    def _synthesize(
        self, requests: Iterable[Request], sampling: GenerationConfig | None, seed: int, **options: Any
    ) -> Iterator[tuple[int, Speech]]:
        requests = list(requests)
        for request in requests:
            if not isinstance(request, Request):
                raise TypeError(f"requests must be `Request`s, got {request!r}")
        generation = sampling or self.config.generation
        options |= {"chunk_frames": self.chunk_frames, "voices": self._heard}
        return synthesize_each(self.params, self.config, self.tokenizer, requests, generation, seed, **options)

    def stream(
        self,
        request: Request,
        sampling: GenerationConfig | None = None,
        seed: int = 0,
        *,
        pieces: Iterable[str] | None = None,
        schedule: Sequence[int] = CHUNK_FRAMES,
    ) -> Iterator[Speech]:
        """Speaks one request and yields the speech as it is made; see `stream_custom_voice`.

        Closing or dropping the iterator frees everything that the stream holds.

        Args:
            request: what to say, in which voice, and for how long at most.
            sampling: the checkpoint's own by default.
            seed: the same seed gives the speech that `synthesize` gives the first request.
            pieces: the text after `request.text`, which may then be empty, as it arrives; needs the text mode
                "as_it_comes". A generator is closed when the stream ends.
            schedule: frames of each chunk; the last entry is repeated.
        """
        return stream(
            self.params,
            self.config,
            self.tokenizer,
            request,
            sampling or self.config.generation,
            seed,
            pieces=pieces,
            schedule=schedule,
            voices=self._heard,
        )

    def stream_batch(
        self,
        sampling: GenerationConfig | None = None,
        *,
        batch_size: int = 16,
        schedule: Sequence[int] = CHUNK_FRAMES,
        capacity: int = 1024,
    ) -> StreamBatch:
        """Makes a batch of streams spoken side by side, for servers: requests can be added at any time.

            batch = model.stream_batch(batch_size=16)
            first, second = batch.add(Request("Hello.", speaker="ryan")), batch.add(Request("Hi.", speaker="serena"))
            while batch:
                for number, chunk in batch.step():
                    ...  # of `first` or `second`; more may be added at any time

        Texts may be added while they are still being written (see `StreamBatch.add`).

        Args:
            sampling: for all streams; the checkpoint's own by default.
            batch_size: the most streams at a time; others wait until one of them ends.
            schedule: frames of each chunk of a stream; the last entry is repeated. Streams that are spoken together
                share one chunk length, that of the youngest.
            capacity: prompt tokens and frames that each stream has room for, never fewer than 512: longer speech, or a
                longer prompt, makes all wait while a program with a larger cache is compiled.

        Raises:
            ValueError: a bad argument.
        """
        return StreamBatch(
            self.params,
            self.config,
            self.tokenizer,
            sampling or self.config.generation,
            batch_size=batch_size,
            capacity=capacity,
            schedule=schedule,
            voices=self._heard,
        )
