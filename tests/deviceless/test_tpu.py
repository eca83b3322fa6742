"""A batch as it is compiled for TPUs of several chips: it fits, and chips and host exchange no more than they must."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from qwen3_tts_jax import generate, sharding
from qwen3_tts_jax.codec import decoder
from qwen3_tts_jax.decode_state import DecodeState
from tests.deviceless.hlo import Module
from tests.deviceless.programs import abstract_params, abstract_state, compiled_prefill, compiled_window, published

MEMORY = {"v5e:2x2": 16e9, "v6e:2x2": 32e9}
CAPACITY = 1024
BATCH = 64
CHUNK = 8
LAYERS = (2, 1)
TALKER_LAYERS, PREDICTOR_LAYERS = 28, 5


@dataclass(frozen=True)
class Compiled:
    """A chunk of frames on a mesh."""

    hlo: Module
    bytes_per_chip: int
    params: dict
    state: DecodeState
    returned: DecodeState


@cache
def compiled(topology: str, data: int, model: int, *, streams: bool = False) -> Compiled:
    """A chunk of a fixed number of frames, or as `streams` have it, of any."""
    config = generate.configure(published("1.7B", *LAYERS), "tpu", data)
    chips = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    mesh = sharding.make_mesh(data, model, chips)
    place = sharding.placement(mesh, config)
    params = abstract_params(config, lambda path, leaf: place(path, leaf.shape))
    state = abstract_state(
        config, params, BATCH, CAPACITY,
        lambda path, leaf: NamedSharding(mesh, sharding.state_spec(mesh, path, leaf.shape)),
    )  # fmt: skip
    speak = (params, config, config.generation, state)
    if streams:
        frames = jax.ShapeDtypeStruct((), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec()))
        program = generate.generate_stream.lower(*speak, frames, CHUNK).compile()
    else:
        program = generate.generate_chunk.lower(*speak, CHUNK).compile()
    memory = program.memory_analysis()
    needed = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    return Compiled(Module(program.as_text()), needed, params, state, program.output_shardings[0])


def bytes_per_chip(tree: object) -> int:
    """What the leaves of a tree of shapes take on one chip."""
    leaves = jax.tree.leaves(tree)
    held = [jax.ShapeDtypeStruct(leaf.sharding.shard_shape(leaf.shape), leaf.dtype) for leaf in leaves]
    return sum(leaf.size * leaf.dtype.itemsize for leaf in held)


meshes = pytest.mark.parametrize(
    ("topology", "data", "model"), [("v5e:2x2", 4, 1), ("v5e:2x2", 2, 2), ("v6e:2x2", 4, 1)]
)


@meshes
def test_the_whole_model_fits(topology, data, model):
    """All layers, from what the talker's add: each has as many weights and as much cache as the other."""
    found = compiled(topology, data, model)
    layer = bytes_per_chip(found.params["talker"]["transformer"]["layers_0"])
    layer += bytes_per_chip((found.state.cache.keys[0], found.state.cache.values[0]))
    predictor_layer = bytes_per_chip(found.params["code_predictor"]["transformer"]["layers_0"])
    whole = found.bytes_per_chip + (TALKER_LAYERS - LAYERS[0]) * layer
    whole += (PREDICTOR_LAYERS - LAYERS[1]) * predictor_layer
    assert whole < 0.9 * MEMORY[topology], whole
    # Nothing is held twice: what is not an argument is little.
    assert found.bytes_per_chip < bytes_per_chip((found.params, found.state)) + 50e6


@meshes
def test_chips_exchange_only_what_tensor_parallelism_must(topology, data, model):
    found = compiled(topology, data, model)
    if model == 1:
        assert found.hlo.exchanges() == []
        return
    # A sum after the attention and one after the MLP of each layer, of the talker and of the predictor, which
    # is written down twice: for the first two positions of a frame, and for the loop over the others.
    assert {name for name, _ in found.hlo.exchanges()} == {"all-reduce"}
    assert len(found.hlo.exchanges()) == 2 * (LAYERS[0] + 2 * LAYERS[1])


