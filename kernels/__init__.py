"""Kernels: NumPy arrays in, NumPy arrays out. They know no layer and no model.

Every kernel is a pair: a NumPy definition, which is what it means, and a fast implementation, which must equal it.
Calling the kernel runs the backend in use; `.numpy` and `.fast` are the two by themselves.
"""

try:
    from . import _build
except ImportError:
    raise ImportError(
        "dd2424fast's kernels are not compiled: run `pip install -e .` in its folder (needs a C compiler)"
    ) from None
from .build_check import check_build, short_spins

check_build(_build.cpu_features)  # before anything compiled is loaded
with short_spins():
    from . import _team as _team

from ._dispatch import Kernel as Kernel  # noqa: E402
from .activations import *  # noqa: E402, F403
from .augmentation import *  # noqa: E402, F403
from .clipping import *  # noqa: E402, F403
from .convolution import *  # noqa: E402, F403
from .custom_activation import *  # noqa: E402, F403
from .generation import *  # noqa: E402, F403
from .linear import *  # noqa: E402, F403
from .losses import *  # noqa: E402, F403
from .mlp import *  # noqa: E402, F403
from .normalization import *  # noqa: E402, F403
from .optimizers import *  # noqa: E402, F403
from .pooling import *  # noqa: E402, F403
from .random import *  # noqa: E402, F403
from .recurrent import *  # noqa: E402, F403
