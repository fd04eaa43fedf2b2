"""A stage of one network that restores by itself, in tiles where it can be."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import torch
from annotated_types import Ge, MinLen
from pydantic import FiniteFloat
from torch import Tensor, nn

from models.diffusion.ircontrolnet import IRControlNet
from models.files import official
from models.vqgan import VQAutoEncoder
from restoration.stage import Restore, memory_explained
from restoration.tiles import Tileable, restore_tiled, rounded

TILE_PX, OVERLAP_PX = 512, 64
Fidelity = Annotated[FiniteFloat, Ge(0)]


@runtime_checkable
class Controllable(Protocol):
    """A network whose forward takes a fidelity `w` and `adain` beside the image, such as CodeFormer."""

    takes_fidelity: bool


@runtime_checkable
class OfAlignedFaces(Protocol):
    """A network that takes aligned faces of one size, such as CodeFormer and GFPGAN."""

    face_px: int


@dataclass(frozen=True, kw_only=True)
class Network:
    """One network with its weights; conf/pipeline/network.yaml says what each argument is."""

    ckpt: str
    which: Literal["ema", "network"] | None = None
    w: Fidelity | Annotated[list[Fidelity], MinLen(1)] | None = None
    tile_px: int | None = None
    overlap_px: int | None = None
    bf16: bool = False
    feeds_a_stage: bool = False  # true: an autoencoder, which gives its input again, and several w are refused

    def __post_init__(self) -> None:
        if self.feeds_a_stage and isinstance(self.w, list):
            raise ValueError(f"w={self.w}: a stage that another follows takes one fidelity")

    @property
    def tiles(self) -> tuple[int, int]:
        """Side and overlap of tiles in pixels."""
        return TILE_PX if self.tile_px is None else self.tile_px, OVERLAP_PX if self.overlap_px is None else self.overlap_px

    def files(self) -> Mapping[str, Sequence[str]]:
        return {"ckpt": [self.ckpt]}

    def idle(self) -> Iterator[tuple[str, str]]:
        yield from ()  # which network it is, and so what it takes, is known when it is opened

    def load(self, device: torch.device) -> Restore:
        network = self._opened(device)
        multiple = network.multiple if isinstance(network, Tileable) else None  # None: the network needs the whole image
        if multiple:
            rounded(*self.tiles, multiple)
        fidelities = self.w if isinstance(self.w, list) else [0.5 if self.w is None else self.w]
        ways: list[dict[str, Any]] = [{}]
        if isinstance(network, Controllable):
            ways = [{"w": w, "adain": True} for w in fidelities]

        def on_device(images: Tensor, way: dict[str, Any]) -> Tensor:
            with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
                made = network(images.to(device), **way)
            return made if isinstance(made, Tensor) else made.restored

        def restored(images: Tensor, way: dict[str, Any]) -> Tensor:
            if multiple is None:
                return on_device(images, way).float().cpu()
            tile_px, overlap_px = self.tiles
            once = partial(on_device, way=way)
            return restore_tiled(once, images, tile_px=tile_px, overlap_px=overlap_px, multiple=multiple)

        def restore(images: Tensor, lq: Tensor, names: Sequence[str]) -> Tensor:
            height, width = images.shape[-2:]
            side = network.face_px if isinstance(network, OfAlignedFaces) else None
            if side is not None and (height, width) != (side, side):
                raise ValueError(
                    f"{type(network).__name__} restores aligned faces of {side}x{side}, and this is an image of "
                    f"{width}x{height}: faces=photo face_px={side} takes the faces of a photograph"
                )
            smaller = [f"set tile_px below {min(self.tiles[0], max(images.shape[-2:]))}"] if multiple else []
            with memory_explained(images, smaller, device):
                return torch.cat([restored(images, way) for way in ways], dim=-1)

        return restore

    def _opened(self, device: torch.device) -> nn.Module:
        """Raises ValueError: the file holds no restorer, or one that has no use for a key that was given."""
        network = official.build(self.ckpt, self.which)
        if isinstance(network, IRControlNet):
            raise ValueError(
                f"{self.ckpt} holds DiffBIR's control network, which restores nothing by itself: give pipeline=diffbir "
                f"stage1=FILE stage2={self.ckpt} sd=DIR"
            )
        if self.feeds_a_stage and isinstance(network, VQAutoEncoder):
            raise ValueError(f"{self.ckpt} holds {type(network).__name__}, which restores no images: give a restorer")
        for used, key, what in (
            (isinstance(network, Controllable), "w", "fidelity"),
            (isinstance(network, Tileable), "tile_px", "tiles"),
            (isinstance(network, Tileable), "overlap_px", "tiles"),
        ):
            if not used and getattr(self, key) is not None:
                raise ValueError(
                    f"{key} does nothing: {self.ckpt} holds {type(network).__name__}, which takes no {what}; leave {key} out"
                )
        return network.to(device)
