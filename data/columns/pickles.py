"""Files of torch.save that hold numpy's numbers and arrays, as official code writes them; no code of a file is ever run."""

from pathlib import Path
from typing import Any

import numpy as np
import torch


def load(path: Path) -> Any:
    """What the file holds. Raises nearly anything for damaged bytes, and for a file that wants other code to be run."""
    makers: dict[str, Any] = {"_reconstruct": np.empty(0).__reduce__()[0], "scalar": np.float64(0).__reduce__()[0]}
    named = [
        (made, f"numpy.{core}.multiarray.{name}")  # under their names before and since numpy 2
        for core in ("core", "_core")
        for name, made in makers.items()
    ]
    kinds = [type(np.dtype(kind)) for kind in (np.int64, np.float32, np.float64)]
    with torch.serialization.safe_globals([*named, np.ndarray, np.dtype, *kinds]):
        return torch.load(path, map_location="cpu", weights_only=True)
