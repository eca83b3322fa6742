"""Programs in a file: exported once with `jax.export`, run by processes that have JAX and NumPy, but not the model.

`export_programs` writes a ZIP archive of serialized programs and `programs.json`, which says what they take;
`load_programs` reads it, and imports nothing else of this package. Weights are not in the file: they are given as a
flat list in the order of `Programs.weights`. For one size of batch there are three programs:

    prefill(weights, prompt, seed, utterances, frame_limits) → state
    chunk(weights, state)                                    → state, codes int32 [B, chunk_frames, Q], −1 after the end
    decode(weights, codec_state, codes [B, chunk_frames, Q]) → codec_state, samples float32 [B, N]

`prompt` is a dict of the arrays of `prompt.PromptBatch`; `Programs.codec_state` makes what the first `decode` takes.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from qwen3_tts_jax.config import GenerationConfig, ModelConfig
    from qwen3_tts_jax.decode_state import DecodeState

FORMAT = 1
_MANIFEST = "programs.json"
_STEPS = ("prefill", "chunk", "decode")


@dataclass(frozen=True)
class Size:
    """The shapes of one set of programs.

    Attributes:
        rows: B.
        prompt_slots: T, the longest prompt.
        capacity: slots of the cache: the prompt's and one for each frame.
        text_slots: for text that is spoken as it comes; 0 where prompts hold all of it.
        chunk_frames: frames per call of `chunk` and `decode`.
    """

    rows: int
    prompt_slots: int
    capacity: int
    text_slots: int = 0
    chunk_frames: int = 8


class Programs:
    """The programs of a file.

    Attributes:
        sizes: the sizes in the file.
        weights: [(path, shape, dtype)] of the flat list of weights.
        facts: about the model: num_codebooks, sample_rate, frame_samples, tts_pad.
        platforms: where they run.
    """

    def __init__(self, manifest: dict[str, Any], programs: dict[tuple[str, Size], jax.export.Exported]):
        self.sizes = [Size(**size) for size in manifest["sizes"]]
        self.weights = [(path, tuple(shape), dtype) for path, shape, dtype in manifest["weights"]]
        self.facts: dict[str, int] = manifest["facts"]
        self.platforms: list[str] = manifest["platforms"]
        self._codec_states = manifest["codec_states"]
        # A state is used up by the call that takes it, so that its memory serves the next one.
        donated = {"prefill": (), "chunk": (1,), "decode": (1,)}
        self._calls = {key: jax.jit(program.call, donate_argnums=donated[key[0]]) for key, program in programs.items()}

    def prefill(
        self,
        size: Size,
        weights: Sequence[jax.Array],
        prompt: dict[str, np.ndarray],
        seed: int,
        utterances: np.ndarray,
        frame_limits: np.ndarray,
    ) -> list[jax.Array]:
        """Reads prompts.

        Args:
            size: one of `sizes`.
            weights: the flat list.
            prompt: text_ids [B, T], codes [B, T, Q], lengths [B], trailing_text_ids [B, U], speaker_position [B];
                and x_vectors [B, D], which are None unless the model clones voices.
            seed: seeds the draws, together with the utterance's number.
            utterances: int32 [B].
            frame_limits: int32 [B], the most frames of each row.

        Returns:
            The state for `chunk`.
        """
        return self._calls["prefill", size](
            list(weights), prompt, np.uint32(seed), np.asarray(utterances, np.int32), np.asarray(frame_limits, np.int32)
        )

    def chunk(
        self, size: Size, weights: Sequence[jax.Array], state: list[jax.Array]
    ) -> tuple[list[jax.Array], jax.Array]:
        """Makes frames: the state, and codes int32 [B, chunk_frames, Q], −1 in rows that have ended."""
        return self._calls["chunk", size](list(weights), state)

    def codec_state(self, size: Size) -> list[jax.Array]:
        """What the first `decode` takes."""
        return [jnp.zeros(shape, dtype) for shape, dtype in self._codec_states[self.sizes.index(size)]]

    def decode(
        self, size: Size, weights: Sequence[jax.Array], codec_state: list[jax.Array], codes: Any
    ) -> tuple[list[jax.Array], jax.Array]:
        """Decodes codes int32 [B, chunk_frames, Q]: the state and samples float32 [B, N].

        −1 counts as 0, as in `decoder.decode_step`.
        """
        return self._calls["decode", size](list(weights), codec_state, codes)


def load_programs(file: str | Path) -> Programs:
    """Reads what `export_programs` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, a damaged one, or one of a newer format.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            manifest = json.loads(archive.read(_MANIFEST))
            written_as = manifest["format"]
            if written_as == FORMAT:
                programs = {
                    (step, Size(**size)): jax.export.deserialize(bytearray(archive.read(_name(step, index))))
                    for index, size in enumerate(manifest["sizes"])
                    for step in _STEPS
                }
                return Programs(manifest, programs)
    except OSError:
        raise
    except Exception as error:
        # What JAX raises for a damaged program depends on where in it the damage is.
        raise ValueError(f"{file} holds no exported programs: {type(error).__name__}: {error}") from error
    raise ValueError(f"{file} has format {written_as}, this version reads {FORMAT}: export again")


