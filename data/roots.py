"""What a run trains and validates on: roots opened, images paired with their targets, and some held out."""

from collections.abc import Callable
from typing import Annotated

from annotated_types import Ge

from data.pairs import targets_of
from data.reading import Images
from data.sources.source import Graded, Source


class Roots:
    """Where the images of a run lie.

    Args:    root: folder (or what source takes) of the training images; None asks the user for it.
             val_root: of the validation images; None holds out the last val_images of root.
             paired: the HQ of each image is given, as the target of the same name (data/pairs.py); False: an image is its own.
             target_root, val_target_root: of the targets.
             val_images: images held out where there is no val_root.
             first: train on so many images, the first of root in its order; None: on all that are not held out.
             source: makes a Source of a root; one that brings targets (data.sources.source.Graded) needs no target_root.
             expects: one sentence for the message when a root is missing: which folder it should be, and where it comes from.
    Raises:  ValueError: a root is missing, wrong or empty, or nothing is left to train on.
    """

    def __init__(
        self,
        *,
        root: str | None,
        val_root: str | None,
        paired: bool,
        target_root: str | None,
        val_target_root: str | None,
        val_images: Annotated[int, Ge(1)],
        first: Annotated[int, Ge(1)] | None,
        source: Callable[..., Source],
        expects: str,
    ) -> None:
        if root is None:
            raise ValueError(f"data.root is not set: {expects} Give it as data.root=DIR")
        self.make_source, self.expects, self.paired = source, expects, paired
        self.root, self.target_root = root, target_root
        self.val_root, self.val_target_root, self.val_images = val_root, val_target_root, val_images
        self.first = first

    def images(self) -> tuple[Images, Images, Images]:
        """All images of root, those of them to train on, and those to validate on. Raises ValueError, see the class."""
        whole = self._images("data.root", self.root, "data.target_root", self.target_root)
        if self.val_root is None:
            training, validation = held_out(self.root, whole, self.val_images)
        else:
            training = whole
            validation = self._images("data.val_root", self.val_root, "data.val_target_root", self.val_target_root)
        return whole, self._first(training), validation

    def open(self, key: str, root: str) -> Source:
        """The images of a root. Raises ValueError, which names the key."""
        try:
            return self.make_source(root=root)
        except ValueError as error:
            raise ValueError(f"{key}: {error}. {self.expects}") from error

    def _first(self, training: Images) -> Images:
        """The first of them, as far as first asks. Raises ValueError: there are fewer."""
        count = len(training.source)
        if self.first is None or self.first == count:
            return training
        if self.first > count:
            raise ValueError(
                f"data.first={self.first}, and data.root={self.root} holds {count} images to train on: give more images, "
                f"or set data.first=null to train on all of them"
            )
        return training.part(0, self.first)

    def _images(self, key: str, root: str, target_key: str, target_root: str | None) -> Images:
        if self.paired and target_root is None:
            raise ValueError(f"{target_key} is not set: {self.expects} Give it as {target_key}=DIR")
        if target_root is not None and not self.paired:
            raise ValueError(f"{target_key}={target_root} is for paired images: choose data=pairs or data=ffhqr")
        source = self.open(key, root)
        if target_root is None:
            return Images(source, *((source.targets, source.negatives) if isinstance(source, Graded) else (None, None)))
        if isinstance(source, Graded):
            raise ValueError(f"{target_key}={target_root}: {key}={root} brings targets of its own: leave one out")
        return Images(source, targets_of(source, self.open(target_key, target_root), f"{target_key}={target_root}"), None)


def held_out(root: str, images: Images, val_images: int) -> tuple[Images, Images]:
    """All but the last val_images, and these."""
    count = len(images.source)
    kept = count - val_images
    if kept < 1:
        raise ValueError(
            f"data.val_images={val_images} leaves nothing to train on: data.root={root} holds {count} images; "
            f"hold out {count - 1} at most, or give data.val_root=DIR"
        )
    return images.part(0, kept), images.part(kept, count)
