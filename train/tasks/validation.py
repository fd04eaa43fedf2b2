"""Validation on a fixed set with fixed degradations: metrics of the restored image and of LQ beside them, and pictures."""

from collections.abc import Callable
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from train.precision import full_float32

SSIM_WINDOW_PX = 11


class Validation(nn.Module):
    """Mean PSNR (dB), SSIM and LPIPS over images, on RGB in [0, 1]; every task calls reset, update, compute in turn.

    Args: lpips: makes the perceptual distance; where its backbone's weights are missing the metric is left out and
              `lpips_missing` says why.
          pictures: how many images are kept in `rows`: LQ, restored and HQ, each (3, h, w) in [0, 1].
          luma, border_px: PSNR and SSIM of the luma (`luma_of`), and without a border, as papers on super-resolution have
              them; False and 0: of RGB and of whole images.
    """

    def __init__(
        self,
        *,
        lpips: Callable[[], nn.Module] | None,
        pictures: Annotated[int, Ge(0)],
        luma: bool,
        border_px: Annotated[int, Ge(0)],
    ) -> None:
        super().__init__()
        self.luma, self.border_px = luma, border_px
        self.lpips: nn.Module | None = None
        self.lpips_missing = "validation.lpips=null"
        if lpips is not None:
            try:
                self.lpips = lpips()
            except FileNotFoundError as error:
                self.lpips_missing = str(error)
        self.metrics: dict[str, Metric] = {f"{name}{of}": self._metric(name) for name in self._names for of in ("", "_lq")}
        self._on_device = nn.ModuleDict(self.metrics)  # registered, so that they follow the task to its device
        self.pictures = pictures
        self.rows: list[tuple[Tensor, Tensor, Tensor]] = []

    @property
    def _names(self) -> list[str]:
        return ["psnr", "ssim", "lpips"] if self.lpips else ["psnr", "ssim"]

    @staticmethod
    def _metric(name: str) -> Metric:
        if name == "psnr":  # with dim: the mean of each image's PSNR, not the PSNR of the mean error
            return PeakSignalNoiseRatio(data_range=1.0, dim=(1, 2, 3), reduction="elementwise_mean")
        return StructuralSimilarityIndexMeasure(data_range=1.0) if name == "ssim" else MeanMetric()

    def reset(self) -> None:
        self.rows = []
        for metric in self.metrics.values():
            metric.reset()

    @torch.no_grad()
    def update(self, *, restored: Tensor, lq: Tensor, hq: Tensor) -> None:
        """Adds a batch; all (b, 3, h, w) in [0, 1]. A smaller LQ is enlarged (bicubic) to be compared and shown."""
        with torch.autocast(hq.device.type, enabled=False), full_float32():  # SSIM's variances cancel in bf16 and in TF32
            self._update(restored.float(), lq.float().clamp(0, 1), hq.float())

    def _update(self, restored: Tensor, lq: Tensor, hq: Tensor) -> None:
        if lq.shape != hq.shape:
            lq = F.interpolate(lq, size=hq.shape[-2:], mode="bicubic").clamp(0, 1)
        check_scale(restored, hq)
        for image, of in ((restored, ""), (lq, "_lq")):
            compared, with_ = self._compared(image), self._compared(hq)
            self.metrics[f"psnr{of}"].update(compared, with_)
            self.metrics[f"ssim{of}"].update(compared, with_)
            if self.lpips:
                for one, target in zip(image.split(1), hq.split(1), strict=True):  # the mean weighs images, not batches
                    self.metrics[f"lpips{of}"].update(self.lpips(one, target))
        left = self.pictures - len(self.rows)
        self.rows += zip(lq[:left].cpu(), restored[:left].cpu(), hq[:left].cpu(), strict=True)

    def _compared(self, image: Tensor) -> Tensor:
        """The part of an image that PSNR and SSIM see. Raises ValueError: less than SSIM's window is left."""
        border = self.border_px
        height, width = image.shape[-2:]
        if min(height, width) - 2 * border < SSIM_WINDOW_PX:
            raise ValueError(
                f"validation.border_px={border} leaves less of an image of {height}x{width} than the {SSIM_WINDOW_PX} pixels a "
                "side that SSIM needs: give larger images or a narrower border"
            )
        image = image[..., border : height - border, border : width - border]
        return luma_of(image) if self.luma else image

    def compute(self) -> dict[str, Tensor]:
        """Metric -> mean over all ranks: psnr, psnr_lq, ssim, ssim_lq and, where its weights are there, lpips, lpips_lq."""
        return {name: metric.compute() for name, metric in self.metrics.items()}


def check_scale(restored: Tensor, hq: Tensor) -> None:
    """Raises ValueError where the network's output is not of the HQ's size."""
    if restored.shape != hq.shape:
        raise ValueError(
            f"the network makes {tuple(restored.shape[-2:])} where the HQ is {tuple(hq.shape[-2:])}: choose a network of the "
            "scale of the data, or data whose LQ and HQ are of one size"
        )


def luma_of(image: Tensor) -> Tensor:
    """(b, 3, h, w) RGB in [0, 1] to (b, 1, h, w) in [16, 235] / 255: Y of ITU-R BT.601, as MATLAB's rgb2ycbcr."""
    weights = image.new_tensor([65.481, 128.553, 24.966]).view(1, 3, 1, 1) / 255
    return (image * weights).sum(1, keepdim=True) + 16 / 255
