"""Runs the official PyTorch package and this one on the same inputs and compares them stage by stage.

The official model is loaded first, watched and dropped, so that only one is in memory at a time. Both hear
the same recording. A base model then clones it, and both go on from what the official one heard. Both are
greedy, with the checkpoint's own repetition penalty. Logits are compared under the official package's
codes; only the last two stages, codes and speech, are each side's own.

With dtype bfloat16, only talker, code predictor and the official speaker encoder are in bfloat16: the codec
is float32 on both sides, see `reference.load_official`.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from qwen3_tts_jax import audio, hf_config
from qwen3_tts_jax.audio import AudioLike
from qwen3_tts_jax.config import ModelConfig
from qwen3_tts_jax.convert.check import check_folder
from qwen3_tts_jax.convert.compare import TOLERANCES, Stage, compare, compare_encoded
from qwen3_tts_jax.convert.hearing import SYNTHETIC_TEXT, Recording, synthetic_recording
from qwen3_tts_jax.convert.reference import MAX_FRAMES, import_official
from qwen3_tts_jax.convert.report import Report
from qwen3_tts_jax.convert.trace import Rows, Trace
from qwen3_tts_jax.convert.trace_official import trace_official
from qwen3_tts_jax.convert.trace_ours import trace_ours
from qwen3_tts_jax.devices import default_device
from qwen3_tts_jax.prompt import Request, TextMode, plan_prompt
from qwen3_tts_jax.speech_tokenizer import encoded_frames
from qwen3_tts_jax.text.tokenizer import TextTokenizer
from qwen3_tts_jax.utterances import spoken_as
from qwen3_tts_jax.voice_prompt import stand_in
from qwen3_tts_jax.voices import LONGEST_SECONDS, SHORTEST_SECONDS

_VERSIONS = ("qwen-tts", "transformers", "torch", "jax", "qwen3-tts-jax")
_SHOWN = 60


def run_parity(
    folder: str | Path,
    texts: Sequence[str],
    *,
    dtype: str = "float32",
    frames: int = 12,
    speaker: str | None = None,
    language: str = "auto",
    instruct: str | None = None,
    reference: AudioLike | None = None,
    reference_text: str | None = None,
    x_vector_only: bool = False,
    text_mode: TextMode = "all_at_once",
    layers: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Compares both implementations on one batch of texts; `Report.write` writes the result to a file.

    Args:
        folder: a checkpoint in the published layout.
        texts: what both say, in one batch; if the model reads phonemes, those of each sentence.
        dtype: "float32" or "bfloat16", of talker and code predictor.
        frames: the most that each makes; 1 to 300, including those of a recording that is cloned in context.
        speaker: of all texts; by default the first of a custom-voice model.
        language: of all texts.
        instruct: for all texts.
        reference: a recording for both to hear, see `audio.read`; a base model clones it. By default a
            synthetic one, three seconds long.
        reference_text: what it says.
        x_vector_only: clone its x-vector alone; its text is not used.
        text_mode: see `Request`; if the model reads phonemes, they come one per frame.
        layers: also compare the output of every layer of the talker over the prompt.
        progress: called with a line before each long step.

    Raises:
        qwen3_tts_jax.convert.reference.OracleMissingError: the official package is not installed.
        ValueError: a bad argument, or (as `check.CheckpointError`) weights that do not fit the config.
        FileNotFoundError: the file of `reference` does not exist.
        OSError, TypeError: as in `audio.read`.
    """
    folder, say = Path(folder), progress or (lambda line: None)
    if dtype not in TOLERANCES:
        raise ValueError(f"unknown dtype {dtype!r}; there are {', '.join(TOLERANCES)}")
    if not 1 <= frames <= MAX_FRAMES:
        raise ValueError(f"frames must be 1 to {MAX_FRAMES}, got {frames}")
    if not texts:
        raise ValueError("no texts to compare; give at least one")
    config = hf_config.read_folder(folder).with_dtypes(dtype)
    recording = _recording(config, reference, reference_text, x_vector_only, frames)
    if speaker is None and config.prompt.speakers:
        speaker = next(iter(config.prompt.speakers))
    if not config.supports_instruct:
        instruct = None
    requests = [Request(text, language, speaker, instruct, text_mode, frames) for text in texts]
    tokenizer = TextTokenizer.from_folder(folder)
    requests = [replace(part, max_frames=frames) for request in requests for part in spoken_as(request, tokenizer)]
    tokenizer = TextTokenizer.from_folder(folder, phonemize=False)
    clones = config.model_type == "base"
    voice = stand_in(config, _num_frames(config, recording), recording.text) if clones else None
    for request in requests:
        plan_prompt(replace(request, voice=voice), tokenizer, config)
    check_folder(folder, config)
    import_official()

    official = trace_official(folder, requests, recording, dtype, frames, say)
    ours = trace_ours(folder, config, tokenizer, requests, recording, official, say)
    settings = {
        "model": folder.resolve().name,
        "dtype": dtype,
        "texts": "; ".join(texts),
        "speaker": str(speaker),
        "language": language,
        "instruct": str(instruct),
        "recording": f"{recording.name}, {recording.seconds:.2f} s at {recording.rate} Hz",
        "cloned": _way_of_cloning(config, recording),
        "text mode": requests[0].text_mode,
        "JAX backend": default_device().platform,
        "versions": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _VERSIONS),
    }
    return Report(settings, list(_stages(official, ours, dtype, layers)))


