"""Kernels: NumPy arrays in, NumPy arrays out. They know no layer and no model.

Every kernel is a pair: a NumPy definition, which is what it means, and a fast implementation, which must equal it. Calling the kernel
runs the backend in use; `.numpy` and `.fast` are the two by themselves.
"""

from ._dispatch import Kernel as Kernel
from .activations import *  # noqa: F403
from .linear import *  # noqa: F403
