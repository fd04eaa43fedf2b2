"""The command line: python -m data.prepare COMMAND key=value …"""

import sys

from data.prepare import align, check, codes, components, filtering, latents, pack, resize
from data.prepare.jobs.arguments import Command, main
from train.console import printing_never_fails


def codebook_networks() -> codes.Networks:
    """What `codes` needs of models/, imported only when that command runs."""
    from models.files import fingerprints, official

    return codes.Networks(official.build, fingerprints.codebook_digest)  # type: ignore[arg-type]  # codes checks which network it is


def latent_networks() -> latents.Networks:
    """What `latents` needs of models/, imported only when that command runs, as diffusers takes seconds."""
    from models.diffusion.stable_diffusion import load_autoencoder
    from models.files.fingerprints import digest_of
    from models.files.first_stage import FirstStage

    return latents.Networks(load_autoencoder, digest_of, FirstStage)


COMMANDS: dict[str, Command] = {
    "align": align.align,
    "check": check.check,
    "codes": codes.command(codebook_networks),
    "filter": filtering.filter_faces,
    "landmarks": components.landmarks,
    "latents": latents.command(latent_networks),
    "pack": pack.pack,
    "resize": resize.resize,
}

if __name__ == "__main__":
    printing_never_fails()
    sys.exit(main(COMMANDS, sys.argv[1:]))
