"""What the commands that train a talker say while they work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer


def names(text: str) -> tuple[str, ...]:
    """Parts of an option that commas separate."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def counter(quiet: bool) -> Callable[[int, int], None] | None:
    """Tells of recordings that are encoded."""

    def show(done: int, total: int) -> None:
        typer.echo(f"encoded {done} of {total} recordings", err=True)

    return None if quiet else show


def reporter(quiet: bool, write_scalars: Callable[[dict[str, Any]], None] | None) -> Callable[[dict[str, Any]], None]:
    """Tells of lines of the log, and hands them on."""

    def show(numbers: dict[str, Any]) -> None:
        if write_scalars is not None:
            write_scalars(numbers)
        if quiet:
            return
        if "validation_loss" in numbers:
            gap = f", other texts +{numbers['text_gap']:.4f}" if "text_gap" in numbers else ""
            typer.echo(f"step {numbers['step']}: validation loss {numbers['validation_loss']:.4f}{gap}", err=True)
        else:
            codes = numbers["codes"]
            rest = sum(codes[1:]) / len(codes[1:])
            typer.echo(
                f"step {numbers['step']}: loss {numbers['loss']:.4f} (code 0 {codes[0]:.3f}, others {rest:.3f}, end "
                f"{numbers['end']:.3f}), {numbers['frames'] / numbers['seconds']:.0f} frames/s",
                err=True,
            )

    return show


def check_tensorboard() -> None:
    """Refuses where tensorboardX is not installed."""
    from qwen3_tts_jax.console import refuse

    try:
        import tensorboardX  # noqa: F401
    except ImportError:
        refuse(
            "--tensorboard needs tensorboardX, and log.jsonl has the same numbers: in the clone of this package, "
            'pip install -e ".[tensorboard]"'
        )


def tensorboard_writer(output: Path) -> Callable[[dict[str, Any]], None]:
    """Writes lines of the log for TensorBoard, into a folder of `output` that it makes."""
    from tensorboardX import SummaryWriter

    writer = SummaryWriter(str(output / "tensorboard"))

    def write(numbers: dict[str, Any]) -> None:
        for name, value in numbers.items():
            values = {f"{name}/{i}": each for i, each in enumerate(value)} if isinstance(value, list) else {name: value}
            for tag, each in values.items():
                writer.add_scalar(tag, each, numbers["step"])
        writer.flush()

    return write
