"""A frame as it is compiled for an NVIDIA H200: how much it launches, and what it copies.

No GPU is there to time the choices of XLA's autotuner, so products have its default tiles: numbers of
kernels are meant, not their speed.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding, SingleDeviceSharding

from qwen3_tts_jax import generate, sharding
from qwen3_tts_jax.codec import conv, decoder
from qwen3_tts_jax.convert.rules import codec_rules, tree_shapes
from tests.deviceless import thunks
from tests.deviceless.hlo import Module
from tests.deviceless.programs import abstract_params, abstract_state, compiled_prefill, compiled_window, published

TARGET = Path(__file__).with_name("h200.txtpb")
CAPACITY = 512
CHUNK = 8
LAYERS = (28, 5)

# Kernels per frame: what there were when this was written, and 3 % more.
KERNELS = {("1.7B", 1): 1983, ("1.7B", 64): 1837, ("0.6B", 1): 1967}
# Graph launches per frame where loops are not captured: one for each of the predictor's steps, and one before
# and one after them.
LAUNCHES = 16
ONE_GRAPH = {
    "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,WHILE",
    # By default a program of fewer than 5 steps is not worth a graph, and a loop counts as one step.
    "xla_gpu_graph_min_graph_size": 1,
}


@dataclass(frozen=True)
class Compiled:
    """A chunk of frames: its optimised HLO and what it launches."""

    hlo: Module
    thunks: thunks.Thunk
    temporary_bytes: int

    @property
    def frame(self) -> thunks.Thunk:
        """The body of the loop over frames."""
        loop = next(thunk for thunk in self.thunks.walk() if thunk.kind == "While")
        return loop.children[1]


@cache
def an_h200() -> SingleDeviceSharding:
    topology = topologies.get_topology_desc(platform="cuda", target_config=TARGET.read_text(), topology="1x1x1")
    return SingleDeviceSharding(topology.devices[0])


@cache
def compiled(size: str, batch: int, layers: tuple[int, int] = LAYERS, one_graph: bool = False) -> Compiled:
    config = published(size, *layers)
    device = an_h200()
    params = abstract_params(config, lambda *_: device)
    state = abstract_state(config, params, batch, CAPACITY, lambda *_: device)
    lowered = generate.generate_chunk.lower(params, config, config.generation, state, CHUNK)
    return compile_and_read(lowered, ONE_GRAPH if one_graph else {})


def compile_and_read(lowered: jax.stages.Lowered, options: dict[str, str | int]) -> Compiled:
    with TemporaryDirectory() as folder:
        dump = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        program = lowered.compile(compiler_options={**options, **dump})
        # Without the second file, nothing was captured.
        path = Path(folder)
        files = [*path.glob("*.thunk_sequence_after_thunk_passes.txt"), *path.glob("*.thunk_sequence.txt")]
        launched = thunks.parse(files[0].read_text())
    return Compiled(Module(program.as_text()), launched, program.memory_analysis().temp_size_in_bytes)


def cache_elements(batch: int) -> int:
    """Elements of one layer's keys."""
    stack = published("1.7B", 1, 1).talker.transformer
    return batch * stack.num_kv_heads * stack.head_dim * CAPACITY


def predictor_steps() -> int:
    """Turns of the loop over codebooks: the first two positions are read together."""
    return published("1.7B", 1, 1).talker.num_codebooks - 2


@pytest.mark.parametrize(("size", "batch"), KERNELS)
def test_kernels_per_frame_are_within_the_budget(size, batch):
    assert compiled(size, batch).frame.executions(predictor_steps()) <= KERNELS[size, batch]


@pytest.mark.parametrize("batch", [1, 64])
def test_a_frame_is_a_few_graphs(batch):
    found = compiled("1.7B", batch)
    assert found.frame.launches(predictor_steps()) <= LAUNCHES


@pytest.mark.parametrize("batch", [1, 64])
def test_a_chunk_can_be_one_graph(batch):
    found = compiled("1.7B", batch, (2, 1), one_graph=True)
    assert found.thunks.launches(CHUNK) == 1
    assert any(thunk.kind == "While" for thunk in found.thunks.walk())


@pytest.mark.parametrize("batch", [1, 64])
def test_nothing_as_large_as_the_cache_is_copied(batch):
    """In a frame, what makes an array of that size writes a few slots of it in place."""
    found = compiled("1.7B", batch)
    writes = 0
    for instruction in found.hlo.in_loops():
        if instruction.opcode in ("parameter", "get-tuple-element", "tuple", "while", "bitcast"):
            continue
        if instruction.size >= cache_elements(batch):
            assert found.hlo.writes_in_place(instruction), (instruction.name, instruction.shape)
            writes += 1
    assert writes == 2 * LAYERS[0]  # keys and values
    assert found.temporary_bytes < 2 * cache_elements(batch)


