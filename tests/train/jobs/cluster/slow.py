"""A degradation that takes its time, so that a job can be interrupted in the middle of tiny updates."""

import os
import time
from typing import Any

from torch import Tensor

from degradations.pipeline import Pipeline


class SlowPipeline(Pipeline):
    """SLOW_S of the environment are the seconds of one sample; the numbers are those of Pipeline."""

    def apply(self, hq: Tensor, parameters: dict[str, Any]) -> dict[str, Tensor]:
        time.sleep(float(os.environ.get("SLOW_S", "0")))
        return super().apply(hq, parameters)
