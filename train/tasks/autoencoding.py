"""Training of CodeFormer's stage I: clean faces through a codebook and back, against a discriminator."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.batch import Batch
from train.tasks.adversarial import AdversarialTask
from train.tasks.calling import outputs
from train.tasks.codebook import CodebookUse
from train.tasks.task import constructed


@constructed
class AutoencodingTask(AdversarialTask):
    """HQ in, HQ out; the LQ of a batch is not looked at. Logs how much of the codebook is in use.

    Raises: ValueError: as AdversarialTask.
    """

    codebook: CodebookUse

    def __post_init__(self) -> None:
        super().__post_init__()
        book = self._codebooks()[0]
        if self.codebook.restart and not book.weight.requires_grad:
            raise ValueError("codebook.restart=true renews codes that optimizer.parts freezes: set codebook.restart=false")
        self.codebook.register(book.num_embeddings)
        self.latent: Tensor | None = None  # of the last batch, for dead codes to begin from

    def _codebooks(self) -> list[nn.Embedding]:
        """The one that is trained, and its average."""
        return [each.get_submodule("quantize.embedding") for each in (self.network, *([self.ema.average] if self.ema else []))]  # type: ignore[misc]

    def run_network(self, batch: Batch) -> dict[str, Any]:
        """The autoencoder's outputs for the HQs: `restored` (b, 3, h, w), the latent, and the codes."""
        made = outputs(self.network(batch["hq"]))
        if torch.is_grad_enabled():  # not where the discriminators alone learn
            self.codebook.add(made["codes"])
            self.latent = made["latent"].detach() if self.codebook.restart else None
        return made

    def _generator_step(self) -> None:
        if self.update <= self.adversary.generator_start_step:
            return super()._generator_step()
        update, logged = self.update, self.logs_this_update
        use = self.codebook.count(update)
        if logged:
            self.row.put({f"codebook/{name}": value for name, value in use.items()})
        super()._generator_step()
        if self.latent is None or self.outcome != "done":
            return
        seed: int = self.config["seed"]
        revived = self.codebook.revive(self._codebooks(), self.trainer.optimizers[0], self.latent, update, seed)
        if logged:
            self.row.put({"codebook/restarted": revived})

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        self.validation.update(restored=self.restore(batch["hq"]), lq=batch["lq"], hq=batch["hq"])

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        if self.trainer.is_global_zero:
            self.codebook.draw(Path(self.trainer.default_root_dir) / "codebook.png", self.trainer.global_step)
