"""The group of commands `train …`."""

from __future__ import annotations

import typer

from qwen3_tts_jax.cli import train_codec, train_merge, train_sft, train_talker
from qwen3_tts_jax.cli.options import APP

train_app = typer.Typer(name="train", help="Teach a model new voices, or train one from nothing.", **APP)
train_app.command(epilog=train_sft.EXAMPLES)(train_sft.sft)
train_app.command(epilog=train_merge.EXAMPLES)(train_merge.merge)
train_app.command(epilog=train_talker.EXAMPLES)(train_talker.talker)
train_app.command(epilog=train_codec.EXAMPLES)(train_codec.codec)
