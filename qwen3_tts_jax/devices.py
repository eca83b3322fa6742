"""JAX's default device: unless told otherwise, where weights go and what dtype and kernels are chosen for."""

from __future__ import annotations

import jax


def default_device() -> jax.Device:
    """The device that `jax.default_device` chose, as a device or a platform's name, else the first of this process."""
    chosen = jax.config.jax_default_device
    if chosen is None or isinstance(chosen, str):
        return jax.local_devices(backend=chosen)[0]
    return chosen


def local_devices() -> list[jax.Device]:
    """The devices of this process that can share work with the default one: all of its platform."""
    return jax.local_devices(backend=default_device().platform)


def automatic_dtype(platform: str | None = None) -> str:
    """What "auto" means for the talker and the code predictor on a platform, the default device's if none is given."""
    return "float32" if (platform or default_device().platform) == "cpu" else "bfloat16"


def nvidia_capability() -> float | None:
    """The compute capability of JAX's default device, such as 9.0; None if that is no NVIDIA GPU."""
    # That of an AMD GPU is a name.
    capability = str(getattr(default_device(), "compute_capability", ""))
    return float(capability) if capability.replace(".", "", 1).isdecimal() else None
