"""In which floating-point numbers this machine's GPU computes."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def best_precision() -> str:
    """trainer.precision left to the machine: bf16-mixed on a GPU that computes in bfloat16, else 32-true."""
    return "bf16-mixed" if torch.cuda.is_available() and computes_bf16() else "32-true"


def half_precision() -> str:
    """The 16-bit precision for this GPU: bf16-mixed where it computes in it, else 16-mixed."""
    return "bf16-mixed" if computes_bf16() else "16-mixed"


def computes_bf16() -> bool:
    """False too where bfloat16 is only emulated: there it is slower than float32."""
    return torch.cuda.is_bf16_supported(including_emulation=False)


@contextmanager
def full_float32() -> Iterator[None]:
    """Within it GPUs multiply float32 with all its bits. TF32, which is quicker, keeps 10 of 23: SSIM's variances cancel."""
    matmul, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolutions
