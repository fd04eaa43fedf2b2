"""FaceNet's Inception-ResNet v1 as facenet-pytorch has it, as an embedder of aligned faces."""

import torch.nn.functional as F
from facenet_pytorch import InceptionResnetV1
from torch import Tensor


class FaceNet(InceptionResnetV1):
    """Aligned faces to unit vectors (Schroff et al. 2015); keys are those of facenet-pytorch's files, its classifier's too.

    Args: num_classes: of the file: 8631 of VGGFace2 (20180402-114759), 10575 of CASIA-WebFace (20180408-102900).
    """

    face_px = 160

    def __init__(self, *, num_classes: int) -> None:
        super().__init__(classify=True, num_classes=num_classes)
        self.classify = False  # the classifier is there for its keys alone

    def forward(self, faces: Tensor) -> Tensor:
        """(b, 3, 160, 160) RGB in [0, 1] to (b, 512) of unit length."""
        return F.normalize(super().forward((255 * faces - 127.5) / 128), dim=1)
