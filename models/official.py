"""The command `python -m models.official`; what it does: models/files/official.py."""

from console import printing_never_fails
from models.files.official import main

if __name__ == "__main__":
    printing_never_fails()
    main()