def flat_weights(params: dict[str, Any]) -> list[Any]:
    """The parameters that the programs need (talker, code predictor, codec decoder), in the order of the list."""
    return jax.tree.leaves(_needed(params))


def check_sizes(sizes: Sequence[Size], config: ModelConfig) -> None:
    """Refuses sizes that no programs can have.

    Raises:
        ValueError: no sizes, a size given twice, a cache without room for a frame, or one beyond the model's context.
    """
    if not sizes or len(set(sizes)) < len(sizes):
        raise ValueError(f"sizes must be at least one, and none twice, got {list(sizes)}")
    for size in sizes:
        if size.capacity <= size.prompt_slots:
            raise ValueError(f"capacity={size.capacity} leaves no room for frames after {size.prompt_slots} slots")
        if size.capacity > config.talker.max_positions:
            frames = size.capacity - size.prompt_slots
            raise ValueError(
                f"{size.prompt_slots} positions of the prompt and {frames} frames exceed the model's context of "
                f"{config.talker.max_positions}"
            )


def export_programs(
    file: str | Path,
    params: dict[str, Any],
    config: ModelConfig,
    sizes: Sequence[Size],
    *,
    generation: GenerationConfig | None = None,
    platforms: Sequence[str] | None = None,
) -> Path:
    """Writes the programs of a model into a file.

    Args:
        file: where to write; an existing file is replaced once the new one is complete.
        params: the model's, or their shapes (`jax.ShapeDtypeStruct`).
        config: the model's.
        sizes: at least one.
        generation: how codes are drawn, which becomes part of the programs; the checkpoint's own by default.
        platforms: to run on ("cpu", "cuda", "rocm", "tpu"); by default the one that JAX uses here.

    Raises:
        ValueError: as `check_sizes`.
    """
    from qwen3_tts_jax import generate
    from qwen3_tts_jax.codec import hopper
    from qwen3_tts_jax.devices import default_device
    from qwen3_tts_jax.files import completed

    file, sizes = Path(file), list(sizes)
    check_sizes(sizes, config)
    weights = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), _needed(params))
    generation = generation or config.generation
    # A kernel would tie the programs to one kind of device.
    config = config.with_attention(lambda _: "xla")
    config = replace(config, codec=hopper.configure(config.codec, kernels=False))
    first, *others = platforms or [default_device().platform]
    config = generate.configure(config, None if others else first)
    options = {} if platforms is None else {"platforms": tuple(platforms)}
    content, codec_states = {}, []
    for index, size in enumerate(sizes):
        exported, codec_state = _export(weights, config, generation, size, options)
        codec_states.append([(leaf.shape, leaf.dtype.name) for leaf in codec_state])
        content |= {_name(step, index): program.serialize() for step, program in exported.items()}
        used = exported["chunk"].platforms
    manifest = {
        "format": FORMAT,
        "sizes": [asdict(size) for size in sizes],
        "platforms": list(used),
        "facts": {
            "num_codebooks": config.talker.num_codebooks,
            "sample_rate": config.codec.sample_rate,
            "frame_samples": config.codec.frame_samples,
            "tts_pad": config.prompt.tts_pad,
        },
        "weights": [
            ("/".join(entry.key for entry in path), leaf.shape, leaf.dtype.name)
            for path, leaf in jax.tree_util.tree_flatten_with_path(weights)[0]
        ],
        "codec_states": codec_states,
    }
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as written:
        written.writestr(_MANIFEST, json.dumps(manifest, indent=1))
        for name, program in content.items():
            written.writestr(name, program)
    with completed(file) as temporary:
        temporary.write_bytes(archive.getvalue())
    return file


