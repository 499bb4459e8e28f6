"""The entry point, before the command itself is loaded."""

from __future__ import annotations

import signal
import subprocess
import sys

DEADLINE_S = 60
# Sends itself a signal while `stream.cli` is loaded.
_PROGRAM = """
import os, sys
from stream.__main__ import main

class Signalling:
    def find_spec(self, name, path=None, target=None):
        if name == "stream.cli":
            os.kill(os.getpid(), int(sys.argv.pop(1)))

sys.meta_path.insert(0, Signalling())
main()
"""


def start_with(number: signal.Signals) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _PROGRAM, str(int(number)), "--version"]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)


def test_ctrl_c_while_it_loads_is_no_traceback() -> None:
    done = start_with(signal.SIGINT)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_a_word_to_those_that_listen_ends_no_other() -> None:
    done = start_with(signal.SIGUSR1)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("telme-stream 0.")


# A library that swallows an interrupt while it is imported, and then fails.
_SWALLOWING = """
import os, signal, sys
from stream import cli
from stream.__main__ import main

def swallow():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        signal.sigtimedwait([], 5)
    except KeyboardInterrupt:
        pass
    raise AttributeError("half imported")

cli.main = swallow
main()
"""


def test_an_interrupt_that_an_import_swallowed_is_no_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SWALLOWING], capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
