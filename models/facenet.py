"""FaceNet's Inception-ResNet v1 as facenet-pytorch has it, as an embedder of aligned faces."""

import torch.nn.functional as F
from facenet_pytorch import InceptionResnetV1
from torch import Tensor


class FaceNet(InceptionResnetV1):
    """Aligned faces to unit vectors (Schroff et al. 2015). Keys are those of facenet-pytorch's files, with the classifier's.

    Args: num_classes: classes of the file's classifier: 8631 for VGGFace2 (20180402-114759), 10575 for CASIA-WebFace
          (20180408-102900).
    """

    face_px = 160

    def __init__(self, *, num_classes: int) -> None:
        super().__init__(classify=True, num_classes=num_classes)
        self.classify = False  # the classifier exists so that its keys load; forward skips it

    def forward(self, faces: Tensor) -> Tensor:
        """(b, 3, 160, 160) RGB in [0, 1] to (b, 512) of unit length."""
        return F.normalize(super().forward((255 * faces - 127.5) / 128), dim=1)
