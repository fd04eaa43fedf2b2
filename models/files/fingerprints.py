"""Which weights a network has, in 64 letters: what was made with one network is not mixed up with what another one made."""

import hashlib
from collections.abc import Iterable

from torch import Tensor, nn


def digest_of(*networks: nn.Module) -> str:
    """SHA-256 of all weights and buffers that a state dict has, in its order."""
    return _sha256(value for network in networks for value in network.state_dict().values())


def codebook_digest(network: nn.Module) -> str:
    """The same of the encoder and the codebook alone, which decide an image's codes."""
    return _sha256(value for key, value in network.state_dict().items() if key.startswith(("encoder.", "quantize.")))


def _sha256(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().cpu().numpy().data)
    return digest.hexdigest()
