"""Against basicsr 1.4.2 itself, on random inputs: kernels, noise, JPEG and sharpening."""

import sys

import numpy as np
import pytest
import torch

if sys.version_info >= (3, 13):
    pytest.skip("basicsr 1.4.2 can't be installed on Python 3.13", allow_module_level=True)

from degradations import kernels
from degradations.dct import diffjpeg
from degradations.draws import generator
from degradations.fields import normals
from degradations.operators.jpeg import Jpeg, libjpeg
from degradations.operators.noise import GaussianNoise, PoissonNoise
from degradations.operators.sharpen import UsmSharpening
from tests.basicsr_peer import degradations as basicsr
from tests.basicsr_peer import utils
from tests.degradations.samples import photo

images = utils.img_process_util
GAUSSIAN = GaussianNoise(sigma_255=(0, 30), grey_prob=0.4)
POISSON = PoissonNoise(scale=(0.05, 3), grey_prob=0.4)
SHARPEN = UsmSharpening(kernel_size_px=51, weight=0.5, threshold_255=10)


@pytest.mark.parametrize("size", [7, 21, 41])
def test_kernels(size):
    rng = np.random.default_rng(size)
    for _ in range(20):
        x, y, angle = rng.uniform(0.2, 8), rng.uniform(0.2, 8), rng.uniform(-np.pi, np.pi)
        beta, cutoff = rng.uniform(0.5, 4), rng.uniform(np.pi / 5, np.pi)
        turned = {"sig_x": x, "sig_y": y, "theta": angle, "isotropic": False}
        peers = [
            (kernels.gaussian(size, x, y, angle), basicsr.bivariate_Gaussian(size, **turned)),
            (kernels.gaussian(size, x, x, 0), basicsr.bivariate_Gaussian(size, x, x, 0, isotropic=True)),
            (kernels.generalized(size, x, y, angle, beta), basicsr.bivariate_generalized_Gaussian(size, beta=beta, **turned)),
            (kernels.plateau(size, x, y, angle, beta), basicsr.bivariate_plateau(size, beta=beta, **turned)),
            (kernels.sinc(size, cutoff), basicsr.circular_lowpass_kernel(cutoff, size)),
        ]
        for ours, theirs in peers:
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-12)


def test_gaussian(monkeypatch):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        image, sigma = rng.random((3, 20, 30), dtype=np.float32), rng.uniform(1, 30)
        for grey in (0, 1):
            field = normals(seed, (1, 20, 30) if grey else (3, 20, 30))
            given = field[0] if grey else field.transpose(1, 2, 0)
            monkeypatch.setattr(np.random, "randn", lambda *shape, given=given: given.reshape(shape))
            hwc = np.ascontiguousarray(image.transpose(1, 2, 0))
            theirs = basicsr.add_gaussian_noise(hwc, sigma=sigma, clip=True, rounds=False, gray_noise=bool(grey))
            ours = GAUSSIAN.apply(image, {"sigma_255": sigma, "grey": grey, "field_seed": seed})
            np.testing.assert_allclose(ours, theirs.transpose(2, 0, 1), rtol=0, atol=1e-6)


def test_poisson_is_as_strongs():
    np.random.seed(0)
    image = (generator(0, 0, "image").integers(64, 192, (3, 96, 96)) / 255).astype(np.float32)
    for scale in (0.3, 1.0, 2.5):
        hwc = np.ascontiguousarray(image.transpose(1, 2, 0))
        theirs = basicsr.add_poisson_noise(hwc, scale, clip=True, rounds=False).transpose(2, 0, 1) - image
        ours = POISSON.apply(image, {"scale": scale, "grey": 0, "field_seed": 4}) - image
        assert ours.std() == pytest.approx(theirs.std(), rel=0.025)  # 4 standard errors of both
        for bright in (image < 0.4, image > 0.6):  # and stronger where it is brighter
            assert ours[bright].std() == pytest.approx(theirs[bright].std(), rel=0.05)


@pytest.mark.parametrize("size", [(64, 48), (37, 51), (1, 1)], ids=str)
def test_libjpeg(size):
    for quality in (30, 61, 99):
        image = photo(*size) * 1.1 - 0.05  # beyond [0, 1]
        bgr = np.ascontiguousarray(image.transpose(1, 2, 0)[..., ::-1])
        theirs = basicsr.add_jpg_compression(bgr, quality)[..., ::-1].transpose(2, 0, 1)
        np.testing.assert_array_equal(np.rint(libjpeg(image, quality) * 255), np.rint(theirs * 255))


@pytest.mark.parametrize("size", [(64, 48), (37, 51)], ids=str)
def test_diffjpeg(size):
    batch = torch.from_numpy(np.stack([photo(*size), photo(*size)[::-1].copy()]))
    peer = utils.DiffJPEG(differentiable=False)
    for qualities in ([30.0, 95.0], [47.3, 50.0], [10.5, 71.2]):
        with torch.no_grad():
            theirs = peer(batch, quality=torch.tensor(qualities))  # which overwrites what it is given
        off = (diffjpeg(batch, torch.tensor(qualities)) - theirs).abs()
        assert (off > 2e-5).double().mean() < 0.02  # a coefficient at a rounding tie takes 64 pixels along
        assert off.median() < 1e-6
        ours = Jpeg(quality=(1, 100), codec="diffjpeg").apply(batch[0].numpy(), {"quality": qualities[0]})
        np.testing.assert_allclose(ours, diffjpeg(batch, torch.tensor(qualities))[0], atol=1e-6)


def test_usm_sharpening():
    for seed in range(3):
        image = np.random.default_rng(seed).random((3, 64, 56), dtype=np.float32)
        smooth = (image[:, 1:, 1:] + image[:, :-1, 1:] + image[:, 1:, :-1] + image[:, :-1, :-1])[:, :60, :52] / 4
        image = np.ascontiguousarray(smooth)
        theirs = images.USMSharp()(torch.from_numpy(image)[None])[0].numpy()
        off = np.abs(SHARPEN.apply(image, {}) - theirs)
        assert (off > 5e-6).mean() < 0.3  # a pixel at the threshold changes a mask of 51 px around it,
        assert off.max() < 1e-3  # and hardly
        in_numpy = images.usm_sharp(np.ascontiguousarray(image.transpose(1, 2, 0))).transpose(2, 0, 1)
        assert np.abs(SHARPEN.apply(image, {}) - in_numpy).max() < 1e-3
