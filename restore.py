"""Restore images with a trained network: python restore.py ckpt=runs/NAME input=DIR output=DIR   (--help lists all keys)"""

from restoration.run import main

if __name__ == "__main__":
    main()
