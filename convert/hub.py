"""Finds a model: in this package, in a folder, or in a repository of the Hugging Face Hub."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from qwen3_tts_jax.convert.check import CODEC_FOLDER, WEIGHTS, CheckpointError, is_converted
from qwen3_tts_jax.hf_config import read_codec, read_folder
from qwen3_tts_jax.packaged import MINI, local_folder
from qwen3_tts_jax.presets import PRESETS

PREFIX = "Qwen/Qwen3-TTS-12Hz-"

CODEC_SHA256 = "836b7b357f5ea43e889936a3709af68dfe3751881acefe4ecf0dbd30ba571258"
MODEL_SHA256 = {
    "0.6B-Base": "180b3b10eb1c9f1b4db7806d5475bae3071c0243c299d49926bab1da3b6946f6",
    "0.6B-CustomVoice": "bc3c7e785eb961179c25450d1acff03f839e0002f2f3a5aeb67b5735c0fa2adb",
    "1.7B-Base": "38fc7fc51c5e776e840414b6fd443962e9411b9654888fd7913e4da643cb857c",
    "1.7B-CustomVoice": "38b1d5971bdbd982b561cccec982669a53b0537c3cf5e9bd4778ed07bb2f5137",
    "1.7B-VoiceDesign": "391e8db219f292c515297cdceeb43e4eae67cdde35fa57e79a6a8a532fca0522",
}
"""SHA-256 of `model.safetensors` as published; the codec's file is the same in all five."""

_FILES = (
    "*.json",
    "*.txt",
    "model*.safetensors",
    f"{CODEC_FOLDER}/*.json",
    f"{CODEC_FOLDER}/model*.safetensors",
)
_CODEC_FILES = ("config.json", f"{CODEC_FOLDER}/*.json", f"{CODEC_FOLDER}/model*.safetensors")
_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")

_log = logging.getLogger(__name__)


class ModelNotFoundError(FileNotFoundError):
    """A model that is neither a folder nor available from the Hub; the message says what was tried."""


def resolve(
    model: str | Path,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool | None = None,
    verify: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """The folder of a model, downloaded where necessary.

    Args:
        model: `mini`, which is in this package; a folder, in the published layout or converted; a repository id such
            as `Qwen/Qwen3-TTS-12Hz-0.6B-CustomVoice`; or the short name of a published model, `0.6B-CustomVoice`.
        revision: branch, tag or commit of the repository; its main branch by default.
        cache_dir: where downloads are kept; Hugging Face's own cache by default.
        local_files_only: use only what was downloaded before. None leaves it to `HF_HUB_OFFLINE`.
        verify: compare the weights with the published SHA-256 digests.
        progress: for `verify`, called with the bytes done and the bytes to do.

    Raises:
        ModelNotFoundError: neither a folder nor available from the Hub, with what was tried and why.
        CheckpointError: `verify` found a digest that differs from the published one.
    """
    folder = local_folder(model) or _download(str(model), revision, cache_dir, bool(local_files_only), _FILES)
    if verify:
        verify_digests(folder, progress)
    return folder


def resolve_codec(
    model: str | Path,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool | None = None,
) -> Path:
    """The codec's own folder, with its config.json and weights; nothing else is downloaded.

    Args:
        model: as in `resolve`, or a folder or repository that holds the codec alone, such as
            `Qwen/Qwen3-TTS-Tokenizer-12Hz`.
        revision: as in `resolve`.
        cache_dir: as in `resolve`.
        local_files_only: as in `resolve`.

    Raises:
        ModelNotFoundError: as `resolve`.
        FileNotFoundError: a folder or repository without config.json.
        qwen3_tts_jax.config.ConfigError: it holds no codec that this package can run.
    """
    local = local_folder(model)
    folder = local or _download(str(model), revision, cache_dir, bool(local_files_only), _CODEC_FILES)
    if (folder / CODEC_FOLDER).is_dir():
        return folder / CODEC_FOLDER
    # Checked before the weights are downloaded: without a codec they would be gigabytes of something else.
    read_codec(folder)
    if local is None:
        folder = _download(str(model), revision, cache_dir, bool(local_files_only), _FILES)
    return folder


def _download(
    model: str, revision: str | None, cache_dir: str | Path | None, local_files_only: bool, files: Iterable[str]
) -> Path:
    repository = PREFIX + model if model in PRESETS else model
    if not _REPOSITORY.fullmatch(repository):
        raise ModelNotFoundError(
            f"{model!r} is neither a folder, nor a Hugging Face repository (owner/name), "
            f"nor one of {', '.join((MINI, *PRESETS))}"
        )
    tried = f"{model!r} is not a folder, and the Hugging Face repository {repository}"
    if revision is not None:
        tried += f" at revision {revision!r}"
    _log.info("looking for %s", repository)
    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                allow_patterns=list(files),
            )
        )
    except RevisionNotFoundError:
        raise ModelNotFoundError(f"{tried} does not exist: there is no such revision") from None
    except RepositoryNotFoundError:
        raise ModelNotFoundError(f"{tried} does not exist or is not public") from None
    except LocalEntryNotFoundError:
        why = "is not in the cache and cannot be reached: check the network and HF_HUB_OFFLINE"
        if local_files_only:
            why = "was not downloaded before, which cannot be done offline: go online"
        raise ModelNotFoundError(f"{tried} {why}, or give the folder of a download") from None
    except HFValidationError:
        raise ModelNotFoundError(f"{model!r} is not a folder, and no Hugging Face repository has such a name") from None
    except (HfHubHTTPError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelNotFoundError(f"{tried} could not be downloaded: {reason}") from error


def verify_digests(folder: Path, progress: Callable[[int, int], None] | None = None) -> None:
    """Compares both weight files with the digests of the published checkpoint that config.json names.

    Raises:
        CheckpointError: a file differs or is missing, no such checkpoint was published, or it is converted.
    """
    if folder == local_folder(MINI):
        raise CheckpointError(folder, [f"{MINI} comes with this package: there is no published file to compare with"])
    if is_converted(folder):
        raise CheckpointError(folder, ["it is converted: only a published checkpoint can be verified"])
    config = read_folder(folder)
    size = {"0b6": "0.6B", "1b7": "1.7B"}.get(config.model_size, config.model_size)
    name = f"{size}-{config.model_type.title().replace('_', '')}"
    if name not in MODEL_SHA256:
        raise CheckpointError(folder, [f"{name} was never published: there is no digest to compare with"])
    expected = {folder / WEIGHTS: MODEL_SHA256[name], folder / CODEC_FOLDER / WEIGHTS: CODEC_SHA256}
    missing = [f"{file.relative_to(folder)} is missing" for file in expected if not file.exists()]
    if missing:
        raise CheckpointError(folder, missing)
    total, done, problems = sum(file.stat().st_size for file in expected), 0, []
    for file, digest in expected.items():
        found = hashlib.sha256()
        with file.open("rb") as stream:
            while piece := stream.read(4 << 20):
                found.update(piece)
                done += len(piece)
                if progress is not None:
                    progress(done, total)
        if found.hexdigest() != digest:
            problems.append(
                f"{file.relative_to(folder)} is not the published file of {name}: "
                f"sha256 {found.hexdigest()}, published {digest}"
            )
    if problems:
        raise CheckpointError(folder, problems)
