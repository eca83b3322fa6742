"""The rules against the official classes: every name and shape, and the layouts of every kind of layer."""

import numpy as np
import pytest
import torch

from qwen3_tts_jax import hf_export
from qwen3_tts_jax.convert import export_safetensors, load_params
from qwen3_tts_jax.convert.rules import codec_rules, model_rules
from qwen3_tts_jax.presets import PRESETS, preset
from tests.parity.oracle import model_classes, quiet
from tests.safetensors_folder import all_parts
from tests.shapes import SMALL

CONFIGS = {
    **{f"published {name}": preset(name) for name in PRESETS},
    **{f"small {name}": config for name, config in SMALL.items()},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_rules_are_the_state_dicts_of_the_official_classes(name):
    config = CONFIGS[name]
    top, codec, _ = hf_export.to_hf(config)
    model_class, config_class, codec_class, codec_config_class = model_classes()
    with quiet(), torch.device("meta"):
        models = model_class(config_class(**top)), codec_class(codec_config_class(**codec))
    for model, rules in zip(models, (model_rules(config), codec_rules(config.codec)), strict=True):
        expected = {torch_name: shape for rule in rules for torch_name, shape in rule.torch.items()}
        assert {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()} == expected


def test_the_official_package_loads_what_is_exported(checkpoint, tmp_path):
    folder, config = checkpoint("1.7B-Base", dtype="float32"), SMALL["1.7B-Base"]
    export_safetensors(tmp_path, load_params(folder, config, all_parts(config)), config)
    for file in [*folder.glob("*.json"), *folder.glob("speech_tokenizer/*.json")]:
        (tmp_path / file.relative_to(folder)).write_bytes(file.read_bytes())
    model_class, _, codec_class, _ = model_classes()
    # The model's own from_pretrained wants a speech tokenizer at once: that of its parent loads weights alone.
    for official_class, part in ((model_class, ""), (codec_class, "speech_tokenizer")):
        with quiet():
            ours, theirs = (
                super(official_class, official_class).from_pretrained(place / part, dtype=torch.float32).state_dict()
                for place in (tmp_path, folder)
            )
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert torch.equal(ours[name], tensor), name


def test_layouts_give_the_official_layers_outputs(checkpoint):
    folder, config = checkpoint("1.7B-Base", dtype="float32"), SMALL["1.7B-Base"]
    params = load_params(folder, config, all_parts(config))
    random = np.random.RandomState(0)
    _, _, codec_class, _ = model_classes()
    with quiet():
        codec = codec_class.from_pretrained(folder / "speech_tokenizer", dtype=torch.float32).eval()

    def run(module, x):
        with torch.no_grad():
            return module(torch.from_numpy(x.astype(np.float32))).numpy()

    decoder = params["codec"]["decoder"]
    # [B, C, T] in PyTorch; y[t] = Σ_k x[t + k] @ kernel[k].
    conv, ours = codec.decoder.decoder[0].conv, decoder["conv_in"]
    x = random.standard_normal((1, conv.in_channels, 9))
    expected = sum(x[0, :, k : k + 3].T @ np.asarray(ours["kernel"])[k] for k in range(7)) + ours["bias"]
    np.testing.assert_allclose(run(conv, x)[0].T, expected, atol=1e-5)
    # y[t·s + j] += x[t] @ kernel[j].
    conv, ours = codec.decoder.decoder[1].block[1].conv, decoder["upsample_0"]["transposed_conv"]
    stride, kernel = conv.stride[0], np.asarray(ours["kernel"])
    x = random.standard_normal((1, conv.in_channels, 4))
    expected = np.tile(np.asarray(ours["bias"], np.float64), (3 * stride + len(kernel), 1))
    for t in range(4):
        for j in range(len(kernel)):
            expected[t * stride + j] += x[0, :, t] @ kernel[j]
    np.testing.assert_allclose(run(conv, x)[0].T, expected, atol=1e-5)
    # Depthwise: each channel by itself.
    conv, ours = codec.decoder.upsample[0][1].dwconv.conv, decoder["latent_upsample_0"]["convnext"]["depthwise"]
    x = random.standard_normal((1, conv.in_channels, 8))
    expected = sum(x[0, :, k : k + 2].T * np.asarray(ours["kernel"])[k, 0] for k in range(7)) + ours["bias"]
    np.testing.assert_allclose(run(conv, x)[0].T, expected, atol=1e-5)
    # One tap as a linear layer.
    conv, ours = codec.decoder.quantizer.rvq_rest.output_proj, decoder["quantizer"]["acoustic"]["output_projection"]
    x = random.standard_normal((1, conv.in_channels, 5))
    np.testing.assert_allclose(run(conv, x)[0], np.asarray(ours["weight"]) @ x[0], atol=1e-5)
