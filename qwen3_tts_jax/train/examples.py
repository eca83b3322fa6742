"""Lines → what is learnt: codes and voices, encoded once and kept."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from qwen3_tts_jax import audio
from qwen3_tts_jax.config import ModelConfig
from qwen3_tts_jax.files import check_folder, completed
from qwen3_tts_jax.prompt import PromptPlan, Request, TextMode, Tokenizer, plan_prompt
from qwen3_tts_jax.speech_tokenizer import encode_recordings, encoded_frames
from qwen3_tts_jax.train.fingerprint import fingerprint
from qwen3_tts_jax.train.interrupts import Signals
from qwen3_tts_jax.train.lines import DataError, Line
from qwen3_tts_jax.train.progress import Progress
from qwen3_tts_jax.utterances import text_tokens
from qwen3_tts_jax.voice_prompt import VoicePrompt
from qwen3_tts_jax.voices import check_recording, make_voices

_TOGETHER = 8


@dataclass(frozen=True, eq=False)
class Example:
    """One utterance to learn.

    Attributes:
        line: what is said and how.
        codes: int32 [T, Q], of the recording.
        voice: the one to clone; None where the line has a speaker, or the model hears no voices.
        x_vector: float32 [D], of the reference or else the recording, where the model hears voices.
    """

    line: Line
    codes: np.ndarray
    voice: VoicePrompt | None = None
    x_vector: np.ndarray | None = None

    def plan(self, tokenizer: Tokenizer, config: ModelConfig, text_mode: TextMode) -> PromptPlan:
        """The prompt that the codes follow."""
        return plan_prompt(self.request(text_mode), tokenizer, config)

    def request(self, text_mode: TextMode) -> Request:
        """What the prompt is made from."""
        return _request(self.line, self.voice, text_mode)


def _request(line: Line, voice: VoicePrompt | None, text_mode: TextMode) -> Request:
    return Request(line.text, line.language, line.speaker, line.instruct, text_mode, voice=voice)


def check_lengths(
    lines: Sequence[Line], codes: Mapping[Line, np.ndarray], tokenizer: Tokenizer, config: ModelConfig
) -> None:
    """Refuses clips that do not fit the talker's context, from the headers of their files alone.

    Args:
        lines: from `read_lines`.
        codes: from `read_codes`.
        tokenizer: of the model.
        config: from `lines.add_speakers`.

    Raises:
        DataError: such a clip, or a file that holds no sound.
    """
    for line in lines:
        spoken = len(codes[line]) if line in codes else _frames(line, "audio", config)
        frames = [spoken, _frames(line, "ref_audio", config)]
        voice = None
        if config.model_type == "base":
            cloned = np.zeros((frames[1], config.talker.num_codebooks), np.int32) if line.ref_text else None
            voice = VoicePrompt(np.zeros(config.speaker_encoder.x_vector_width, np.float32), cloned, line.ref_text)
        try:
            plan = plan_prompt(_request(line, voice, "all_at_once"), tokenizer, config)
        except ValueError as error:
            raise DataError(f"{line.where}: {error}") from error
        _check_durations(line, tokenizer, spoken)
        needed = len(plan.text_ids) + frames[0] + 1
        if needed > config.talker.max_positions:
            raise DataError(
                f"{line.where}: {line.audio or line.codes} is too long: its {frames[0]} frames and the prompt need "
                f"{needed} positions, the model has {config.talker.max_positions}; cut it into shorter clips"
            )


def _check_durations(line: Line, tokenizer: Tokenizer, frames: int) -> None:
    if line.durations is None:
        return
    ids = text_tokens(line.text, tokenizer)
    if len(line.durations) != ids or sum(line.durations) != frames:
        raise DataError(
            f"{line.where}: its {len(line.durations)} durations are of {sum(line.durations)} frames; the text has "
            f"{ids} ids, and what says it {frames} frames"
        )


def _frames(line: Line, name: str, config: ModelConfig) -> int:
    file = getattr(line, name)
    if file is None:
        return 0
    try:
        header = soundfile.info(file)
    except soundfile.LibsndfileError as error:
        raise DataError(f"{line.where}: {name} {file} is no sound file: {error.error_string}") from error
    return encoded_frames(config.codec, header.frames, header.samplerate)


def make_examples(
    params: Mapping[str, Any],
    config: ModelConfig,
    lines: Sequence[Line],
    written: Mapping[Line, np.ndarray],
    cache: str | Path,
    progress: Progress | None = None,
) -> list[Example]:
    """Encodes all recordings of the lines that `cache` does not hold yet.

    Args:
        params: the trees codec/encoder, where a line has no codes, and, of a base model, speaker_encoder.
        config: of the model before training.
        lines: from `read_lines`.
        written: their codes, from `read_codes`.
        cache: a folder of encoded recordings, keyed by their content and the encoders' weights; may be shared.
        progress: told how many recordings are encoded.

    Raises:
        DataError: a recording that is silent, broken, or shorter than 0.5 s or longer than 300 s. All are read and
            checked before the first is encoded.
        PermissionError: `cache` does not hold all recordings, and no file can be put into it.
        interrupts.Interrupted: a signal, as in `loop.run_steps`, once what was encoded is kept.
    """
    hears = config.speaker_encoder is not None
    sources = {line: line.ref_audio or line.audio for line in lines if line.codes is None}
    if not sources:
        return [Example(line, written[line]) for line in lines]
    codes = _Encoded(Path(cache), "codes", fingerprint(params["codec"]["encoder"]))
    x_vectors = _Encoded(Path(cache), "x_vector", fingerprint(params["speaker_encoder"]) if hears else "")

    def encode(samples: list[tuple[np.ndarray, int]]) -> list[np.ndarray]:
        rate = config.codec.sample_rate
        resampled = [audio.resample(one.astype(np.float32), own, rate) for one, own in samples]
        return encode_recordings(params["codec"]["encoder"], config.codec, resampled)

    def listen(samples: list[tuple[np.ndarray, int]]) -> list[np.ndarray]:
        return [voice.x_vector for voice in make_voices(params, config, samples, [None] * len(samples))]

    with Signals() as signals:
        for line in sources:
            signals.stop("before recordings were encoded")
            codes.want(line.audio, line, "audio")
            if line.ref_text is not None:
                codes.want(line.ref_audio, line, "ref_audio")
            if hears:
                x_vectors.want(sources[line], line, "audio" if line.ref_audio is None else "ref_audio")
        wanted, done = len(codes.todo) + len(x_vectors.todo), 0
        if wanted:
            Path(cache).mkdir(parents=True, exist_ok=True)
            check_folder(Path(cache))
        for store in (codes, x_vectors):
            store.check(signals)
        for store, compute in ((codes, encode), (x_vectors, listen)):
            todo = list(store.todo)
            for first in range(0, len(todo), _TOGETHER):
                files = todo[first : first + _TOGETHER]
                for file, result in zip(files, compute([audio.read(file) for file in files]), strict=True):
                    store.put(file, result)
                done += len(files)
                if progress is not None:
                    progress(done, wanted)
                signals.stop(f"after {done} of {wanted} recordings, which are kept")
    return [
        Example(line, written[line]) if line in written else _example(line, sources[line], codes, x_vectors)
        for line in lines
    ]


def _example(line: Line, source: Path, codes: _Encoded, x_vectors: _Encoded) -> Example:
    x_vector = x_vectors.get(source) if source in x_vectors.files else None
    voice = None
    if x_vector is not None and line.speaker is None:
        voice = VoicePrompt(x_vector, None if line.ref_text is None else codes.get(line.ref_audio), line.ref_text)
    return Example(line, codes.get(line.audio), voice, x_vector)


class _Encoded:
    """Arrays in a folder, keyed by the content of the sound files that they were made from."""

    def __init__(self, folder: Path, kind: str, encoder: str):
        self.folder, self.kind, self.encoder = folder, kind, encoder
        self.files: dict[Path, Path] = {}
        self.todo: dict[Path, str] = {}

    def want(self, file: Path, line: Line, name: str) -> None:
        if file in self.files:
            return
        content = hashlib.sha256(self.encoder.encode() + file.read_bytes()).hexdigest()[:40]
        self.files[file] = self.folder / f"{self.kind}-{content}.npy"
        if not self.files[file].is_file():
            self.todo[file] = f"{line.where}: {name} {file}"

    def check(self, signals: Signals) -> None:
        """Reads and checks every recording that is to be encoded."""
        for file, name in self.todo.items():
            signals.stop("before recordings were encoded")
            try:
                samples, rate = audio.read(file)
                check_recording(name, samples, rate)
            except (OSError, ValueError) as error:
                message = str(error)
                raise DataError(message if message.startswith(name) else f"{name}: {message}") from error

    def put(self, file: Path, array: np.ndarray) -> None:
        target = self.files[file]
        with completed(target) as temporary, temporary.open("wb") as stream:
            np.save(stream, array)

    def get(self, file: Path) -> np.ndarray:
        return np.load(self.files[file])


def speaker_rows(
    params: Mapping[str, Any], config: ModelConfig, examples: Sequence[Example], rows: Mapping[str, int]
) -> dict[int, np.ndarray]:
    """What new speakers' rows of the codec embedding start from, by row.

    For a base model it is the mean of the speaker's x-vectors, by which that model hears voices. A custom-voice model
    has none: there it is the mean of its other speakers.

    Args:
        params: with the tree talker.
        config: of the model before training.
        examples: from `make_examples`.
        rows: from `lines.add_speakers`.
    """
    table = params["talker"]["codec_embedding"]["embedding"]
    started = {}
    for name, row in rows.items():
        heard = [each.x_vector for each in examples if each.line.speaker.lower() == name and each.x_vector is not None]
        if not heard:
            heard = [np.asarray(table[other], np.float32) for other in config.prompt.speakers.values()]
        started[row] = np.mean(heard, axis=0)
    return started
