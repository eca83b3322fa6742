"""The official PyTorch package: imported, loaded, and watched while it speaks. Needs the `parity` extra."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_tts_jax.prompt import Request

REQUIREMENTS = 'pip install "qwen3-tts-jax[parity]" && pip install --no-deps qwen-tts==0.1.1'

# The official codec decodes longer utterances in chunks that do not see each other's whole past.
MAX_FRAMES = 300

Rows = list[np.ndarray]
"""One array [T, …] per utterance; T differs between utterances."""


class OracleMissingError(ImportError):
    """The official package, or one of its requirements, is not installed."""


@dataclass(frozen=True)
class Trace:
    """What an implementation computed on its way from texts to samples, B utterances.

    Codes are forced: logits of frame k were computed after the same codes 0 … k − 1 on both sides.

    Attributes:
        text_ids: int [T] each, instruction and text in their frames.
        embeddings: [T, D] each, the talker's prompt.
        text_track: [U, D] each, what is added to the embeddings of frame 0, 1, …; the last one for ever.
        layers: for each talker layer its outputs [T, D] over the prompt.
        hidden: [T, D] each, after the talker's last norm.
        talker_logits: [F + 1, V] each: those after the prompt, then those after each frame.
        predictor_logits: [F, Q − 1, V] each.
        codec: activations [F, …] each after every stage of the codec's decoder, all those of a frame in
            one row, by the stage's name; "samples" [F, frame_samples] are its result.
        codes: int [F, Q] each, made freely by the most likely code.
        samples: [N] each, of those codes.
    """

    text_ids: Rows
    embeddings: Rows
    text_track: Rows
    layers: list[Rows]
    hidden: Rows
    talker_logits: Rows
    predictor_logits: Rows
    codec: dict[str, Rows]
    codes: Rows
    samples: Rows


@contextmanager
def quiet() -> Iterator[None]:
    """Warnings of the official package and its requirements are not ours: run their code in here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def import_official() -> types.ModuleType:
    """Imports and returns `qwen_tts`.

    Its 25 Hz tokenizer imports torchaudio, which nothing here calls: where that is not installed, empty
    modules take its place.

    Raises:
        OracleMissingError: torch, transformers or qwen_tts is not installed, or does not load.
    """
    with quiet():
        try:
            import torch  # noqa: F401
            import transformers  # noqa: F401  (it looks for torchaudio itself: before the empty modules)

            if "torchaudio" not in sys.modules and importlib.util.find_spec("torchaudio") is None:
                for name in ("torchaudio", "torchaudio.compliance", "torchaudio.compliance.kaldi"):
                    module = types.ModuleType(name)
                    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
                    module.__path__ = []
                    sys.modules[name] = module
            import qwen_tts
        except (ImportError, OSError) as error:  # a shared library that does not load is an OSError
            raise OracleMissingError(
                f"the official package cannot be imported ({error}); to install it: {REQUIREMENTS}"
            ) from error
    return qwen_tts


def load_official(folder: str | Path, dtype: Any = None) -> Any:
    """The official `Qwen3TTSModel` of a checkpoint folder, in eval mode, on the CPU.

    `dtype` is a torch dtype, float32 by default, of talker and code predictor. The codec is float32,
    though the official loader would give it `dtype` too: it was published in float32, and in bfloat16
    there would be nothing exact to compare it with. The attention implementation is the package's default.
    """
    official = import_official()
    import torch

    with quiet():
        model = official.Qwen3TTSModel.from_pretrained(str(folder), dtype=dtype or torch.float32)
        if dtype not in (None, torch.float32):
            codec = Path(folder) / "speech_tokenizer"
            model.model.load_speech_tokenizer(
                official.Qwen3TTSTokenizer.from_pretrained(str(codec), dtype=torch.float32)
            )
    model.model.eval()
    model.model.speech_tokenizer.model.eval()
    return model


def trace_official(
    folder: Path, requests: Sequence[Request], dtype: str, frames: int, progress: Callable[[str], None]
) -> Trace:
    """Loads the official model, lets it speak `requests` in one batch, and drops it again.

    Args:
        folder: a custom-voice or voice-design checkpoint in the published layout.
        requests: all with one text mode.
        dtype: "float32" or "bfloat16", of talker and code predictor.
        frames: how many to make at most, up to `MAX_FRAMES`.
        progress: called with a line before each long step.

    Raises:
        OracleMissingError: the official package is not installed.
    """
    import_official()
    import torch

    progress(f"official: loading {folder.name}")
    model = load_official(folder, getattr(torch, dtype))
    progress(f"official: speaking {len(requests)} x {frames} frames")
    heard = _Recorder(model)
    with quiet(), heard.recording():
        samples = _speak(model, requests, frames)
    progress("official: decoding the codes")
    codec = _codec_stages(model.model.speech_tokenizer.model.decoder, heard.codes)
    return heard.trace(codec, samples)


