"""Training by regression: one network, one loss set (SwinIR, ELAN)."""

from torch import Tensor

from data.batch import Batch
from train.tasks.task import RestorationTask


class RegressionTask(RestorationTask):
    """Minimises the loss set between the restored image and HQ (DiffBIR's train_stage1.py, SwinIR, ELAN)."""

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        loss, terms = self.loss(self.update, self.left_out(self.update), **self.given(batch, self.run_network(batch)))
        self.log_terms(loss, terms)
        return loss
