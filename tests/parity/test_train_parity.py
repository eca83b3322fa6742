"""A model that learnt speakers and low-rank adapters, merged and exported, in the official package."""

import json

import jax
import numpy as np
from typer.testing import CliRunner

from qwen3_tts_jax import hf_config
from qwen3_tts_jax.cli.main import app
from qwen3_tts_jax.convert import load_params, model_rules
from qwen3_tts_jax.pipeline import Qwen3TTS
from qwen3_tts_jax.train.byte_tokenizer import write_byte_tokenizer
from qwen3_tts_jax.train.export import export_model
from qwen3_tts_jax.train.lines import Line, add_speakers
from qwen3_tts_jax.train.lora import LoraConfig, init_adapters, merge_adapters
from qwen3_tts_jax.train.new_model import read_new_config
from qwen3_tts_jax.train.sft import with_speakers
from qwen3_tts_jax.train.talker_job import write_model
from tests.drawn_tree import drawn_tree
from tests.parity.oracle import load_official
from tests.parity.test_model_parity import check_same_speech


def test_adapters_and_speakers_speak_the_same_in_the_official_package(checkpoint, tmp_path):
    source = checkpoint("1.7B-Base", dtype="float32")
    base = hf_config.read_folder(source).with_dtypes("float32")
    params = load_params(source, base, ["talker", "code_predictor"])
    config, rows = add_speakers(base, [Line("", None, "", speaker="Anna"), Line("", None, "", speaker="bob")])
    rng = np.random.default_rng(6)
    heard = rng.normal(size=(2, config.talker.transformer.width)).astype(np.float32)
    lora = LoraConfig(rank=3, alpha=6.0)
    adapters = init_adapters(jax.random.key(0), params, lora)
    adapters = {
        path: pair | {"b": 0.1 * rng.normal(size=pair["b"].shape).astype(np.float32)} for path, pair in adapters.items()
    }
    with_rows = with_speakers(params, dict(zip(rows.values(), heard, strict=True)))
    export_model(tmp_path / "model", merge_adapters(with_rows, adapters, lora), config, source, dtype="float32")
    export_model(tmp_path / "before", with_rows, config, source, dtype="float32")

    ours, before = (Qwen3TTS.from_pretrained(tmp_path / name, dtype="float32") for name in ("model", "before"))
    official = load_official(tmp_path / "model")
    texts, speakers = ["Hello, world.", "Ein kurzer Satz."], ["anna", "bob"]
    arguments = (texts, speakers, ["english", "auto"], ["gladly", ""], True)
    check_same_speech(ours, official, "generate_custom_voice", arguments, 14)
    greedy = {"do_sample": False, "subtalker_dosample": False, "max_new_tokens": 14}
    spoken, spoken_before = (model.generate_custom_voice(*arguments, **greedy)[0] for model in (ours, before))
    assert not np.array_equal(spoken[0], spoken_before[0])


def test_a_model_from_nothing_speaks_the_same_in_the_official_package(checkpoint, tmp_path):
    """With a tokenizer of bytes; converted to Orbax and exported by the commands."""
    codec = checkpoint("1.7B-Base", dtype="float32") / "speech_tokenizer"
    sizes = {
        "talker": {"num_layers": 2, "width": 24, "mlp_width": 40, "num_heads": 3, "head_dim": 8},
        "code_predictor": {"num_layers": 1, "width": 20, "mlp_width": 26, "num_heads": 2, "head_dim": 10},
        "speakers": ["Anna", "bob"],
    }
    (tmp_path / "talker.json").write_text(json.dumps(sizes))
    tokenizer = write_byte_tokenizer(tmp_path / "tokenizer")
    config = read_new_config(tmp_path / "talker.json", tokenizer, hf_config.read_codec(codec))
    write_model(tmp_path / "new", drawn_tree(model_rules(config)), config, tokenizer, codec, "float32")
    for command in (("convert", "new", "converted"), ("export", "converted", "-o", "exported")):
        result = CliRunner().invoke(
            app, [str(tmp_path / word) if word in ("new", "converted", "exported") else word for word in command]
        )
        assert result.exit_code == 0, (result.exception, result.stderr)
    ours = Qwen3TTS.from_pretrained(tmp_path / "new", dtype="float32")
    arguments = (["hello, world.", "naïve — 中文?"], ["anna", "bob"], ["english", "auto"], ["", ""], True)
    check_same_speech(ours, load_official(tmp_path / "exported"), "generate_custom_voice", arguments, 14)
