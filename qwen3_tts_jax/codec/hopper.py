"""The codec's decoder from conv_in on, as kernels for Hopper GPUs (H100, H200), in three passes of bfloat16.

A convolution is one product per tap, on shifted rows. One kernel makes all of them in all three passes (see `conv`)
from operands that are already split into halves, and applies what follows the convolution before its sums leave the
chip. Time is the slowest axis here, [T·B, C], so the past is simply rows in front, and, in a batch that is a multiple
of 8, a tap is a shift by whole groups of 8 rows, as tiles in shared memory need it.

The kernel is written in Pallas for its Mosaic GPU backend: one warpgroup loads tiles, two multiply and finish them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from qwen3_tts_jax.codec.conv import Contexts, phases, snake, snake_rates, within_half_turn
from qwen3_tts_jax.config import CodecConfig, CodecDecoderConfig, ConfigError
from qwen3_tts_jax.devices import default_device, nvidia_capability

_GROUPS = 2  # Warpgroups that multiply.
_MEMORY = 196_000  # Bytes of shared memory for operands, of 227 KiB.
_DEPTH = 32  # Channels of an operand's tile: 64 bytes, the width of its swizzle.
_ALIGNED = 8  # Rows that stay together in shared memory.
_PIECE = (64, 32)  # Rows and columns that leave the chip at a time.


def configure(config: CodecConfig, devices: int = 1, *, kernels: bool = True) -> CodecConfig:
    """The same codec, with these kernels if it decodes in three passes and JAX's default device is a Hopper GPU.

    Args:
        config: the codec's, already set to the dtype that it computes in.
        devices: how many share the work. The kernels are for one.
        kernels: False leaves them out.

    Raises:
        ConfigError: three passes on an NVIDIA GPU without units for bfloat16.
    """
    capability, three_pass = nvidia_capability(), config.decoder.three_pass
    if three_pass and capability is not None and capability < 8:
        here = default_device().device_kind
        raise ConfigError(
            f"codec=bfloat16_3x needs an NVIDIA GPU from Ampere on, and this is {here}: use codec=float32"
        )
    hopper = three_pass and kernels and capability == 9 and devices == 1
    return replace(config, decoder=replace(config.decoder, hopper=hopper))


def fits(config: CodecDecoderConfig, batch: int, steps: int) -> bool:
    """Whether `upsample` takes [batch, steps, C] with this decoder."""
    widths = [config.decoder_channels // 2**i for i in range(len(config.upsample_rates) + 1)]
    outputs = [*widths, *(rate * width for rate, width in zip(config.upsample_rates, widths[1:], strict=True))]
    whole = all(width % _DEPTH == 0 for width in (config.latent_width, *widths))
    return batch % _ALIGNED == 0 and _rows(batch * steps) > 0 and whole and all(map(_columns, outputs))


def _rows(count: int) -> int:
    """The rows of a tile, such that whole tiles make up `count` rows; 0 if none do."""
    return next((rows for rows in (256, 128) if count % rows == 0), 0)


def _columns(count: int) -> int:
    return next((columns for columns in (192, 128, 96, 64) if count % columns == 0), 0)


def upsample(
    params: Mapping[str, Any], config: CodecDecoderConfig, x: jax.Array, contexts: Contexts
) -> tuple[jax.Array, Contexts]:
    """Runs the decoder from conv_in to the samples, as the modules of `decoder` do.

    Args:
        params: the decoder's.
        config: its shapes, which must fit.
        x: float32 [B, T, C].
        contexts: of the convolutions, as `decoder.DecoderState` has them.

    Returns:
        Samples float32 [B, T·rates], not yet clipped, and the contexts T steps on.
    """
    batch = x.shape[0]
    new: Contexts = {}
    rows = x.swapaxes(0, 1).reshape(-1, x.shape[-1])
    rows, new["conv_in"] = _convolve(params["conv_in"], rows, contexts["conv_in"])
    for i, rate in enumerate(config.upsample_rates):
        name = f"upsample_{i}"
        rows, new[name] = _stage(params[name], rows, contexts[name], rate)

    # The last convolution has a single output channel: plain sums in float32 do.
    rows, new["conv_out"] = _behind(snake(params["snake_out"], rows), contexts["conv_out"])
    kernel, bias = params["conv_out"]["kernel"][..., 0], params["conv_out"]["bias"]
    count = len(rows) - (len(kernel) - 1) * batch
    samples = sum(jnp.sum(rows[tap * batch :][:count] * weights, axis=-1) for tap, weights in enumerate(kernel))
    return (samples + bias).reshape(-1, batch).T, new


def _stage(params: Mapping[str, Any], rows: jax.Array, contexts: Contexts, rate: int) -> tuple[jax.Array, Contexts]:
    """What `decoder.Upsample` does, float32 [T·B, C] → [T·rate·B, C / 2]."""
    new: Contexts = {}
    transposed, batch = params["transposed_conv"], contexts["transposed_conv"].shape[0]
    weights = {"kernel": phases(transposed["kernel"], rate), "bias": jnp.tile(transposed["bias"], rate)}
    rows, new["transposed_conv"] = _convolve(weights, snake(params["snake"], rows), contexts["transposed_conv"])
    rows = rows.reshape(-1, batch, rate, rows.shape[-1] // rate).swapaxes(1, 2).reshape(-1, rows.shape[-1] // rate)
    units = sorted(contexts.keys() - {"transposed_conv"})
    room = max(contexts[name].shape[1] for name in units)
    for name in units:
        unit = params[name]
        x, rates = snake(unit["snake_1"], rows), snake_rates(unit["snake_2"])
        x, new[name] = _convolve(unit["conv_1"], x, contexts[name], room, rates)
        rows = product(*x, **unit["conv_2"], residual=rows)
    return rows, new


def _behind(rows: jax.Array, context: jax.Array, room: int = 0) -> tuple[jax.Array, jax.Array]:
    """Rows [T·B, C] after their past [B, P, C], which zeros precede up to `room` steps; and the last P steps."""
    batch, past, _ = context.shape
    before = context.swapaxes(0, 1).reshape(batch * past, -1)
    front = batch * max(room - past, 0)
    # The sum of both, padded, fuses with what makes the rows; concatenating them would be a copy.
    rows = jnp.pad(before, ((front, len(rows)), (0, 0))) + jnp.pad(rows, ((front + len(before), 0), (0, 0)))
    return rows, rows[len(rows) - batch * past :].reshape(past, batch, -1).swapaxes(0, 1)


def _convolve(
    weights: Mapping[str, jax.Array],
    rows: jax.Array,
    context: jax.Array,
    room: int = 0,
    rates: tuple[jax.Array, jax.Array] | None = None,
) -> tuple[Any, jax.Array]:
    """A causal convolution of rows, as `product` returns it, and its next context; `room` is that of `_behind`."""
    batch, past, _ = context.shape
    shift, first = past // (len(weights["kernel"]) - 1) * batch, max(room - past, 0) * batch
    rows, context = _behind(rows, context, room)
    return product(*halves(rows), **weights, first=first, shift=shift, rates=rates), context


def halves(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Float32 x rounded to bfloat16, and the rest, rounded likewise."""
    # XLA would drop a conversion to bfloat16 and back.
    high = jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
    return high.astype(jnp.bfloat16), (x - high).astype(jnp.bfloat16)


