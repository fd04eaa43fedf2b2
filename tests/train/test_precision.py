"""What a run asks of a GPU's numbers; no GPU is needed to see that it asks."""

import pytest
import torch

from train.precision import best_precision, full_float32, half_precision
from train.tasks.validation import Validation


@pytest.mark.parametrize(
    ("there", "computes", "emulates", "best", "half"),
    [
        (True, True, True, "bf16-mixed", "bf16-mixed"),
        (True, False, True, "32-true", "16-mixed"),  # a T4: torch says that it supports bfloat16, and emulates it
        (True, False, False, "32-true", "16-mixed"),
        (False, False, False, "32-true", "16-mixed"),
    ],
)
def test_emulated_bfloat16_does_not_count(
    there: bool, computes: bool, emulates: bool, best: str, half: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: computes or (including_emulation and emulates)
    )
    assert (best_precision(), half_precision()) == (best, half)


@pytest.fixture
def tf32() -> object:
    """As train/runs/building.py sets a GPU."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def flags() -> tuple[str, bool]:
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


@pytest.mark.usefixtures("tf32")
def test_tf32_is_off_within_and_back_after_even_a_failure() -> None:
    with full_float32():
        assert flags() == ("highest", False)
    assert flags() == ("high", True)
    with pytest.raises(ValueError, match="broken"), full_float32():
        raise ValueError("broken")
    assert flags() == ("high", True)


@pytest.mark.usefixtures("tf32")
def test_metrics_are_computed_in_full_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    validation = Validation(lpips=None, pictures=0, luma=True, border_px=0)
    seen = []
    for metric in validation.metrics.values():
        monkeypatch.setattr(metric, "update", lambda *_: seen.append(flags()))
    image = torch.rand(1, 3, 16, 16)
    validation.update(restored=image, lq=image, hq=image)
    assert seen == [("highest", False)] * 4
    assert flags() == ("high", True)
