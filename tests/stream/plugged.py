"""sounddevice for the command's own processes: the input devices that a file lists, all of them silent.

Like PortAudio it lists them once, when it is loaded into a process.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np

from tests.stream.fake_portaudio import FakePortAudio, FakeStream, device

_FILE = "TELME_TEST_PLUGGED"
_ROOT = Path(__file__).parents[2]
_MODULE = "import sys\nfrom tests.stream.plugged import Plugged\nsys.modules[__name__] = Plugged()\n"


class SilentStream(FakeStream):
    """Gives 30 ms of silence after the other."""

    def start(self) -> None:
        Thread(target=self._play, daemon=True).start()

    def _play(self) -> None:
        while not self.closed:
            self.hear(np.zeros(480, np.int16))
            Event().wait(0.03)


class Plugged(FakePortAudio):
    """As the module sounddevice; the first device is the default one."""

    def __init__(self) -> None:
        names = json.loads(Path(os.environ[_FILE]).read_text(encoding="utf-8"))
        super().__init__([device(name) for name in names])

    def RawInputStream(self, **settings: Any) -> FakeStream:
        return SilentStream(settings)


class Sockets:
    """Where the test plugs microphones in and pulls them.

    Args:
        folder: Of its own.
    """

    def __init__(self, folder: Path) -> None:
        (folder / "sounddevice.py").write_text(_MODULE, encoding="utf-8")
        self._folder = folder
        self._file = folder / "plugged.json"

    @property
    def environment(self) -> Mapping[str, str]:
        """Of a command that is to find them."""
        path = os.pathsep.join([str(self._folder), str(_ROOT)])
        kept = {name: value for name, value in os.environ.items() if name != "XDG_RUNTIME_DIR"}
        return kept | {"PYTHONPATH": path, _FILE: str(self._file)}

    def hold(self, names: Sequence[str]) -> None:
        """From now on these are there, in this order."""
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(names), encoding="utf-8")
        new.replace(self._file)
