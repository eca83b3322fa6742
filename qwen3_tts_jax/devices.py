"""JAX's default device: where weights go, and what kernels are chosen for, if nothing else is said."""

from __future__ import annotations

import jax


def default_device() -> jax.Device:
    """The device that `jax.default_device` chose, as a device or a platform's name, else the first of this process."""
    chosen = jax.config.jax_default_device
    if chosen is None or isinstance(chosen, str):
        return jax.local_devices(backend=chosen)[0]
    return chosen
