"""The command `python -m models.weights`; what it does: models/files/weights.py."""

from console import printing_never_fails
from models.files.weights import main

if __name__ == "__main__":
    printing_never_fails()
    main()
