"""Training of CodeFormer's transformer (stage II, DT-BFR) and of its controllable features (stage III)."""

from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torchmetrics import MeanMetric

from data.batch import Batch
from losses.frozen import Frozen
from models.files import official
from models.files.fingerprints import codebook_digest
from train.tasks.adversarial import AdversarialTask
from train.tasks.calling import outputs
from train.tasks.regression import RegressionTask
from train.tasks.task import RestorationTask, constructed

Fidelity = Annotated[float, Ge(0)]


class Phase:
    """A stretch of training.

    Args: until_step: its last update; null: to the end.
          w: fidelity of the updates that make an image. null: no image, and the losses on codes alone.
          image_every: one update of so many makes an image, where its number divides; the others are on codes alone.
    """

    def __init__(
        self,
        *,
        until_step: Annotated[int, Ge(1)] | None,
        w: Annotated[float, Gt(0)] | None,
        image_every: Annotated[int, Ge(1)] = 1,
    ) -> None:
        self.until_step, self.w, self.image_every = until_step, w, image_every

    def fidelity(self, update: int) -> float | None:
        """w of an update that makes an image, else None."""
        return None if update % self.image_every else self.w


class TargetCodes(nn.Module):
    """HQ to the codes that a trained encoder and codebook give it; the rest of the network is let go."""

    def __init__(self, network: Any, path: str) -> None:
        super().__init__()
        for name in [name for name, _ in network.named_children() if name not in ("encoder", "quantize")]:
            delattr(network, name)
        self.network, self.weights_from = network, path

    def forward(self, hq: Tensor) -> Tensor:
        """(b, 3, H, W) in [0, 1] to (b, h, w)."""
        return self.network.quantize.nearest(self.network.encode(hq))


class CodePrediction(nn.Module):
    """Which codes the transformer is to predict, and when an image is made of its predictions.

    Args:   teacher: a run or official file, whose encoder and codebook make the target codes; frozen. Read at every start, and
                a run that goes on with another one is refused.
            family: what the teacher is: vqgan, or codeformer (DT-BFR's own copy of what it fine-tunes).
            phases: name -> phase, one after the other.
            w, adain: of the validation, see models/codeformer.py.
    Raises: ValueError: the teacher is something else; phases that do not follow each other.
    """

    def __init__(
        self,
        *,
        teacher: str,
        family: Literal["vqgan", "codeformer"],
        phases: dict[str, Phase],
        w: Fidelity,
        adain: bool,
    ) -> None:
        super().__init__()
        ends = [phase.until_step for phase in phases.values()]
        bounds = [end for end in ends[:-1] if end is not None]
        if not ends or ends[-1] is not None or len(bounds) < len(ends) - 1 or bounds != sorted(set(bounds)):
            raise ValueError(
                f"codes.phases end at {ends}: each must end later than the one before, and the last until_step is null"
            )
        found, network = official.identify(official.read(teacher)), official.build(teacher)
        if found.family != family:
            raise ValueError(
                f"codes.teacher={teacher} holds a {found.family} network where {family} is wanted: give another one"
            )
        self.phases, self.w, self.adain, self.path = list(phases.values()), w, adain, teacher
        self.book = network.get_parameter("quantize.embedding.weight").detach().clone()
        self.fingerprint = codebook_digest(network)
        self.target = Frozen(TargetCodes(network, teacher))

    def fidelity(self, update: int) -> float | None:
        """w of this update's image, or None where it makes none."""
        phase = next(phase for phase in self.phases if phase.until_step is None or update <= phase.until_step)
        return phase.fidelity(update)

    def check(self, network: nn.Module) -> None:
        """Raises ValueError where the network's codebook is another one, in which the teacher's numbers mean nothing."""
        book = network.get_parameter("quantize.embedding.weight").detach().cpu()
        if book.shape != self.book.shape or not book.equal(self.book.to(book.dtype)):
            raise ValueError(
                f"codes.teacher={self.path} has another codebook than the network, so that its codes would mean nothing there: "
                "give the stage I that the network's own weights came from"
            )


