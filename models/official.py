"""The command `python -m models.official`; what it does: models/files/official.py."""

from models.files.official import main

if __name__ == "__main__":
    main()
