"""The command line: python -m data.prepare COMMAND key=value …"""

import sys

from data.prepare import align, check, filtering, pack, resize
from data.prepare.arguments import Command, main

COMMANDS: dict[str, Command] = {
    "align": align.align,
    "check": check.check,
    "filter": filtering.filter_faces,
    "pack": pack.pack,
    "resize": resize.resize,
}

if __name__ == "__main__":
    sys.exit(main(COMMANDS, sys.argv[1:]))
