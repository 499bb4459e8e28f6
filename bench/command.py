"""How a measurement is run from the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping

from telme.errors import TelmeStreamError


def measured(name: str, measure: Callable[[], Mapping[str, object]], as_json: bool) -> int:
    """Run a measurement; its figures as a last line of JSON where wanted, an error as one line.

    Returns:
        The exit code.
    """
    try:
        figures = measure()
    except TelmeStreamError as error:
        sys.stderr.write(f"{name}: error: {error}\n")
        return error.exit_code
    if as_json:
        print(json.dumps(figures))
    return 0
