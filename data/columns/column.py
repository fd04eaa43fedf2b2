"""What a column is: something that was made of every image before training, and is found by the image's name."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from data.augmentation import Augmentation
from data.batch import Degradation
from data.cutting import Cut
from data.order import Draws
from data.reading import Picture
from data.sources.source import Choices, Source


@dataclass(frozen=True)
class Setting:
    """The data that columns are added to, and how training shows its images: what columns follow or refuse."""

    source: Source  # the images of data.root, those held out for validation last
    targets: Source | Choices | None  # of the images, where the HQs are given
    degradation: Degradation | None  # None: the images are LQs
    augmentation: Augmentation
    cut: Cut
    on_error: Literal["raise", "skip"]  # what becomes of unreadable images, see data.reading.Reader
    open: Callable[[str, str], Source]  # a key of data and its value, a root, to the images there

    def moved(self) -> list[str]:
        """Every setting under which an HQ is not always cut of one image in one way, in words."""
        wrong = [] if self.cut.crop == "center" else [f"data.crop={self.cut.crop}, where center is needed"]
        if self.augmentation.transforms:
            wrong.append(f"augmentation={', '.join(self.augmentation.transforms)}, where none is needed")
        if isinstance(self.targets, Choices):
            wrong.append("targets that are drawn (data=hggt)")
        return wrong

    def mirrored(self) -> list[str]:
        """The setting under which an image is mirrored at random, in words."""
        return [f"data.hflip_prob={self.cut.hflip_prob}, where 0 is needed"] if self.cut.hflip_prob else []

    def degraded(self) -> list[str]:
        """The setting under which the degradation changes HQs as well, in words."""
        if self.targets is not None or self.degradation is None or not self.degradation.hq_too:
            return []
        return [f"degradation.hq_too={list(self.degradation.hq_too)}, where [] is needed"]


class Column(ABC):
    """Something that was made of every image before training. Each sample gains the tensor of its image.

    Args:    key: of the configuration that gives the path, for messages. path: of the file or folder; None: the data don't have
                 this column.
    """

    tensor: str  # the name under which samples and batches have it

    def __init__(self, *, key: str, path: str | None) -> None:
        self.key, self.path = key, path

    @property
    def given(self) -> str:
        """Key and value, for messages."""
        return f"{self.key}={self.path}"

    @abstractmethod
    def bind(self, setting: Setting) -> None:
        """Opens what the path names and finds the images in it, once, before the first sample.

        Raises:  ValueError: it can't be read, lacks images, or training shows them in a way that it does not hold for.
        """

    @abstractmethod
    def of(self, picture: Picture, draws: Draws) -> Tensor:
        """The tensor of an image. picture: cut and mirrored, as training shows it. Raises ValueError: it is of another one."""

    def read(self, picture: Picture, draws: Draws) -> tuple[Tensor, int]:
        """As `of`, with the number of unreadable files that were passed over for it."""
        return self.of(picture, draws), 0

    def check_precision(self, precision: str | None) -> None:  # noqa: B027 # most columns bear any
        """Raises ValueError: batches of this precision of the Trainer would round it away."""
