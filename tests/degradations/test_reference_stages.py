"""Given the same parameters, every stage equals what DiffBIR's and CodeFormer's own classes computed."""

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from degradations.blur import GaussianBlur, gaussian_kernel
from degradations.jpeg import Jpeg
from degradations.noise import add_noise
from degradations.pipeline import Pipeline
from degradations.resize import Downsample, ResizeBack

GOLDEN = Path(__file__).parent.parent / "golden" / "degradations"
BLUR = GaussianBlur(kernel_size_px=41, sigma_px=(0.1, 15), isotropic_prob=0.5)
DOWN = Downsample(factor=(1, 30), filter="bilinear")
JPEG = Jpeg(quality=(30, 100))
BACK = ResizeBack(filter="bilinear")
# the values that the reference's random calls were given
SCRIPTED = {
    "diffbir_stage1": {"sigmas": (2.48, 6.05), "angle": -0.9424777960769379, "factor": 3.2, "sigma_255": 12.0, "quality": 59},
    "codeformer_stage2": {"sigmas": (2.4, 6.6), "angle": -1.2566370614359172, "factor": 5.3, "sigma_255": 12.0, "quality": 65},
}


@pytest.fixture(params=sorted(SCRIPTED))
def case(request):
    return request.param, SCRIPTED[request.param], np.load(GOLDEN / f"{request.param}.npz")


def blur_parameters(given):
    return {"sigma_x_px": given["sigmas"][0], "sigma_y_px": given["sigmas"][1], "angle_rad": given["angle"]}


def down_parameters(given, side=96):
    return {"factor": given["factor"], "height": int(side // given["factor"]), "width": int(side // given["factor"])}


def test_kernel(case):
    _, given, stages = case
    kernel = gaussian_kernel(41, *given["sigmas"], given["angle"])
    np.testing.assert_allclose(kernel, stages["kernel"], rtol=1e-6, atol=1e-9)


def test_blur_and_shrink(case):
    _, given, stages = case
    hq = stages["hq_u8"].astype(np.float32) / np.float32(255)
    blurred = BLUR.apply(hq, blur_parameters(given))
    np.testing.assert_allclose(blurred[::8], stages["blurred_rows"], rtol=0, atol=2e-6)
    np.testing.assert_allclose(DOWN.apply(blurred, down_parameters(given)), stages["shrunk"], rtol=0, atol=2e-6)


def test_noise(case):
    name, given, stages = case
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(f"randn/pipeline_{name}/0".encode())))
    field_rgb = rng.standard_normal(stages["shrunk"].shape).astype(np.float32)[..., ::-1]  # drawn for BGR
    noisy = add_noise(stages["shrunk"], field_rgb, given["sigma_255"])
    np.testing.assert_allclose(noisy * 255, stages["noisy_255"], rtol=0, atol=5e-4)


def test_jpeg_is_bit_exact(case):
    _, given, stages = case
    decoded = JPEG.apply(stages["noisy_255"] / np.float32(255), {"quality": given["quality"]})
    np.testing.assert_array_equal(np.rint(decoded * 255), stages["jpeg_u8"])


def test_enlarge(case):
    _, _, stages = case
    small = stages["jpeg_u8"].astype(np.float32) / np.float32(255)
    enlarged = BACK.apply(small, {"height": 96, "width": 96})
    np.testing.assert_allclose(enlarged[::8], stages["enlarged_rows"], rtol=0, atol=2e-6)


def test_whole_pipeline_on_the_8_bit_grid():
    given, stages = SCRIPTED["codeformer_stage2"], np.load(GOLDEN / "codeformer_stage2.npz")
    pipeline = Pipeline(operators={"resize_back": BACK}, quantize=True)
    small = torch.from_numpy(stages["jpeg_u8"].astype(np.float32).transpose(2, 0, 1)) / 255
    lq = pipeline.apply(small, {"resize_back": {"height": 96, "width": 96}})
    np.testing.assert_array_equal((lq.numpy().transpose(1, 2, 0) * 255).round(), stages["lq_u8"])
    assert small.shape == (3, *(down_parameters(given)[side] for side in ("height", "width")))
