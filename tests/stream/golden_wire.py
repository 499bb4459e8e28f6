"""Writes tests/golden/wire-<protocol>/: `python -m tests.stream.golden_wire`, for a new protocol number only.

The bytes of a protocol never change. When a change in stream/wire.py breaks them, raise `PROTOCOL`.
"""

from __future__ import annotations

from pathlib import Path

from stream import bus, wire
from tests.stream.samples import EVENTS, MESSAGES, event_json

GOLDEN = Path(__file__).parents[1] / "golden" / f"wire-{wire.PROTOCOL}"


def golden_files() -> dict[str, bytes]:
    """Every file by name: `<message>-<number>.<frame>.bin`, `event-<type>.json`."""
    files = {}
    for number, (message, media) in enumerate(MESSAGES):
        name = type(message).__name__.lower()
        for place, frame in enumerate(wire.encode(message, media)):
            files[f"{number:02d}-{name}.{place}.bin"] = bytes(frame)
    for data in EVENTS:
        files[f"event-{bus.EVENT_TYPES[type(data)]}.json"] = event_json(data)
    return files


if __name__ == "__main__":
    GOLDEN.mkdir(parents=True)  # fails where they exist: golden bytes are never written over
    for name, content in golden_files().items():
        (GOLDEN / name).write_bytes(content)
