"""Runs the slow tests file by file while there is time: python .ci/slow.py SECONDS, those that .ci/run has taken so far.

Whoever runs CI may clone afresh each time, not even with the history, so no record says what ran when. The hour says which file
comes first: what there was no time for in one run comes early in others.
"""

import subprocess
import sys
import time

START_S = 50 * 60  # no file is begun later than this
END_S = 75 * 60  # a file that still runs then is stopped, and named as left out
HANGS_S = 40 * 60  # of one file: the longest takes 6 minutes on quiet cores, and busy ones may be five times slower


def files() -> list[str]:
    """Those with slow tests, in the order in which they are to run."""
    collect = ["pytest", "-m", "slow", "--collect-only", "-q", "-n", "0"]
    listing = subprocess.run(collect, stdout=subprocess.PIPE, text=True, check=True)
    found = sorted({line.partition("::")[0] for line in listing.stdout.splitlines() if "::" in line})
    first = int(time.time() / 3600) % len(found)
    return found[first:] + found[:first]


def main() -> None:
    began = time.monotonic() - float(sys.argv[1])
    failed, left_out = [], []
    for file in files():
        passed = time.monotonic() - began
        if passed > START_S:
            left_out.append(file)
            continue
        print(f"slow tests of {file}, {passed / 60:.0f} min after the start", flush=True)
        limit_s = min(HANGS_S, END_S - passed)
        # INT: pytest names the test that it is at, and stops what its fixtures started; -x: no failure is lost by that
        limit = ["timeout", "--signal=INT", "--kill-after=30", f"{limit_s:.0f}"]
        code = subprocess.run([*limit, "pytest", "-x", "-m", "slow", "-n", "0", file]).returncode
        stopped = code in (124, 137)  # by timeout
        if stopped and limit_s < HANGS_S:
            left_out.append(f"{file} (stopped on its way)")
        elif code:
            failed.append(f"{file} ({f'still running after {HANGS_S} s' if stopped else f'exit code {code}'})")
    print(f"slow tests left out for lack of time: {', '.join(left_out) or 'none'}")
    if failed:
        sys.exit(f"slow tests failed: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
