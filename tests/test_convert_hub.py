"""Folders, repositories and short names of models, without a network."""

import hashlib
import json

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

from qwen3_tts_jax import hf_export
from qwen3_tts_jax.convert import CheckpointError, ModelNotFoundError, hub, resolve
from qwen3_tts_jax.convert.check import MARKER
from qwen3_tts_jax.presets import PRESETS, preset


@pytest.fixture
def downloads(monkeypatch, tmp_path):
    """Calls of `snapshot_download`, which gives an empty folder."""
    calls = []
    (tmp_path / "snapshot").mkdir()

    def download(repository, **kwargs):
        calls.append((repository, kwargs))
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(hub, "snapshot_download", download)
    return calls


def test_a_folder_is_itself(downloads, tmp_path, monkeypatch):
    assert resolve(tmp_path) == tmp_path
    assert resolve(str(tmp_path)) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert resolve(f"~/{tmp_path.name}") == tmp_path
    # A folder goes before a short name and a repository of its name.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "0.6B-Base").mkdir()
    assert resolve("0.6B-Base").samefile(tmp_path / "0.6B-Base")
    assert downloads == []


def test_short_names_and_repositories_are_downloaded(downloads, tmp_path):
    assert resolve("0.6B-CustomVoice") == tmp_path / "snapshot"
    resolve("someone/fine-tuned_2", revision="v1", cache_dir=tmp_path, local_files_only=True)
    (first, first_options), (second, second_options) = downloads
    assert first == "Qwen/Qwen3-TTS-12Hz-0.6B-CustomVoice"
    assert second == "someone/fine-tuned_2"
    patterns = first_options.pop("allow_patterns")
    assert second_options.pop("allow_patterns") == patterns
    assert first_options == {"revision": None, "cache_dir": None, "local_files_only": False}
    assert second_options == {"revision": "v1", "cache_dir": tmp_path, "local_files_only": True}


def test_all_needed_files_are_downloaded_and_no_others(downloads):
    from huggingface_hub.utils import filter_repo_objects

    resolve("0.6B-Base")
    needed = [
        "config.json", "generation_config.json", "merges.txt", "model.safetensors", "model.safetensors.index.json",
        "model-00001-of-00002.safetensors", "tokenizer_config.json", "vocab.json", "speech_tokenizer/config.json",
        "speech_tokenizer/model.safetensors", "speech_tokenizer/preprocessor_config.json",
    ]  # fmt: skip
    others = ["README.md", "pytorch_model.bin", "optimizer.safetensors", "assets/demo.wav", ".gitattributes"]
    assert list(filter_repo_objects(needed + others, allow_patterns=downloads[0][1]["allow_patterns"])) == needed


# An empty name must not become the current folder.
@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "0.6B", "a b/c", ""])
def test_what_is_neither_folder_nor_repository_is_refused(downloads, name):
    with pytest.raises(ModelNotFoundError, match=f"'{name}' is neither a folder, nor .*, nor one of mini, 0.6B-Base, "):
        resolve(name)
    assert downloads == []


@pytest.mark.parametrize("name", ["models/my--run", "some/model.git", "a/b..c"])
def test_a_name_that_no_repository_can_have(name):
    with pytest.raises(ModelNotFoundError, match=f"'{name}' is not a folder, and no Hugging Face repository"):
        resolve(name)


class Response:
    """As much of a HTTP response as the errors of huggingface_hub look at."""

    def __init__(self):
        self.headers, self.request = {}, None


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RepositoryNotFoundError("404", response=Response()), "does not exist or is not public"),
        (RevisionNotFoundError("404", response=Response()), "does not exist: there is no such revision"),
        (
            LocalEntryNotFoundError("offline"),
            "is not in the cache and cannot be reached: check the network and HF_HUB_OFFLINE, "
            "or give the folder of a download",
        ),
        (OSError("No space left\non device"), "could not be downloaded: No space left"),
    ],
    ids=["repository", "revision", "offline", "disk"],
)
def test_failed_downloads_say_what_was_tried(monkeypatch, error, message):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(ModelNotFoundError) as caught:
        resolve("a/b", revision="r")
    tried = "'a/b' is not a folder, and the Hugging Face repository a/b at revision 'r'"
    assert str(caught.value) == f"{tried} {message}"


def test_offline_and_not_in_the_cache(tmp_path):
    with pytest.raises(ModelNotFoundError, match="was not downloaded before, which cannot be done offline"):
        resolve("1.7B-Base", cache_dir=tmp_path, local_files_only=True)


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A folder that claims to be 1.7B-VoiceDesign, and digests that its two files have."""
    (tmp_path / "speech_tokenizer").mkdir()
    top, codec, _ = hf_export.to_hf(preset("1.7B-VoiceDesign"))
    (tmp_path / "config.json").write_text(json.dumps(top))
    (tmp_path / "speech_tokenizer" / "config.json").write_text(json.dumps(codec))
    (tmp_path / "model.safetensors").write_bytes(b"model")
    (tmp_path / "speech_tokenizer" / "model.safetensors").write_bytes(b"codec file")
    monkeypatch.setitem(hub.MODEL_SHA256, "1.7B-VoiceDesign", hashlib.sha256(b"model").hexdigest())
    monkeypatch.setattr(hub, "CODEC_SHA256", hashlib.sha256(b"codec file").hexdigest())
    return tmp_path


def test_published_files_are_verified(published):
    calls = []
    assert resolve(published, verify=True, progress=lambda *call: calls.append(call)) == published
    assert calls == [(5, 15), (15, 15)]


def test_other_files_than_the_published_ones_are_named(published):
    (published / "model.safetensors").write_bytes(b"modem")
    (published / "speech_tokenizer" / "model.safetensors").write_bytes(b"codec filf")
    resolve(published)
    with pytest.raises(CheckpointError) as caught:
        resolve(published, verify=True)
    assert [problem.split(": sha256")[0] for problem in caught.value.problems] == [
        "model.safetensors is not the published file of 1.7B-VoiceDesign",
        "speech_tokenizer/model.safetensors is not the published file of 1.7B-VoiceDesign",
    ]


def test_converted_checkpoints_cannot_be_verified(published):
    (published / MARKER).touch()
    with pytest.raises(CheckpointError, match="only a published checkpoint can be verified"):
        resolve(published, verify=True)


def test_verification_needs_the_files_and_a_published_model(published, monkeypatch):
    (published / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
        resolve(published, verify=True)
    monkeypatch.delitem(hub.MODEL_SHA256, "1.7B-VoiceDesign")
    with pytest.raises(CheckpointError, match=r"1\.7B-VoiceDesign was never published"):
        resolve(published, verify=True)


def test_there_is_a_digest_for_every_published_model():
    assert tuple(hub.MODEL_SHA256) == PRESETS
    digests = [*hub.MODEL_SHA256.values(), hub.CODEC_SHA256]
    assert len(set(digests)) == 6
    assert all(len(bytes.fromhex(digest)) == 32 for digest in digests)
