"""For Python programs that want the events.

A whole subscriber:

    from stream.client import subscribe

    for event in subscribe("tcp://127.0.0.1:5556", types=["emotion"]):
        print(event.payload().label, event.payload().text)
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence

from stream.bus import EVENT_DATA, Event
from stream.link import Subscriber
from telme.errors import UsageError

_log = logging.getLogger(__name__)

_POLL_MS = 500
_SILENT_POLLS = 5000 // _POLL_MS  # a worker says each second that it lives


def subscribe(address: str, types: Sequence[str] = ()) -> Generator[Event, None, None]:
    """Events as they come, for ever; repeated ones are left out.

    Without `types`, that no worker is heard is a warning in the log.

    Args:
        address: Where a worker publishes.
        types: Event types wanted; none means all.

    Raises:
        UsageError: A type is unknown.
        LinkError: The address is not one.
        WireError: What came is not an event of this schema.
    """
    unknown = set(types) - set(EVENT_DATA)
    if unknown:
        raise UsageError(
            f"event type {', '.join(sorted(unknown))}", f"some of {', '.join(EVENT_DATA)}", "check the types"
        )
    last: dict[str, int] = {}  # number of the last event, by what of their ids a worker's journal has in common
    silent = 0
    with Subscriber(address, types) as subscriber:
        while True:
            received = subscriber.receive(_POLL_MS)
            silent = silent + 1 if received is None else 0
            if silent == _SILENT_POLLS and not types:
                _log.warning(
                    "nothing for %d s from %s; expected a worker's heartbeat", silent * _POLL_MS // 1000, address
                )
            if received is None:
                continue
            event = received[0]
            if event.is_stored():
                journal = event.id.removesuffix(f"-{event.seq}")
                if event.seq <= last.get(journal, 0):
                    continue
                last[journal] = event.seq
            yield event