def _needed(params: dict[str, Any]) -> dict[str, Any]:
    codec = {"decoder": params["codec"]["decoder"]}
    return {"talker": params["talker"], "code_predictor": params["code_predictor"], "codec": codec}


def _name(step: str, index: int) -> str:
    return f"{index}/{step}.bin"


def _export(
    weights: dict[str, Any], config: ModelConfig, generation: GenerationConfig, size: Size, options: dict[str, Any]
) -> tuple[dict[str, jax.export.Exported], list[jax.ShapeDtypeStruct]]:
    """The programs of one size, and the leaves of the codec's first state."""
    from qwen3_tts_jax import generate
    from qwen3_tts_jax.codec import decoder
    from qwen3_tts_jax.prompt import PromptBatch

    def ids(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    rows, codebooks = size.rows, config.talker.num_codebooks
    prompt = {
        "text_ids": ids(rows, size.prompt_slots),
        "codes": ids(rows, size.prompt_slots, codebooks),
        "lengths": ids(rows),
        "trailing_text_ids": ids(rows, size.text_slots),
        "x_vectors": None,
        "speaker_position": ids(rows),
    }
    if config.speaker_encoder is not None:
        prompt["x_vectors"] = jax.ShapeDtypeStruct((rows, config.speaker_encoder.x_vector_width), jnp.float32)
    request = (prompt, jax.ShapeDtypeStruct((), jnp.uint32), ids(rows), ids(rows))
    leaves, tree = jax.tree.flatten(weights)

    def start(weights, prompt, seed, utterances, limits):
        keys = generate.utterance_keys(seed, utterances)
        params = tree.unflatten(weights)
        return generate.prefill(params, config, PromptBatch(**prompt), keys, limits, size.capacity)

    # A file knows lists of plain arrays, not the classes of this package or JAX's typed keys.
    typed, state_tree = jax.tree.flatten(jax.eval_shape(start, leaves, *request))
    first = jax.eval_shape(lambda: decoder.initial_state(config.codec.decoder, rows))
    codec_state, codec_tree = jax.tree.flatten(first)

    def plain(state: DecodeState) -> list[jax.Array]:
        return [jax.random.key_data(leaf) if _is_key(leaf) else leaf for leaf in jax.tree.leaves(state)]

    def prefill(weights, prompt, seed, utterances, limits):
        return plain(start(weights, prompt, seed, utterances, limits))

    def chunk(weights, state):
        pairs = zip(state, typed, strict=True)
        state = state_tree.unflatten(
            [jax.random.wrap_key_data(leaf, impl=generate.PRNG) if _is_key(like) else leaf for leaf, like in pairs]
        )
        state, codes = generate.generate(tree.unflatten(weights), config, generation, state, size.chunk_frames)
        return plain(state), codes

    def decode(weights, state, codes):
        params = tree.unflatten(weights)["codec"]["decoder"]
        state, samples = decoder.decode_step(params, config.codec.decoder, codec_tree.unflatten(state), codes)
        return jax.tree.leaves(state), samples

    def export(function: Callable, *arguments: Any) -> jax.export.Exported:
        # JAX does not promise for how long the cache's layout constraints can be read; they are only advice.
        allowed = [jax.export.DisabledSafetyCheck.custom_call("LayoutConstraint")]
        return jax.export.export(jax.jit(function), disabled_checks=allowed, **options)(*arguments)

    state = jax.eval_shape(prefill, leaves, *request)
    codes = ids(rows, size.chunk_frames, codebooks)
    exported = {
        "prefill": export(prefill, leaves, *request),
        "chunk": export(chunk, leaves, state),
        "decode": export(decode, leaves, codec_state, codes),
    }
    return exported, codec_state


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
