"""Named layout changes between PyTorch's tensors and ours, each with its inverse.

Axis letters: O output channels, I input channels, K kernel taps. A linear weight keeps PyTorch's
orientation [out, in], so most tensors are taken as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Transform:
    """A permutation of axes that drops those that only PyTorch has (all of length 1).

    Attributes:
        torch_axes, flax_axes: one letter per axis before and after, e.g. "OIK" and "KIO"; if both are
            empty, any shape, unchanged.
    """

    name: str
    torch_axes: str
    flax_axes: str

    @property
    def _kept(self) -> list[int]:
        return [self.torch_axes.index(axis) for axis in self.flax_axes]

    @property
    def _dropped(self) -> tuple[int, ...]:
        return tuple(i for i, axis in enumerate(self.torch_axes) if axis not in self.flax_axes)

    def shape(self, torch_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of `apply`'s result."""
        return tuple(torch_shape[i] for i in self._kept) if self.torch_axes else torch_shape

    def apply(self, tensor: np.ndarray) -> np.ndarray:
        """PyTorch's layout → ours, as a view."""
        if not self.torch_axes:
            return tensor
        return tensor.transpose(*self._kept, *self._dropped).reshape(self.shape(tensor.shape))

    def invert(self, array: np.ndarray) -> np.ndarray:
        """Our layout → PyTorch's, as a view."""
        if not self.torch_axes:
            return array
        expanded = array.reshape(array.shape + (1,) * len(self._dropped))
        return expanded.transpose(np.argsort([*self._kept, *self._dropped]))


IDENTITY = Transform("identity", "", "")
"""Any shape, unchanged."""

SQUEEZE = Transform("squeeze", "OI1", "OI")
"""A one-tap convolution used as a linear layer: [out, in, 1] → [out, in]."""

CONV = Transform("conv", "OIK", "KIO")
"""[out, in, kernel] → [kernel, in, out]; a depthwise kernel [C, 1, kernel] becomes [kernel, 1, C]."""

CONV_TRANSPOSE = Transform("conv_transpose", "IOK", "KIO")
"""[in, out, kernel] → [kernel, in, out]: taps stay in forward time order."""
