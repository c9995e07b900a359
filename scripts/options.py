"""Values of command line options, for argparse."""
import argparse


def whole(least, most):
    """A parser of whole numbers from least to most."""
    def parse(text):
        if not (text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most):
            raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from {least} to {most}")
        return int(text)
    return parse
