"""The command `python -m models.official`; what it does: models/files/official.py."""

from models.files.official import main
from train.console import printing_never_fails

if __name__ == "__main__":
    printing_never_fails()
    main()
