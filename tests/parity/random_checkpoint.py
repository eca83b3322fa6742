"""Writes a checkpoint with random weights in the published layout, through the official classes."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from qwen3_tts_jax import hf_export
from qwen3_tts_jax.config import ModelConfig
from qwen3_tts_jax.presets import PRESETS, preset
from tests import tokenizer_files as text_tokenizer
from tests.draw import draw
from tests.parity.oracle import model_classes, quiet

logger = logging.getLogger(__name__)

_EOS_ROWS = "talker.codec_head.weight"
_PROCESSOR = {
    "padding_side": "left",
    "padding_value": 0.0,
    "processor_class": "Qwen3TTSProcessor",
    "return_attention_mask": True,
}
_FEATURE_EXTRACTOR = {
    "chunk_length_s": None,
    "feature_extractor_type": "EncodecFeatureExtractor",
    "feature_size": 1,
    "overlap": None,
    "padding_side": "right",
    "padding_value": 0.0,
    "return_attention_mask": True,
}


def write_random_checkpoint(
    folder: str | Path,
    config: ModelConfig,
    seed: int = 0,
    dtype: str = "bfloat16",
    tokenizer_files: str | Path | None = None,
    eos_boost: float = 0.0,
) -> Path:
    """Writes all files of a checkpoint in the published layout and returns the folder.

    Args:
        folder: must be empty or not exist.
        config: shapes and token ids.
        seed: see `tests.draw.draw`, which draws every parameter and persistent buffer.
        dtype: "bfloat16" (as published) or "float32", of the main model; the codec is float32.
        tokenizer_files: a folder with vocab.json, merges.txt and tokenizer_config.json; rebuilt if None.
        eos_boost: the codec head's row of the end token is multiplied by 1 + eos_boost. With random weights
            speech seldom ends; 1 makes most rows of a small model end, at different frames below 40.

    Raises:
        FileExistsError: `folder` has files already.
        ValueError: another dtype.
        OracleMissingError: the official package is not installed.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty: choose another folder or empty it")
    if dtype not in ("bfloat16", "float32"):
        raise ValueError(f"dtype must be 'bfloat16' or 'float32', got {dtype!r}")
    top, codec, generation = hf_export.to_hf(config)
    model_class, config_class, codec_class, codec_config_class = model_classes()

    with quiet():
        _write_weights(folder / "speech_tokenizer", codec_class, codec_config_class(**codec), seed, "float32", {})
        _write_weights(folder, model_class, config_class(**top), seed, dtype, {config.prompt.codec_eos: 1 + eos_boost})
    # The official class cannot read the config.json that it writes for a Base model: all JSON files are ours.
    _write_json(folder / "config.json", top)
    _write_json(folder / "speech_tokenizer" / "config.json", codec)
    _write_json(folder / "generation_config.json", generation)
    _write_json(folder / "preprocessor_config.json", _PROCESSOR)
    _write_json(
        folder / "speech_tokenizer" / "preprocessor_config.json",
        {**_FEATURE_EXTRACTOR, "sampling_rate": config.codec.sample_rate},
    )
    if tokenizer_files is None:
        text_tokenizer.write_tokenizer_files(folder)
    else:
        for name in text_tokenizer.FILES:
            shutil.copyfile(Path(tokenizer_files) / name, folder / name)
    return folder


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_weights(
    folder: Path, model_class: type, config: Any, seed: int, dtype: str, row_scales: dict[int, float]
) -> None:
    """config.json and one model.safetensors of a model whose tensors are drawn one by one."""
    import torch

    with torch.device("meta"):
        model = model_class(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    drawn, done, start = {}, 0, time.monotonic()

    def make(name: str) -> torch.Tensor:
        values = draw(name, shapes[name], seed)
        if name == _EOS_ROWS:
            for row, scale in row_scales.items():
                values[row] *= scale
        return torch.from_numpy(values).to(getattr(torch, dtype))

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for name, tensor in zip(shapes, threads.map(make, shapes), strict=True):
            drawn[name] = tensor
            done += tensor.numel()
            if tensor.numel() > 10_000_000:
                logger.info("%6.0f M values drawn, %.0f s", done / 1e6, time.monotonic() - start)
    model.load_state_dict(drawn, strict=True, assign=True)
    model.config.dtype = getattr(torch, dtype)
    model.save_pretrained(folder, max_shard_size="1TB", safe_serialization=True)
    logger.info("wrote %s: %.1f M values, %.0f s", folder, done / 1e6, time.monotonic() - start)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  python tests/parity/random_checkpoint.py /tmp/small --preset 1.7B-Base --small\n"
        "  python tests/parity/random_checkpoint.py /tmp/full --preset 0.6B-CustomVoice",
    )
    parser.add_argument("out", type=Path, help="folder to write; must be empty or not exist")
    parser.add_argument("--preset", required=True, choices=PRESETS, help="which published checkpoint")
    parser.add_argument("--small", action="store_true", help="its small test shapes instead of the published ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the main model")
    parser.add_argument(
        "--eos-boost", type=float, default=0.0, help="1 lets most rows of a small model end below 40 frames"
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    if arguments.small:
        from tests.shapes import SMALL

        config = SMALL[arguments.preset]
    else:
        config = preset(arguments.preset)
    try:
        write_random_checkpoint(arguments.out, config, arguments.seed, arguments.dtype, eos_boost=arguments.eos_boost)
    except (FileExistsError, ImportError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
