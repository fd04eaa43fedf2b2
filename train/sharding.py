"""trainer=fsdp: weights, gradients and optimizer state shared out over the ranks, checkpoints in one file as ever."""

from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard


class FullyShard(ModelParallelStrategy):
    """FSDP 2 (Zhao et al. 2023, arXiv:2304.11277; torch's fully_shard) over all ranks, without tensor parallelism.

    A checkpoint is put together on rank 0 and has the keys of any other, so a run may go on without FSDP.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """May be called before there is a task, to connect the ranks."""
        self._data_parallel_size = self.world_size
        if self.lightning_module is None:
            assert self.accelerator is not None
            self.accelerator.setup_device(self.root_device)
            self._setup_distributed()
        else:
            super().setup_environment()


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Each block of the network's lists of blocks on its own, so that one at a time is whole; then what is left."""
    blocks = [block for each in network.modules() if isinstance(each, nn.ModuleList) for block in each]
    for block in reversed(blocks):  # the inner ones first
        if any(True for _ in block.children()):
            fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that is shared out; any other tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