@meshes
def test_nothing_goes_through_the_rows_one_by_one_in_a_frame(topology, data, model):
    """The loops are those over frames and codebooks, and one over each chip's rows, for what the chunk added."""
    found = compiled(topology, data, model)
    names = [re.search(r'op_name="([^"]*)"', loop.rest)[1] for loop in found.hlo.loops()]
    assert len(names) == 3
    assert sum("while/body" in name for name in names) == 1  # over codebooks, in that over frames


@meshes
def test_the_host_stays_out(topology, data, model):
    found = compiled(topology, data, model)
    opcodes = {each.opcode for each in found.hlo.instructions()}
    assert not opcodes & {"infeed", "outfeed", "send", "recv", "send-done", "recv-done"}
    assert not [each for each in found.hlo.instructions() if "callback" in each.rest.split("metadata=")[0]]
    # S(5) is the host's memory.
    assert not [each for each in found.hlo.instructions() if "S(5)" in each.shape]


def test_streams_side_by_side_are_chunks_of_any_length():
    """The chips have to agree, in every frame, on whether anybody speaks."""
    found = compiled("v5e:2x2", 4, 1, streams=True)
    assert len(found.hlo.loops()) == 3
    (agreement,) = found.hlo.exchanges()
    assert agreement[0] == "all-reduce"
    assert re.match(r"\w+\[\]", agreement[1]), agreement
    for before, after in zip(jax.tree.leaves(found.state), jax.tree.leaves(found.returned), strict=True):
        assert after.is_equivalent_to(before.sharding, before.ndim)


@meshes
def test_a_chunk_returns_the_state_where_it_was(topology, data, model):
    found = compiled(topology, data, model)
    for before, after in zip(jax.tree.leaves(found.state), jax.tree.leaves(found.returned), strict=True):
        assert after.is_equivalent_to(before.sharding, before.ndim)


@pytest.mark.parametrize(("three_pass", "precision"), [(True, "high"), (False, "highest")])
def test_a_residual_unit_of_the_codec_is_two_convolutions(three_pass, precision):
    """Three passes are within each, and what is between them is not copied to another layout."""
    chip = SingleDeviceSharding(topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[0])
    unit = decoder.ResidualUnit(3, "float32", three_pass)
    x, context = (jax.ShapeDtypeStruct((8, steps, 96), jnp.float32) for steps in (512, 6 * 3))
    arguments = (jax.eval_shape(unit.init, jax.random.key(0), x, context), x, context)
    arguments = jax.tree.map(lambda leaf: leaf.update(sharding=chip), arguments)
    found = Module(jax.jit(unit.apply).lower(*arguments).compile().as_text())
    convolutions = [each for each in found.instructions() if each.opcode == "convolution"]
    assert len(convolutions) == 2
    assert all(f"operand_precision={{{precision},{precision}}}" in each.rest for each in convolutions)
    copies = [each for each in found.instructions() if each.opcode == "copy" and each.size >= x.size]
    assert len(copies) <= 2  # of the program's argument and result


def test_prompts_and_windows_are_read_by_the_splash_kernel_where_it_is_chosen():
    chip = SingleDeviceSharding(topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[0])
    config = published("1.7B", 2, 1, codec_dtype="bfloat16").with_attention(lambda _: "pallas")
    stack = replace(config.codec.decoder.transformer, num_layers=2)
    config = replace(config, codec=replace(config.codec, decoder=replace(config.codec.decoder, transformer=stack)))
    for program in (compiled_prefill(config, 2, chip), compiled_window(config, 2, 64, chip)):
        names = [each.name for each in Module(program).instructions() if "tpu_custom_call" in each.rest]
        assert len(names) == 2
        assert all(name.startswith("splash_mha_fwd") for name in names)