@constructed
class PredictsCodes(RestorationTask):
    """What stages II and III have in common: target codes from a frozen teacher, and updates with and without an image.

    Updates that make an image take batch["lq"], the others batch["lq_large"] where the degradation makes one.
    """

    codes: CodePrediction

    offers = RestorationTask.offers | {"target_codes", "target_latent"}
    reads = frozenset({"codes"})
    calls_with = frozenset({"w", "adain", "code_only"})

    @staticmethod
    def unused_parameters(config: dict[str, Any]) -> bool:
        phases = config["codes"]["phases"].values()
        on_codes_alone = any(phase["w"] is None or phase.get("image_every", 1) > 1 for phase in phases)
        return on_codes_alone and "fuse_convs_dict" not in config["network"]["fix_modules"]

    def __post_init__(self) -> None:
        super().__post_init__()
        terms: Any = self.loss.terms
        self.of_images = self.loss.needing({"restored", "fake_logits", "fake_features"})
        if self.of_images == set(terms) and any(phase.w is None for phase in self.codes.phases):
            raise ValueError("codes.phases: a phase without images needs a term on codes, such as losses.codebook.CodeFeature")
        self.accuracy = MeanMetric()

    def check_start(self) -> None:
        self.codes.check(self.network)

    def on_fit_start(self) -> None:
        """Raises ValueError: the codes that the data bring are another teacher's."""
        super().on_fit_start()
        data: Any = getattr(self.trainer, "datamodule", None)
        codes = getattr(data, "columns", {}).get("codes")
        if codes is not None and not self._made(codes.teacher, data.faces):
            raise ValueError(
                f"data.codes={codes.path} was made by another network than codes.teacher={self.codes.path}: make another one "
                f"with python -m data.prepare codes ckpt={self.codes.path}, or set data.codes=null"
            )

    def _made(self, fingerprint: str | None, samples: Any) -> bool:
        """Whether the teacher has this fingerprint.

        Where the data have none: whether more than half of their codes for the first sample are the teacher's.
        """
        if fingerprint is not None:
            return fingerprint == self.codes.fingerprint
        sample = samples[0]
        with torch.no_grad():
            target = self.codes.target(sample.get("target", sample["hq"])[None].to(self.device))[0].cpu()
        given = sample["target_codes"]
        return given.shape == target.shape and bool((given == target).float().mean() > 0.5)

    def run_network(self, batch: Batch) -> dict[str, Any]:
        """The network's outputs, `target_codes` (b, h, w), and `target_latent` (b, c, h, w), the codes' vectors."""
        w = self.codes.fidelity(self.update)
        lq = batch["lq"] if w is not None else batch.get("lq_large", batch["lq"])
        made = outputs(self.network(lq, w=w or 0.0, adain=False, code_only=w is None))
        target = batch["target_codes"] if "target_codes" in batch else self.codes.target(batch["hq"])
        if self.logs_this_update:
            self.row.add({"train/code_accuracy": accuracy(made["logits"], target)})
        latent = self.network.codes_to_latent(target).detach()  # type: ignore[operator]
        return {**made, "target_codes": target, "target_latent": latent}

    def left_out(self, update: int) -> set[str]:
        return super().left_out(update) | (self.of_images if self.codes.fidelity(update) is None else set())

    def restore(self, lq: Tensor) -> Tensor:
        return outputs(self.validated_network(lq, w=self.codes.w, adain=self.codes.adain))["restored"].clamp(0, 1)

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self.accuracy.reset()

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        made = outputs(self.validated_network(batch["lq"], w=self.codes.w, adain=self.codes.adain))
        self.accuracy.update(accuracy(made["logits"], self.codes.target(batch["hq"])), len(batch["hq"]))
        self.validation.update(restored=made["restored"].clamp(0, 1), lq=batch["lq"], hq=batch["hq"])

    def validation_values(self) -> dict[str, Tensor]:
        return {**super().validation_values(), "code_accuracy": self.accuracy.compute()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["teacher"] = self.codes.fingerprint

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if checkpoint["teacher"] != self.codes.fingerprint:
            raise ValueError(
                f"codes.teacher={self.codes.path} holds other weights than when this run began, so that it can't go on as it "
                "would have: put the old ones back, or start over with resume=never"
            )


def accuracy(logits: Tensor, target: Tensor) -> Tensor:
    """Share of the tokens whose code is predicted; a scalar. logits: (b, t, n). target: (b, h, w)."""
    return (logits.detach().argmax(2) == target.flatten(1)).float().mean()


class CodePredictionTask(PredictsCodes, RegressionTask):
    """Stage II: the transformer and the encoder learn the codes of HQ (codeformer_idx_model.py), without a discriminator.

    Raises: ValueError: as CodePrediction, and where a term of the loss needs what there isn't.
    """


@constructed
class ControllableTask(PredictsCodes, AdversarialTask):
    """Stage III: images made at w > 0 against a discriminator, and the losses on codes (codeformer_joint_model.py).

    The discriminator rests in updates without an image.

    Raises: ValueError: as CodePrediction and AdversarialTask.
    """

    offers = PredictsCodes.offers | AdversarialTask.offers
    reads = PredictsCodes.reads | AdversarialTask.reads

    def plays(self, update: int) -> bool:
        return super().plays(update) and self.codes.fidelity(update) is not None
