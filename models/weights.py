"""The command `python -m models.weights`; what it does: models/files/weights.py."""

from models.files.weights import main

if __name__ == "__main__":
    main()
