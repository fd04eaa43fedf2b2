"""basicsr 1.4.2, the live peer of tests and benchmarks. It imports a module that torchvision dropped, for one function."""

import sys
import types

import torchvision.transforms.functional as tvf

_dropped = types.ModuleType("torchvision.transforms.functional_tensor")
_dropped.rgb_to_grayscale = tvf.rgb_to_grayscale  # type: ignore[attr-defined]
sys.modules.setdefault(_dropped.__name__, _dropped)

from basicsr import utils  # noqa: E402
from basicsr.archs import discriminator_arch as discriminators  # noqa: E402
from basicsr.data import degradations  # noqa: E402

__all__ = ["degradations", "discriminators", "utils"]