def _recording(
    config: ModelConfig, reference: AudioLike | None, text: str | None, x_vector_only: bool, frames: int
) -> Recording:
    """Reads the recording, or makes one, and refuses what cannot be compared."""
    clones = config.model_type == "base"
    if not clones and (x_vector_only or text is not None):
        option = "x_vector_only" if x_vector_only else "reference_text"
        raise ValueError(f"{option} is for base models; this is a {config.model_type} model, which clones no voices")
    if reference is None:
        if text is not None:
            raise ValueError("reference_text is given without its reference: give the recording too")
        samples, rate = synthetic_recording(config)
        text, name = SYNTHETIC_TEXT, "synthetic, no speech"
    else:
        if clones and not x_vector_only and not (text or "").strip():
            raise ValueError("reference_text is missing: give what the reference says, or x_vector_only")
        samples, rate = audio.read(reference)
        name = str(reference)[:_SHOWN] if isinstance(reference, str | Path) else "given as data"
    recording = Recording(samples, rate, text if clones and not x_vector_only else None, name)
    if reference is not None and not SHORTEST_SECONDS <= recording.seconds <= LONGEST_SECONDS:
        raise ValueError(
            f"the reference lasts {recording.seconds:.2f} s; it must be {SHORTEST_SECONDS} to {LONGEST_SECONDS:.0f} s"
        )
    heard = _num_frames(config, recording)
    if recording.text is not None and heard + frames > MAX_FRAMES:
        raise ValueError(
            f"the reference has {heard} frames and {frames} are made: beyond {MAX_FRAMES} together the official decode "
            f"is not exact; give at most {(MAX_FRAMES - frames) / config.codec.frame_rate:.1f} s, or fewer frames"
        )
    return recording


def _num_frames(config: ModelConfig, recording: Recording) -> int:
    return encoded_frames(config.codec, len(recording.samples), recording.rate)


def _way_of_cloning(config: ModelConfig, recording: Recording) -> str:
    if config.model_type != "base":
        return "no, heard by the codec's encoder alone"
    return "by its x-vector alone" if recording.text is None else f"in context, as {recording.text!r}"


def _stages(official: Trace, ours: Trace, dtype: str, layers: bool) -> Iterable[Stage]:
    def stage(name: str, kind: str, pick: Callable[[Trace], Rows]) -> Stage:
        return compare(name, kind, dtype, pick(official), pick(ours))

    heard = official.hearing
    if heard.x_vector is not None:
        yield stage("mel", "mel", lambda trace: [trace.hearing.mel])
        yield stage("x-vector", "x-vector", lambda trace: [trace.hearing.x_vector[None]])
    yield stage("encoder latents", "codec", lambda trace: [trace.hearing.latents])
    yield compare_encoded("encoder codes", dtype, heard.codes, ours.hearing.codes, heard.quantizations)
    yield stage("text ids", "ids", lambda trace: trace.text_ids)
    yield stage("prompt embeddings", "embeddings", lambda trace: trace.embeddings)
    yield stage("text track", "embeddings", lambda trace: trace.text_track)
    if layers:
        for layer in range(len(official.layers)):
            yield stage(f"talker layer {layer}", "hidden", lambda trace, layer=layer: trace.layers[layer])
    yield stage("prefill hidden", "hidden", lambda trace: trace.hidden)
    yield stage("prefill logits", "logits", lambda trace: [row[:1] for row in trace.talker_logits])
    yield stage("talker logits", "logits", lambda trace: trace.talker_logits)
    yield stage("predictor logits", "logits", lambda trace: trace.predictor_logits)
    for name in official.codec:
        kind = "samples" if name == "samples" else "codec"
        yield stage(f"codec {name}", kind, lambda trace, name=name: trace.codec[name])
    yield stage("free codes", "codes", lambda trace: trace.codes)
    frame = official.codec["samples"][0].shape[1]
    yield stage("speech", "speech", lambda trace: [row.reshape(-1, frame) for row in trace.samples])
