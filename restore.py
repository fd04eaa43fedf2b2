"""Restore images with a trained network: python restore.py ckpt=runs/NAME input=DIR output=DIR   (--help lists all keys)"""

from console import printing_never_fails
from restoration.run import main

if __name__ == "__main__":
    printing_never_fails()
    main()
