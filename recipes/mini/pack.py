"""A trained talker and its codec → the model `mini` in the package.

    python -m recipes.mini.pack RUN CODEC --temperature 0.7 --top-k 30

RUN is the folder of a `train talker` run whose texts were phonemes, CODEC that of a codec of the same shape. Talker
and code predictor are written in bfloat16; so is the codec, except its codebooks, if what the model says then stays
within --codec-snr of what it says in float32. Sampling options that are not given stay those of RUN. Speakers are put
in the order of `packaged.MINI_VOICES`: the first speaks if none is chosen. The model that was in the package is
replaced once everything is written.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from qwen3_tts_jax import hf_config
from qwen3_tts_jax.arguments import merge_sampling
from qwen3_tts_jax.codec_decoding import decode_codes
from qwen3_tts_jax.config import ModelConfig
from qwen3_tts_jax.convert import load_checkpoint, load_codec
from qwen3_tts_jax.packaged import MINI, MINI_VOICES, local_folder
from qwen3_tts_jax.pipeline import Qwen3TTS
from qwen3_tts_jax.prompt import Request
from qwen3_tts_jax.text.tokenizer import PHONEMES, TextTokenizer
from qwen3_tts_jax.train.export import export_model

MOST_MEGABYTES = 40
_SAMPLING = ("temperature", "top_k", "top_p", "repetition_penalty")
_SUBTALKER = ("subtalker_temperature", "subtalker_top_k", "subtalker_top_p")
_TEXTS = ("The train leaves at a quarter to nine.", "Did you find what you were looking for?")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("codec", type=Path)
    parser.add_argument("--output", type=Path, default=local_folder(MINI))
    for name in (*_SAMPLING, *_SUBTALKER):
        kind = int if name.endswith("top_k") else float
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=None)
    parser.add_argument("--codec-snr", type=float, default=30.0, help="dB; inf keeps the codec in float32")
    options = parser.parse_args()
    sampling = {name: getattr(options, name) for name in (*_SAMPLING, *_SUBTALKER)}
    pack(options.run / "model", options.codec, options.output, sampling, options.codec_snr)
    for file in sorted(path for path in options.output.rglob("*") if path.is_file()):
        print(f"{file.stat().st_size / 1e6:8.3f} MB  {file.relative_to(options.output)}")
    print(f"{megabytes(options.output):8.3f} MB  {options.output}")


def pack(model: Path, codec: Path, output: Path, sampling: Mapping[str, Any], codec_snr: float) -> None:
    """Writes `output`.

    Args:
        model: in the published layout.
        codec: its own folder.
        output: replaced if it exists.
        sampling: arguments of `arguments.merge_sampling`; None leaves one as it is.
        codec_snr: least ratio of signal to change, in dB, for the codec's weights to be rounded.

    Raises:
        ValueError: a codec of another shape, other speakers, or more than `MOST_MEGABYTES`.
    """
    config = hf_config.read_folder(model)
    if hf_config.read_codec(codec) != config.codec:
        raise ValueError(f"{codec} has another shape than the codec of {model}")
    if set(config.prompt.speakers) != set(MINI_VOICES):
        raise ValueError(f"{model} speaks as {', '.join(config.prompt.speakers)}, not as {', '.join(MINI_VOICES)}")
    speakers = {name: config.prompt.speakers[name] for name in MINI_VOICES}
    config = replace(
        config,
        prompt=replace(config.prompt, speakers=speakers),
        generation=merge_sampling(config, dict(sampling))[0],
    ).with_dtypes("float32")
    params = load_checkpoint(model, config, ("talker", "code_predictor")) | {"codec": load_codec(codec, config.codec)}
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as temporary:
        source = Path(
            shutil.copytree(model, Path(temporary) / "source", ignore=shutil.ignore_patterns("*.safetensors"))
        )
        tokenizer = source / "tokenizer_config.json"
        settings = json.loads(tokenizer.read_text(encoding="utf-8")) | {"phonemes": PHONEMES}
        tokenizer.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        params["codec"] = smaller_codec(params, config, TextTokenizer.from_folder(source), codec_snr)
        written = export_model(Path(temporary) / "model", params, config, source, "bfloat16", codec=codec)
        if megabytes(written) > MOST_MEGABYTES:
            raise ValueError(f"{megabytes(written):.1f} MB are more than {MOST_MEGABYTES}")
        if output.exists():
            output.rename(Path(temporary) / "before")
        written.rename(output)


def smaller_codec(
    params: dict[str, Any], config: ModelConfig, tokenizer: TextTokenizer, least: float
) -> dict[str, Any]:
    """The codec in bfloat16, except its codebooks, or in float32 if the ratio falls below `least` dB."""
    leaves = flatten_dict(params["codec"], sep="/")
    codebooks = ("embedding_sum", "cluster_usage", "initialized")
    small = unflatten_dict(
        {
            path: leaf if path.rpartition("/")[2] in codebooks else leaf.astype(jnp.bfloat16)
            for path, leaf in leaves.items()
        },
        sep="/",
    )
    requests = [Request(text, "english", speaker) for text in _TEXTS for speaker in config.prompt.speakers]
    speeches = Qwen3TTS(config, params, tokenizer).synthesize(requests)
    said = np.concatenate([speech.samples for speech in speeches])
    # Rounded weights as they are loaded: products stay in float32.
    rounded = unflatten_dict({path: leaf.astype(jnp.float32) for path, leaf in flatten_dict(small).items()})
    again = decode_codes(rounded["decoder"], config.codec, [speech.codes for speech in speeches])
    noise = np.concatenate(again) - said
    ratio = 10 * np.log10(np.mean(said**2) / max(np.mean(noise**2), 1e-20))
    chosen = "bfloat16" if ratio >= least else "float32"
    print(f"codec in {chosen}: rounded, it differs by {ratio:.1f} dB from itself in float32")
    return small if ratio >= least else params["codec"]


def megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


if __name__ == "__main__":
    main()
