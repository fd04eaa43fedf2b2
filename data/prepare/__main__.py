"""The command line: python -m data.prepare COMMAND key=value …"""

import sys

from hydra.utils import get_method, get_object

from data.prepare import align, check, codes, components, filtering, latents, pack, resize
from data.prepare.jobs.arguments import Command, main


def networks() -> codes.Networks:
    """Known here by name alone, as in conf/; imported when a command asks."""
    return codes.Networks(get_method("models.files.official.build"), get_method("models.files.fingerprints.codebook_digest"))


def autoencoder() -> latents.Networks:
    names = (
        "models.diffusion.stable_diffusion.load_autoencoder",
        "models.files.fingerprints.digest_of",
        "models.files.first_stage.FirstStage",
    )
    return latents.Networks(*(get_object(name) for name in names))


COMMANDS: dict[str, Command] = {
    "align": align.align,
    "check": check.check,
    "codes": codes.command(networks),
    "filter": filtering.filter_faces,
    "landmarks": components.landmarks,
    "latents": latents.command(autoencoder),
    "pack": pack.pack,
    "resize": resize.resize,
}

if __name__ == "__main__":
    sys.exit(main(COMMANDS, sys.argv[1:]))
