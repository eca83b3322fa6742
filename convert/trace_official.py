"""The official model, watched while it hears a recording and speaks. Needs the `parity` extra."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_tts_jax.convert.hearing import Hearing, Recording, hear_official
from qwen3_tts_jax.convert.reference import import_official, load_official, quiet, to_numpy
from qwen3_tts_jax.convert.trace import Rows, Trace, by_frame
from qwen3_tts_jax.prompt import Request


def trace_official(
    folder: Path,
    requests: Sequence[Request],
    recording: Recording,
    dtype: str,
    frames: int,
    progress: Callable[[str], None],
) -> Trace:
    """Loads the official model, lets it hear `recording` and speak `requests` in one batch, then drops it.

    Args:
        folder: a checkpoint in the published layout.
        requests: all with one text mode, and without voices: a base model clones the recording's.
        recording: see `Trace.hearing`.
        dtype: "float32" or "bfloat16", of all but the codec.
        frames: the most to make; with those of the recording, up to `reference.MAX_FRAMES`.
        progress: called with a line before each long step.

    Raises:
        OracleMissingError: the official package is not installed.
    """
    import_official()
    import torch

    progress(f"official: loading {folder.name}")
    model = load_official(folder, getattr(torch, dtype))
    progress(f"official: hearing {recording.seconds:.1f} s")
    hearing, voice = hear_official(model, recording)
    progress(f"official: speaking {len(requests)} x {frames} frames")
    watched = _Recorder(model)
    with quiet(), watched.recording():
        _speak(model, requests, voice, frames)
    progress("official: decoding the codes")
    codec = _codec_stages(model.model.speech_tokenizer.model.decoder, watched.codes)
    return watched.trace(hearing, codec)


def _speak(model: Any, requests: Sequence[Request], voice: list[Any], frames: int) -> None:
    columns: dict[str, Any] = {name: [getattr(r, name) for r in requests] for name in ("text", "language")}
    match model.model.tts_model_type:
        case "base":
            speak, columns["voice_clone_prompt"] = model.generate_voice_clone, voice
        case "custom_voice":
            speak, columns["speaker"] = model.generate_custom_voice, [r.speaker for r in requests]
        case "voice_design":
            speak = model.generate_voice_design
    if not voice:
        columns["instruct"] = [r.instruct or "" for r in requests]
    speak(
        **columns,
        non_streaming_mode=requests[0].text_mode == "all_at_once",
        max_new_tokens=frames + 1,  # the last code 0 never becomes a frame
        do_sample=False,
        subtalker_dosample=False,
    )


class _Recorder:
    """Notes what passes through the official model; one call of `generate` per recorder."""

    def __init__(self, model: Any):
        self.model = model.model
        self.talker = self.model.talker
        self.text_ids: Rows = []
        self.codes: Rows = []
        self.samples: Rows = []
        self.prompt: dict[str, np.ndarray] = {}
        self.layers: list[np.ndarray] = []
        self.talker_logits: list[np.ndarray] = []
        self.predictor_logits: list[np.ndarray] = []

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Hooks the model while the context is open."""
        generate, tokenizer = self.model.generate, self.model.speech_tokenizer
        decode = tokenizer.decode

        def noting_codes(**arguments: Any) -> Any:
            texts = arguments["input_ids"]
            for before in ("ref_ids", "instruct_ids"):
                others = arguments.get(before) or [None] * len(texts)
                texts = [
                    text if other is None else _join(other, text) for other, text in zip(others, texts, strict=True)
                ]
            self.text_ids = [to_numpy(text)[0] for text in texts]
            codes, hidden = generate(**arguments)
            self.codes = [to_numpy(row) for row in codes]
            return codes, hidden

        def noting_samples(encoded: Any) -> Any:
            samples, rate = decode(encoded)
            self.samples = samples
            return samples, rate

        with ExitStack() as stack:
            for owner, name, noting in (
                (self.model, "generate", noting_codes),
                (tokenizer, "decode", noting_samples),
            ):
                setattr(owner, name, noting)
                stack.callback(delattr, owner, name)
            hooks = [
                self.talker.register_forward_hook(self._on_talker, with_kwargs=True),
                self.talker.code_predictor.register_forward_hook(self._on_predictor),
                *(layer.register_forward_hook(self._on_layer) for layer in self.talker.model.layers),
            ]
            for hook in hooks:
                stack.callback(hook.remove)
            yield

    def _on_talker(self, module: Any, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        self.talker_logits.append(to_numpy(output.logits[:, -1]))
        if not self.prompt:
            track = _join(kwargs["trailing_text_hidden"], kwargs["tts_pad_embed"].expand(len(output.logits), -1, -1))
            self.prompt = {
                "mask": to_numpy(kwargs["attention_mask"]).astype(bool),
                "embeddings": to_numpy(kwargs["inputs_embeds"]),
                "hidden": to_numpy(output.hidden_states[0][-1]),
                "track": to_numpy(track),
            }

    def _on_layer(self, module: Any, args: tuple, output: Any) -> None:
        if not self.prompt:
            self.layers.append(to_numpy(output[0]))

    def _on_predictor(self, module: Any, args: tuple, output: Any) -> None:
        self.predictor_logits.append(to_numpy(output.logits[:, -1]))

    def trace(self, hearing: Hearing, codec: dict[str, Rows]) -> Trace:
        mask = self.prompt["mask"]
        lengths = [len(row) for row in self.codes]
        talker = np.stack(self.talker_logits, axis=1)
        predictor = np.stack(self.predictor_logits, axis=1)
        predictor = predictor.reshape(len(lengths), talker.shape[1] - 1, -1, predictor.shape[-1])

        def used(batch: np.ndarray) -> Rows:
            return [row[keep] for row, keep in zip(batch, mask, strict=True)]

        # The recording decoded in front is cut off exactly where it ends: the package's own cut may be one sample off.
        frame_samples = self.model.speech_tokenizer.get_decode_upsample_rate()
        counts = [length * frame_samples for length in lengths]
        return Trace(
            hearing=hearing,
            text_ids=self.text_ids,
            embeddings=used(self.prompt["embeddings"]),
            text_track=list(self.prompt["track"]),
            layers=[used(layer) for layer in self.layers],
            hidden=used(self.prompt["hidden"]),
            talker_logits=[row[: length + 1] for row, length in zip(talker, lengths, strict=True)],
            predictor_logits=[row[:length] for row, length in zip(predictor, lengths, strict=True)],
            codec=codec,
            codes=self.codes,
            samples=[row[len(row) - count :] for row, count in zip(self.samples, counts, strict=True)],
        )


def _codec_stages(decoder: Any, codes: Rows) -> dict[str, Rows]:
    """See `Trace.codec`."""
    import torch

    lengths = [len(row) for row in codes]
    padded = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(row) for row in codes], batch_first=True)
    stages: dict[str, np.ndarray] = {}

    def note(name: str, channels_last: bool = False) -> Callable[..., None]:
        def hook(module: Any, args: tuple, output: Any) -> None:
            stages[name] = to_numpy(output if channels_last else output.transpose(1, 2))

        return hook

    def note_quantizer(module: Any, args: tuple) -> None:
        stages["quantizer"] = to_numpy(args[0].transpose(1, 2))

    # Decoding does not call the quantizer's `forward`, so its output is noted where it goes in next.
    hooks = [
        decoder.pre_conv.register_forward_pre_hook(note_quantizer),
        decoder.pre_conv.register_forward_hook(note("pre_conv")),
        decoder.pre_transformer.output_proj.register_forward_hook(note("output_projection", channels_last=True)),
    ]
    for i, stage in enumerate(decoder.upsample):
        hooks.append(stage[-1].register_forward_hook(note(f"latent_upsample_{i}")))
    hooks.append(decoder.decoder[0].register_forward_hook(note("conv_in")))
    for i, stage in enumerate(decoder.decoder[1:-2]):
        hooks.append(stage.register_forward_hook(note(f"upsample_{i}")))
    with torch.inference_mode():
        stages["samples"] = to_numpy(decoder(padded.transpose(1, 2)).transpose(1, 2))
    for hook in hooks:
        hook.remove()
    return {name: by_frame(values, lengths) for name, values in stages.items()}


def _join(first: Any, second: Any) -> Any:
    import torch

    return torch.cat([first, second], dim=1)
