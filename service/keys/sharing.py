"""Rates of API keys over all replicas: each tells a store what it let in, and hears what the others did.

A request is let in by what its replica knows, and never waits for the store. So replicas that have not heard of each
other may let in a burst each; as a bucket can owe, that is paid back, and over time the rate is the key's.
"""

from __future__ import annotations

import logging
import threading

from service.errors import ServiceError
from service.keys.keyring import Keyring
from service.sessions.session import Store

log = logging.getLogger(__name__)

PERIOD_S = 0.5  # at 1,000 keys that are in use a round takes 80 ms, half of it on the CPU


class Sharing:
    """A thread that shares what keys use. Where the store does not answer, each replica counts for itself."""

    def __init__(self, keys: Keyring, store: Store) -> None:
        self._keys, self._store, self._alone = keys, store, False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._share_often, name="quotas", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Share nothing more."""
        self._closing.set()
        self._thread.join()

    def _share_often(self) -> None:
        while not self._closing.wait(PERIOD_S):
            try:
                for usage in self._keys.usages():
                    usage.share(self._store.spent)
            except ServiceError as error:
                for usage in self._keys.usages():
                    usage.keep_untold()
                if not self._alone:
                    log.warning("quotas are counted by this replica alone: %s", error.detail)
                self._alone = True
            else:
                self._alone = False
