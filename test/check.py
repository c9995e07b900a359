"""What tests in Python share: checks that count, and the last line "N passed, M failed". Those in shell have check.sh.

    check(number == 3, "three are read", number)
    end()
"""
import sys

counts = {True: 0, False: 0}


def check(condition, what, found=""):
    """Counts a check and returns its condition; one that fails is printed, with what was found."""
    counts[bool(condition)] += 1
    if not condition:
        print(f"failed: {what}{': ' if found != '' else ''}{found}")
    return condition


def end():
    print(f"{counts[True]} passed, {counts[False]} failed")
    sys.exit(1 if counts[False] else 0)