def product(
    high: jax.Array,
    low: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    *,
    first: int = 0,
    shift: int = 0,
    rates: tuple[jax.Array, jax.Array] | None = None,
    residual: jax.Array | None = None,
    interpret: Any = None,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """The sum over taps k of x[first + r + k · shift] · kernel[k], plus the bias.

    Args:
        high: bfloat16 [first + R + (taps − 1) · shift, C], the first of x's `halves`.
        low: the second.
        kernel: float32 [taps, C, N].
        bias: float32 [N].
        first: in rows, a multiple of 8.
        shift: likewise. Calls that differ only in these two share a kernel, which takes a second or two to make.
        rates: α and 1/β of a SnakeBeta that follows, float32 [N]; its result is returned as two halves.
        residual: float32 [R, N] to add, if no SnakeBeta follows.
        interpret: what Pallas needs to run it without a GPU.

    Returns:
        float32 [R, N], or two bfloat16 [R, N].
    """
    count = len(high) - first - (len(kernel) - 1) * shift
    places = jnp.asarray([first // _ALIGNED, shift // _ALIGNED], jnp.int32)
    return _product(high, low, kernel, bias, places, rates, residual, count=count, interpret=interpret)


@partial(jax.jit, static_argnames=("count", "interpret"))
def _product(
    high: jax.Array,
    low: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    places: jax.Array,
    rates: tuple[jax.Array, jax.Array] | None,
    residual: jax.Array | None,
    *,
    count: int,
    interpret: Any,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """`product` of `count` rows; `places` are `first` and `shift`, in groups of 8 rows."""
    from jax.experimental.pallas import mosaic_gpu as plgpu

    taps, inputs, outputs = kernel.shape
    rows, columns = _rows(count), _columns(outputs)
    rows_each, per_tap = rows // _GROUPS, inputs // _DEPTH
    steps = taps * per_tap
    # How many tiles, of two halves of both operands, are being loaded or used at a time.
    stages = min(4, _MEMORY // (4 * _DEPTH * (rows + columns)))
    # Products of a step may still run while the next begins.
    delay = int(steps > 1)
    tiled = (plgpu.TilingTransform((_ALIGNED, _DEPTH)), plgpu.SwizzleTransform(2 * _DEPTH))
    dtype = jnp.dtype(jnp.float32 if rates is None else jnp.bfloat16)
    results = [jax.ShapeDtypeStruct((count, outputs), dtype)] * (1 if rates is None else 2)
    vectors, residuals = (bias, *(rates or ())), [] if residual is None else [residual]

    def load(ref):
        if interpret is not None:
            return ref[...]
        # Before JAX 0.11 an index must be given; from 0.11 on, none may be.
        return plgpu.load(ref, **({"idx": ()} if jax.__version_info__ < (0, 11) else {}), optimized=False)

    def body(high, low, weights_high, weights_low, places, *refs):
        *refs, buffer = refs
        refs, out = refs[: -len(results)], refs[-len(results) :]
        m, n, group = (jax.lax.axis_index(name) for name in ("rows", "columns", "group"))
        mine = pl.ds(group * rows_each, rows_each)
        first, shift = places[0] * _ALIGNED, places[1] * _ALIGNED

        def multiply(_, high, low, weights_high, weights_low, sums):
            plgpu.wgmma(sums, low.at[mine], weights_high)
            plgpu.wgmma(sums, high.at[mine], weights_low)
            plgpu.wgmma(sums, high.at[mine], weights_high)
            plgpu.wgmma_wait(3 * delay)
            return sums

        def finish(sums, at):
            """Adds the bias to a piece of the sums, then applies SnakeBeta or adds the residual."""
            along = [jax.lax.broadcast_in_dim(load(ref.at[at[1]]), _PIECE, [1]) for ref in refs[: len(vectors)]]
            y = sums + along[0]
            if rates is not None:
                sine = jnp.sin(within_half_turn(y * along[1]))
                y = y + sine * sine * along[2]
                high = y.astype(jnp.bfloat16)
                return high, (y - high.astype(jnp.float32)).astype(jnp.bfloat16)
            return (y if residual is None else y + load(refs[-1].at[at]),)

        def tile(pipeline):
            def with_sums(sums):
                pipeline(sums)
                sums = sums[...]
                pieces = [(i, j) for i in range(0, rows_each, _PIECE[0]) for j in range(0, columns, _PIECE[1])]
                for place, (i, j) in enumerate(pieces):
                    at = pl.ds(m * rows + group * rows_each + i, _PIECE[0]), pl.ds(n * columns + j, _PIECE[1])
                    parts = finish(sums[i : i + _PIECE[0], j : j + _PIECE[1]], at)
                    # The last piece may still be leaving, but the one before it has left its place in the buffer.
                    plgpu.wait_smem_to_gmem(len(results), wait_read_only=True)
                    for part, value in enumerate(parts):
                        buffer[group, place % 2, part] = value
                    plgpu.commit_smem()
                    for part, ref in enumerate(out):
                        plgpu.copy_smem_to_gmem(buffer.at[group, place % 2, part], ref.at[at])
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)

            pl.run_scoped(with_sums, plgpu.ACC((rows_each, columns), jnp.float32))

        def window(step):
            tap, depth = jax.lax.div(step, jnp.int32(per_tap)), jax.lax.rem(step, jnp.int32(per_tap))
            return m * rows + first + tap * shift, depth

        of_rows = plgpu.BlockSpec((pl.Element(rows), _DEPTH), window, transforms=tiled, delay_release=delay)
        of_weights = plgpu.BlockSpec((_DEPTH, columns), lambda step: (step, n), transforms=tiled, delay_release=delay)
        plgpu.emit_pipeline_warp_specialized(
            multiply,
            grid=(steps,),
            in_specs=[of_rows, of_rows, of_weights, of_weights],
            max_concurrent_steps=stages,
            memory_registers=40,
            wg_axis="group",
            num_compute_wgs=_GROUPS,
            compute_context=tile,
        )(high, low, weights_high, weights_low)

    out_tiled = (plgpu.TilingTransform((_ALIGNED, _PIECE[1])), plgpu.SwizzleTransform(_PIECE[1] * dtype.itemsize))
    made = plgpu.kernel(
        body,
        out_type=results,
        scratch_types=[plgpu.SMEM((_GROUPS, 2, len(results), *_PIECE), dtype, transforms=out_tiled)],
        grid=(count // rows, outputs // columns),
        grid_names=("rows", "columns"),
        num_threads=_GROUPS + 1,
        thread_name="group",
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup, approx_math=True),
        interpret=interpret,
    )(high, low, *halves(kernel.reshape(taps * inputs, outputs)), places, *vectors, *residuals)
    return made[0] if rates is None else tuple(made)
