"""Numbers that commands take on their command lines."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

# Of a prompt: the question at its end has so many.
LEAST_TOKENS = 8
# numpy's generator takes seeds below this.
_SEEDS = 2**32


def above(least: float, kind: type[int] | type[float], most: float = math.inf) -> Callable[[str], float]:
    """A type for argparse: numbers above one bound and below another."""

    def number(text: str) -> float:
        value = kind(text)
        if not least < value < most:
            under = "" if most == math.inf else f" and below {most:g}"
            raise argparse.ArgumentTypeError(f"{text} is not above {least:g}{under}")
        return value

    return number


seed = above(-1, int, _SEEDS)
