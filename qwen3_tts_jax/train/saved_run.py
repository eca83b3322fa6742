"""What a run's folder records of itself, so that any of its checkpoints becomes a model without the run's data."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from qwen3_tts_jax import hf_config, hf_export
from qwen3_tts_jax.convert import load_checkpoint, load_codec, model_rules, tree_shapes
from qwen3_tts_jax.files import completed
from qwen3_tts_jax.train.alignment import AlignmentConfig
from qwen3_tts_jax.train.checkpoints import BEST, CHECKPOINTS
from qwen3_tts_jax.train.export import export_model
from qwen3_tts_jax.train.fingerprint import fingerprint
from qwen3_tts_jax.train.lora import LoraConfig
from qwen3_tts_jax.train.new_model import new_params
from qwen3_tts_jax.train.optimizer import OptimizerConfig
from qwen3_tts_jax.train.state_files import RunError, latest, load_state, saved_settings
from qwen3_tts_jax.train.step import PARTS, Recipe, assemble, frozen_paths, start

_FILE = "job.json"
_EMBEDDING = "talker/codec_embedding/embedding"


def describe_run(output: Path, recipe: Recipe, *, source: Path | None, tokenizer: Path, codec: Path) -> None:
    """Writes `output`/job.json.

    Args:
        output: folder of the run.
        recipe: the run's.
        source: folder of the model that it starts from; None where it starts from nothing.
        tokenizer: folder of the text tokenizer.
        codec: the codec's folder.
    """
    lora, alignment = recipe.lora, recipe.alignment
    content = {
        "source": None if source is None else _place(source, output),
        "tokenizer": _place(tokenizer, output),
        "codec": _place(codec, output),
        "model": hf_export.to_hf(recipe.model),
        "lora": None if lora is None else asdict(lora),
        "alignment": None if alignment is None else asdict(alignment),
        "frozen": recipe.frozen,
        "speaker_rows": recipe.speaker_rows,
        "average": recipe.average,
        "optimizer": asdict(recipe.optimizer),
    }
    output.mkdir(parents=True, exist_ok=True)
    with completed(output / _FILE) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _place(path: Path, run: Path) -> str:
    """An absolute path or, for what lies in the run, one relative to it, so that the run may be moved."""
    place, folder = Path(os.path.abspath(path)), os.path.abspath(run)
    return str(place.relative_to(folder) if place.is_relative_to(folder) else place)


def is_run(folder: str | Path) -> bool:
    """Whether a folder is that of a run."""
    return (Path(folder) / _FILE).is_file() and (Path(folder) / CHECKPOINTS).is_dir()


def export_run(
    run: str | Path, folder: str | Path, dtype: str | None, which: Literal["best", "last"] = "best"
) -> tuple[Path, str]:
    """Writes the model that a checkpoint of a run stands for, finished or not, in the published layout.

    Args:
        run: the run's folder.
        folder: must not exist.
        dtype: see `export_model`.
        which: the best by validation, or the last if there was none; or always the last.

    Returns:
        `folder` and the checkpoint's name.

    Raises:
        RunError: no checkpoint, a broken one, one that cannot do without its run, or one that started from other
            weights than those that the source holds now.
        FileNotFoundError: the model, tokenizer or codec that the run started from is gone.
        FileExistsError: `folder` exists.
    """
    run = Path(run)
    try:
        saved = json.loads((run / _FILE).read_text(encoding="utf-8"))
        recipe = _recipe(saved)
        source, tokenizer, codec = (saved[name] and run / saved[name] for name in ("source", "tokenizer", "codec"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{run / _FILE} is damaged: {error}") from error
    checkpoint = run / CHECKPOINTS / BEST
    if which == "last" or not checkpoint.is_dir():
        checkpoint = latest(run / CHECKPOINTS)
    if checkpoint is None:
        raise RunError(f"{run} has no checkpoint yet")
    for place in (source, tokenizer, codec):
        if place is not None and not place.is_dir():
            raise FileNotFoundError(f"{place} is not there any more: the run {run} started from it")
    model = recipe.model
    if source is None:
        params = new_params(model)
    else:
        if recipe.lora is None and _EMBEDDING in frozen_paths(tree_shapes(model_rules(model)), recipe):
            raise RunError(f"{run} trained nothing of the codec embedding: its model comes at the end of the run alone")
        base = hf_config.read_folder(source).with_dtypes("float32")
        params = load_checkpoint(source, base, PARTS)
        found = fingerprint(params)
        # Older checkpoints do not tell.
        if saved_settings(checkpoint).get("base", found) != found:
            raise RunError(f"{source} does not hold the weights that {run} started from")
    state, frozen = start(params, recipe)
    trained: dict[str, Any] = dict(assemble(load_state(checkpoint, state, {}).kept, frozen, recipe))
    if model.speaker_encoder is not None:
        trained |= load_checkpoint(source, model, ["speaker_encoder"])
    if not list(codec.glob("*.safetensors")):
        trained["codec"] = load_codec(codec, model.codec)
    return export_model(folder, trained, model, tokenizer, dtype, codec=codec), checkpoint.name


def _recipe(saved: Mapping[str, Any]) -> Recipe:
    """The run's recipe, as far as the shape of its state depends on it."""
    lora, alignment, optimizer = saved["lora"], saved["alignment"], saved["optimizer"]
    return Recipe(
        hf_config.from_hf(*saved["model"]).with_dtypes("float32"),
        lora=None if lora is None else LoraConfig(**lora | {"modules": tuple(lora["modules"])}),
        alignment=None if alignment is None else AlignmentConfig(**alignment),
        frozen=tuple(saved["frozen"]),
        speaker_rows=tuple(saved["speaker_rows"]),
        average=saved["average"],
        optimizer=OptimizerConfig(**optimizer | {"betas": tuple(optimizer["betas"])}),
    )
