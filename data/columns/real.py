"""Clean faces that a discriminator sees in place of the HQs."""

from torch import Tensor

from data.columns.column import Column, Setting
from data.images import to_tensor
from data.order import Draws, image_at
from data.reading import Picture, read_image, sizes


class RealFaces(Column):
    """A clean face for each sample, from images of its own in an order of its own, cut and mirrored by draws of its own.

    Args:    path: root of these images (data.real_root).
    """

    tensor = "real"

    def bind(self, setting: Setting) -> None:
        """Raises ValueError: the root is missing, wrong or empty."""
        assert self.path is not None
        self.source, self.cut = setting.open(self.key, self.path), setting.cut

    def of(self, picture: Picture, draws: Draws) -> Tensor:
        """(3, size, size) float32 in [0, 1]. Raises UnreadableImage, or ValueError: the face is too small."""
        index = image_at(draws.position, len(self.source), draws.seed + 1)  # another seed: else equal counts would pair the two
        photos = [read_image(self.source, index)]
        face = self.cut(Picture(index, self.source.name(index), photos, sizes(photos)), draws, "data.real")
        return to_tensor(face.photos[0])
