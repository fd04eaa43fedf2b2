"""DifFace (Yue and Loy 2022): what a first stage made is noised, and denoised again by a diffusion model of good faces."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Interval
from torch import Tensor
from tqdm import tqdm

from models.diffusion.adm import ADM
from models.diffusion.pixels import PixelDiffusion
from models.diffusion.sampling import drawn_from
from models.files import official
from restoration.diffbir import each_its_own, noise_of
from restoration.stage import Restore, is_terminal, memory_explained


@dataclass(frozen=True, kw_only=True)
class DifFace:
    """Its file and settings; conf/pipeline/difface.yaml says what each is."""

    diffusion: str
    respacing: str = "ddim250"
    start: Annotated[int, Ge(1)] = 100
    eta: Annotated[float, Interval(ge=0, le=1)] = 0.5
    which: Literal["ema", "network"] | None = None
    bf16: bool = False
    seed: int = 231

    def __post_init__(self) -> None:
        if self.start >= len(chain := PixelDiffusion(respacing=self.respacing)):
            raise ValueError(
                f"start={self.start}: the chain of respacing={self.respacing} has {len(chain)} steps, 0 the cleanest"
            )

    def files(self) -> Mapping[str, Sequence[str]]:
        return {"diffusion": [self.diffusion]}

    def idle(self) -> Iterator[tuple[str, str]]:
        yield from ()

    def load(self, device: torch.device) -> Restore:
        network = official.build(self.diffusion, self.which)
        if not isinstance(network, ADM):
            raise ValueError(f"diffusion={self.diffusion} holds {type(network).__name__}: give the diffusion network in pixels")
        if network.out[2].out_channels != 6:
            raise ValueError(f"diffusion={self.diffusion} has no learned variance: its last convolution has not 6 channels")
        network, chain = network.to(device), PixelDiffusion(respacing=self.respacing)

        def predict(x: Tensor, timesteps: Tensor) -> Tensor:
            with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
                made: Tensor = network(x, timesteps)
            return made.float()

        def restore(images: Tensor, lq: Tensor, names: Sequence[str]) -> Tensor:
            draw = each_its_own([drawn_from(noise_of(self.seed, name)) for name in names])
            first = 2 * images.to(device).clamp(0, 1) - 1
            with memory_explained(images, [] if self.bf16 else ["bf16=true"], device):
                index = torch.full((len(first),), self.start, device=device)
                x = chain.noised(first, index, draw(first))
                steps = chain.ddim(predict, x, draw, eta=self.eta, start=self.start, noise_again=False)
                bar = tqdm(steps, total=self.start, unit="step", leave=False, disable=not is_terminal())
                ((_, last),) = deque(bar, maxlen=1)
            return (last.cpu() + 1) / 2

        return restore
