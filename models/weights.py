"""The command `python -m models.weights`; what it does: models/files/weights.py."""

from models.files.weights import main
from train.console import printing_never_fails

if __name__ == "__main__":
    printing_never_fails()
    main()
