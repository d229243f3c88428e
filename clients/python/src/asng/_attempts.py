"""Decides which controller is asked, and when again after a failure. It neither calls nor sleeps."""

from __future__ import annotations

import math
import random
import time

import grpc

from asng._errors import Error, Failure
from asng._options import Options, Place, log

# All in seconds. For a call and its answer.
REQUEST_TIMEOUT = 30.0
# For calls outside a loop, until a controller answers; within a loop there is no end.
PATIENCE = 30.0
# For giving a step back.
FAREWELL = 5.0


class Places:
    """Which controller is asked: with several addresses the one that answered last, and when it fails the next one; where a
    controller names another as the owner of a study, that one."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._list = list(options.places)
        self.current = self._list[0]

    def __len__(self) -> int:
        return len(self._list)

    def leave(self, place: Place, failure: Failure) -> None:
        """Turns from a place that fails, unless another call has done so."""
        owner = self._owner(place, failure.owner)
        if owner:
            if owner not in self._list:
                # One at most, or an address that is new each time would let the list grow for ever.
                self._list[len(self._options.places) :] = [owner]
            self.current = owner
        elif self.current == place:
            self.current = self._list[(self._list.index(place) + 1) % len(self._list)]

    def _owner(self, place: Place, address: str | None) -> Place | None:
        """Where the controller at `place` says that the owner is: a URL, or host:port."""
        if not address:
            return None
        scheme = "" if "://" in address else "https://" if place.tls else "http://"
        try:
            owner = self._options.place(scheme + address)
        except Error as error:
            log.warning("not followed to an owner: %s", error)
            return None
        if place.tls and not owner.tls:
            log.warning("not followed to an owner without TLS: %s", owner.url)
            return None
        return owner


class Attempts:
    """How often a call is tried: until there is an answer, with growing pauses of random length, or longer ones if the
    controller asks for them. An answer may be an error, one that another try would not mend."""

    def __init__(self, places: Places, *, for_ever: bool) -> None:
        self._places = places
        self._end = math.inf if for_ever else time.monotonic() + PATIENCE
        self._pause = 0.05
        self._hops = 0

    def failed(self, place: Place, error: grpc.RpcError) -> float:
        """Returns in how many seconds to try again, or raises what the caller is to get."""
        failure = Failure(error, place)
        if not failure.is_transient:
            raise failure.exception() from error
        if failure.code is not grpc.StatusCode.RESOURCE_EXHAUSTED:
            self._places.leave(place, failure)
            self._hops += 1
            # Another address is tried at once.
            if self._places.current != place and self._hops < len(self._places):
                return 0
        self._hops = 0
        pause = max(self._pause * random.uniform(1, 2), failure.asked_pause)
        self._pause = min(2 * self._pause, 5)
        if time.monotonic() + pause > self._end:
            raise failure.exception() from error
        log.warning(
            "%s does not answer; trying again in %.1f s: %s", place.url, pause, failure.message
        )
        return pause
