"""Restore images: python restore.py runs/NAME PHOTO_OR_FOLDER [OUTPUT]   (--help lists pipelines and keys)"""

from restoration.cli import main
from train.console import printing_never_fails

if __name__ == "__main__":
    printing_never_fails()
    main()
