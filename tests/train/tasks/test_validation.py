import math

import pytest
import torch
from torch import Tensor, nn

from train.tasks.validation import Validation, luma_of


class Distance(nn.Module):
    def forward(self, restored: Tensor, hq: Tensor) -> Tensor:
        return (restored - hq).abs().mean()


def test_means_over_images_by_hand() -> None:
    validation = Validation(lpips=Distance, pictures=2, luma=False, border_px=0)
    hq = torch.full((3, 3, 16, 16), 0.5)
    lq = hq + 0.1  # 20 dB each
    restored = hq + torch.tensor([0.01, 0.1, 0.001]).view(3, 1, 1, 1)  # 40, 20 and 60 dB: 40 dB on average
    for part in (slice(0, 2), slice(2, 3)):  # unequal batches: the mean weighs images
        validation.update(restored=restored[part], lq=lq[part], hq=hq[part])
    values = {name: value.item() for name, value in validation.compute().items()}
    assert values["psnr"] == pytest.approx(40, abs=1e-3)
    assert values["psnr_lq"] == pytest.approx(20, abs=1e-3)
    assert values["lpips"] == pytest.approx((0.01 + 0.1 + 0.001) / 3, rel=1e-4)
    assert values["lpips_lq"] == pytest.approx(0.1, rel=1e-4)
    assert values["ssim"] > values["ssim_lq"]
    assert [[image.shape for image in row] for row in validation.rows] == [[(3, 16, 16)] * 3] * 2
    for row, image in zip(validation.rows, restored, strict=False):
        assert all(torch.equal(kept, given) for kept, given in zip(row, (lq[0], image, hq[0]), strict=True))
    validation.reset()
    assert validation.rows == []


def test_a_smaller_lq_is_enlarged_and_luma_and_border_are_as_in_papers() -> None:
    hq = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    restored = hq.clone()
    restored[..., :4, :] = 0  # in the border
    restored[:, 2, 8:24, 8:24] += 0.1  # blue, which luma hardly sees
    validation = Validation(lpips=None, pictures=1, luma=True, border_px=4)
    validation.update(restored=restored, lq=hq[..., ::4, ::4], hq=hq)
    error = (0.1 * 24.966 / 255) ** 2 * 16**2 / 24**2
    assert validation.compute()["psnr"].item() == pytest.approx(-10 * math.log10(error), rel=1e-4)
    assert [image.shape for image in validation.rows[0]] == [(3, 32, 32)] * 3
    white = luma_of(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1))
    assert white.flatten().tolist() == pytest.approx([16 / 255, 235 / 255], abs=1e-4)


def test_a_network_of_another_scale_is_refused() -> None:
    validation = Validation(lpips=None, pictures=0, luma=False, border_px=0)
    with pytest.raises(
        ValueError, match=r"the network makes \(32, 32\) where the HQ is \(16, 16\): choose a network of the scale"
    ):
        validation.update(restored=torch.zeros(1, 3, 32, 32), lq=torch.zeros(1, 3, 8, 8), hq=torch.zeros(1, 3, 16, 16))


def test_lpips_without_weights_is_left_out_with_the_reason() -> None:
    def missing() -> nn.Module:
        raise FileNotFoundError("alexnet.pth does not exist")

    validation = Validation(lpips=missing, pictures=0, luma=False, border_px=0)
    validation.update(restored=torch.zeros(1, 3, 16, 16), lq=torch.zeros(1, 3, 16, 16), hq=torch.ones(1, 3, 16, 16))
    values = {name: value.item() for name, value in validation.compute().items()}
    # black for white: a mean squared error of 1, and of SSIM the constant 0.01^2 over 1 plus it
    dark = 1e-4 / (1 + 1e-4)
    assert values == pytest.approx({"psnr": 0, "psnr_lq": 0, "ssim": dark, "ssim_lq": dark}, abs=1e-5)
    assert validation.lpips_missing == "alexnet.pth does not exist"


def test_mixed_precision_does_not_touch_the_metrics() -> None:
    hq = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.5
    restored = hq + 0.005 * torch.randn(hq.shape, generator=torch.Generator().manual_seed(1))
    values = []
    for enabled in (False, True):
        validation = Validation(lpips=None, pictures=0, luma=False, border_px=0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            validation.update(restored=restored, lq=hq, hq=hq)
        values.append({name: value.item() for name, value in validation.compute().items()})
    assert values[0] == values[1]
    assert values[1]["ssim_lq"] == pytest.approx(1)


@pytest.mark.parametrize(("side", "border", "fits"), [(26, 8, False), (27, 8, True), (16, 8, False), (10, 0, False)])
def test_a_border_that_leaves_less_than_ssim_needs(side: int, border: int, fits: bool) -> None:
    validation = Validation(lpips=None, pictures=0, luma=False, border_px=border)
    images = {name: torch.zeros(1, 3, side, side + 4) for name in ("restored", "lq", "hq")}
    if fits:
        validation.update(**images)
        assert validation.compute()["ssim"].item() == pytest.approx(1), "of the 11x15 pixels that are left"
        return
    with pytest.raises(
        ValueError, match=rf"validation\.border_px={border} leaves less of an image of {side}x{side + 4} than the 11"
    ):
        validation.update(**images)