@pytest.mark.parametrize(("data", "model"), [(4, 1), (2, 2)])
def test_gpus_of_a_mesh_exchange_no_cache(data, model):
    """Nothing for rows of a batch; for tensor parallelism two sums per layer, as on TPUs, and logits to draw from."""
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=TARGET.read_text(), topology=f"1x1x{data * model}"
    )
    mesh = sharding.make_mesh(data, model, topology.devices)
    config = published("1.7B", 2, 1)
    place = sharding.placement(mesh, config)
    params = abstract_params(config, lambda path, leaf: place(path, leaf.shape))
    state = abstract_state(
        config, params, 64, CAPACITY,
        lambda path, leaf: NamedSharding(mesh, sharding.state_spec(mesh, path, leaf.shape)),
    )  # fmt: skip
    program = generate.generate_chunk.lower(params, config, config.generation, state, CHUNK).compile()
    exchanges = Module(program.as_text()).exchanges()
    if model == 1:
        assert exchanges == []
    else:
        logits = config.talker.codec_vocab_size, config.code_predictor.codebook_size
        gathered = [shape for name, shape in exchanges if name == "all-gather"]
        assert all(any(f"[64,{size}]" in shape for size in logits) for shape in gathered), gathered
        assert [name for name, _ in exchanges if name != "all-gather"] == ["all-reduce"] * (2 * (2 + 2 * 1))
    assert program.memory_analysis().temp_size_in_bytes < 2 * cache_elements(64) // (data * model)


@pytest.mark.parametrize("batch", [1, 64])
def test_the_host_is_not_asked_in_a_frame(batch):
    found = compiled("1.7B", batch)
    loops = found.hlo.loops()
    assert len(loops) == 2
    # The host runs the turns of a loop whose number it knows without reading anything from the device.
    for loop in loops:
        assert '"known_trip_count"' in loop.rest
    kinds = {thunk.kind for thunk in found.thunks.walk()}
    assert kinds <= {
        "Sequence", "While", "condition", "body", "CommandBuffer", "CustomKernel", "Kernel", "Copy",
        "DynamicSliceFusion", "Gemm", "CublasLtMatmul", "Memset32BitValue", "Memzero", "SelectK",
    }, kinds  # fmt: skip
    opcodes = {instruction.opcode for instruction in found.hlo.instructions()}
    assert not opcodes & {"infeed", "outfeed", "send", "recv", "copy-start"}
    assert not [each for each in found.hlo.instructions() if "callback" in each.rest.split("metadata=")[0]]


@pytest.mark.parametrize(("attention", "calls"), [("cudnn", 2), ("xla", 0)])
def test_prompts_and_windows_are_read_by_cudnn_where_it_is_chosen(monkeypatch, attention, calls):
    # JAX asks for its version; XLA's compiler needs no cuDNN.
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)
    config = published("1.7B", 2, 1, codec_dtype="bfloat16").with_attention(lambda _: attention)
    prefill = Module(compiled_prefill(config, 2, an_h200()))
    assert kernels(prefill) == ["__cudnn$fmhaSoftmax"] * calls
    window = Module(compiled_window(config, 2, 64, an_h200()))
    assert kernels(window) == ["__cudnn$fmhaScaleBiasSoftmax"] * (
        config.codec.decoder.transformer.num_layers * calls // 2
    )


def kernels(module: Module) -> list[str]:
    """Names of cuDNN's attention kernels that a program calls."""
    calls = [each.rest for each in module.instructions() if each.opcode == "custom-call"]
    return [name for rest in calls for name in re.findall(r'custom_call_target="(__cudnn\$fmha\w+)"', rest)]


@pytest.mark.parametrize("three_pass", [False, True])
def test_convolutions_are_products(three_pass):
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=an_h200()) for shape in ((2, 500, 192), (7, 192, 192))]
    program = jax.jit(partial(conv._convolve, three_pass=three_pass)).lower(*arrays).compile().as_text()
    assert "__cudnn$conv" not in program
    assert ("dot_bf16_bf16_f32_x3" in program) == three_pass


def test_the_end_of_the_codec_is_kernels_for_hopper():
    config = published("1.7B", 1, 1, codec_dtype="bfloat16_3x").codec
    config = replace(config, decoder=replace(config.decoder, hopper=True))
    rules = [rule for rule in codec_rules(config) if rule.part == "codec/decoder"]
    params = tree_shapes(rules)["codec"]["decoder"]
    state = jax.eval_shape(lambda: decoder.initial_state(config.decoder, 8))
    codes = jax.ShapeDtypeStruct((8, 4, config.decoder.num_codebooks), jnp.int32)
    params, state, codes = jax.tree.map(lambda leaf: leaf.update(sharding=an_h200()), (params, state, codes))
    # What Pallas asks the default device for.
    known = {"device_kind": "NVIDIA H200", "num_cores": 132, "platform": "gpu"}
    known = {name: known[name] for name in inspect.signature(AbstractDevice).parameters}
    mesh = AbstractMesh((1,), ("device",), axis_types=(AxisType.Auto,), abstract_device=AbstractDevice(**known))
    with jax.sharding.use_abstract_mesh(mesh):
        lowered = jax.jit(decoder.decode_step, static_argnums=1).lower(params, config.decoder, state, codes)
    found = compile_and_read(lowered, {})
    calls = [each for each in found.hlo.instructions() if 'custom_call_target="mosaic_gpu_v2"' in each.rest]
    # conv_in, and of each stage the transposed convolution and two of each residual unit.
    assert len(calls) == 1 + len(config.decoder.upsample_rates) * (1 + 3 * 2)
    assert not [each for each in found.hlo.instructions() if "__cudnn$conv" in each.rest]
