"""The command `python -m train.stages`; what it does: train/jobs/stages.py."""

from train.console import printing_never_fails
from train.jobs.stages import main

if __name__ == "__main__":
    printing_never_fails()
    main()
