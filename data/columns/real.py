"""Clean faces that a discriminator sees in place of the HQs."""

from torch import Tensor

from data.columns.column import Column, Setting
from data.images import to_tensor
from data.order import Draws, Order
from data.reading import Images, Picture, Reader


class RealFaces(Column):
    """A clean face for each sample, from images of its own in an order of its own, cut and mirrored by draws of its own.

    Args:    path: root of these images (data.real_root).
    """

    tensor = "real"

    def bind(self, setting: Setting) -> None:
        """Raises ValueError: the root is missing, wrong or empty."""
        assert self.path is not None
        images = Images(setting.open(self.key, self.path), None, None)
        self.reader = Reader(images=images, is_degraded=True, on_error=setting.on_error, key=self.key, keep_decoded=False)
        self.count, self.cut = len(images.source), setting.cut

    def of(self, picture: Picture, draws: Draws) -> Tensor:
        """(3, size, size) float32 in [0, 1]. Raises UnreadableImage, or ValueError: the face is too small."""
        return self.read(picture, draws)[0]

    def read(self, picture: Picture, draws: Draws) -> tuple[Tensor, int]:
        """As `of`; with data.on_error=skip the next readable face of the order stands in for an unreadable one."""
        order = Order(count=self.count, blocks=(), seed=draws.seed + 1)  # another seed: else equal counts would pair the two
        indices, _ = order.at(draws.position)
        face = self.cut(self.reader.read(indices, draws), draws, "data.real")
        return to_tensor(face.photos[0]), face.passed_over