def _speak(model: Any, requests: Sequence[Request], frames: int) -> Rows:
    columns = {name: [getattr(r, name) for r in requests] for name in ("text", "language", "speaker", "instruct")}
    columns["instruct"] = [instruct or "" for instruct in columns["instruct"]]
    speak = model.generate_custom_voice
    if model.model.tts_model_type == "voice_design":
        speak = model.generate_voice_design
        del columns["speaker"]
    samples, _ = speak(
        **columns,
        non_streaming_mode=requests[0].text_mode == "all_at_once",
        max_new_tokens=frames + 1,  # the last code 0 is never made a frame
        do_sample=False,
        subtalker_dosample=False,
    )
    return samples


class _Recorder:
    """Notes what passes through the official model; one call of `generate` per recorder."""

    def __init__(self, model: Any):
        self.model = model.model
        self.talker = self.model.talker
        self.text_ids: Rows = []
        self.codes: Rows = []
        self.prompt: dict[str, np.ndarray] = {}
        self.layers: list[np.ndarray] = []
        self.talker_logits: list[np.ndarray] = []
        self.predictor_logits: list[np.ndarray] = []

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Hooks on the model while it is open."""
        generate = self.model.generate

        def noted(**arguments: Any) -> Any:
            instructs = arguments["instruct_ids"]
            for text, instruct in zip(arguments["input_ids"], instructs, strict=True):
                self.text_ids.append(_array(text if instruct is None else _join(instruct, text))[0])
            codes, hidden = generate(**arguments)
            self.codes = [_array(row) for row in codes]
            return codes, hidden

        with ExitStack() as stack:
            self.model.generate = noted
            stack.callback(delattr, self.model, "generate")
            hooks = [
                self.talker.register_forward_hook(self._on_talker, with_kwargs=True),
                self.talker.code_predictor.register_forward_hook(self._on_predictor),
                *(layer.register_forward_hook(self._on_layer) for layer in self.talker.model.layers),
            ]
            for hook in hooks:
                stack.callback(hook.remove)
            yield

    def _on_talker(self, module: Any, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        self.talker_logits.append(_array(output.logits[:, -1]))
        if not self.prompt:
            track = _join(kwargs["trailing_text_hidden"], kwargs["tts_pad_embed"].expand(len(output.logits), -1, -1))
            self.prompt = {
                "mask": _array(kwargs["attention_mask"]).astype(bool),
                "embeddings": _array(kwargs["inputs_embeds"]),
                "hidden": _array(output.hidden_states[0][-1]),
                "track": _array(track),
            }

    def _on_layer(self, module: Any, args: tuple, output: Any) -> None:
        if not self.prompt:
            self.layers.append(_array(output[0]))

    def _on_predictor(self, module: Any, args: tuple, output: Any) -> None:
        self.predictor_logits.append(_array(output.logits[:, -1]))

    def trace(self, codec: dict[str, Rows], samples: Rows) -> Trace:
        mask = self.prompt["mask"]
        lengths = [len(row) for row in self.codes]
        talker = np.stack(self.talker_logits, axis=1)
        predictor = np.stack(self.predictor_logits, axis=1)
        predictor = predictor.reshape(len(lengths), talker.shape[1] - 1, -1, predictor.shape[-1])

        def used(batch: np.ndarray) -> Rows:
            return [row[keep] for row, keep in zip(batch, mask, strict=True)]

        return Trace(
            text_ids=self.text_ids,
            embeddings=used(self.prompt["embeddings"]),
            text_track=list(self.prompt["track"]),
            layers=[used(layer) for layer in self.layers],
            hidden=used(self.prompt["hidden"]),
            talker_logits=[row[: length + 1] for row, length in zip(talker, lengths, strict=True)],
            predictor_logits=[row[:length] for row, length in zip(predictor, lengths, strict=True)],
            codec=codec,
            codes=self.codes,
            samples=samples,
        )


def _codec_stages(decoder: Any, codes: Rows) -> dict[str, Rows]:
    """See `Trace.codec`."""
    import torch

    lengths = [len(row) for row in codes]
    padded = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(row) for row in codes], batch_first=True)
    stages: dict[str, np.ndarray] = {}

    def note(name: str, channels_last: bool = False) -> Callable[..., None]:
        def hook(module: Any, args: tuple, output: Any) -> None:
            stages[name] = _array(output if channels_last else output.transpose(1, 2))

        return hook

    def note_quantizer(module: Any, args: tuple) -> None:
        stages["quantizer"] = _array(args[0].transpose(1, 2))

    # The quantizer's own `forward` is not what decoding calls.
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
        stages["samples"] = _array(decoder(padded.transpose(1, 2)).transpose(1, 2))
    for hook in hooks:
        hook.remove()
    return {name: by_frame(values, lengths) for name, values in stages.items()}


def by_frame(values: np.ndarray, lengths: Sequence[int]) -> Rows:
    """[B, F·rate, C] → [F, rate·C] of each utterance, without its padding."""
    frames = values.reshape(len(lengths), max(lengths), -1)
    return [row[:length] for row, length in zip(frames, lengths, strict=True)]


def _join(first: Any, second: Any) -> Any:
    import torch

    return torch.cat([first, second], dim=1)


def _array(tensor: Any) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy().copy()
