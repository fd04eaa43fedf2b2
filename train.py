"""Train a restoration network: python train.py model=swinir_ffhq data.root=DIR   (python train.py --help lists everything)"""

from train.console import printing_never_fails
from train.jobs.cli import main

if __name__ == "__main__":
    printing_never_fails()
    main()
