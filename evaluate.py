"""Score restored images: python evaluate.py outputs=DIR hq=DIR protocol=paired   (--help lists protocols and keys)"""

from evaluation.cli import main
from train.console import printing_never_fails

if __name__ == "__main__":
    printing_never_fails()
    main()
