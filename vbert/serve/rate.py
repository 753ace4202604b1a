"""Rates: how many requests an address may send, as tokens that grow back."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable

from vbert.serve.limits import ADDRESSES


class Rates:
    """A bucket of `rate` tokens an address, refilled at `rate` a minute; addresses that were longest silent go first
    where there are too many. An IPv6 network of 64 bits, which one host may have whole, is one address."""

    def __init__(self, rate: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._clock = rate, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, and when they were counted

    def take(self, address: str) -> float:
        """Takes a token. 0.0, or the seconds until there will be one."""
        now, who = self._clock(), _network(address)
        tokens, then = self._buckets.pop(who, (float(self._rate), now))
        tokens = min(float(self._rate), tokens + (now - then) * self._rate / 60)
        enough = tokens >= 1
        self._buckets[who] = (tokens - enough, now)
        if len(self._buckets) > ADDRESSES:
            self._buckets.popitem(last=False)
        return 0.0 if enough else (1 - tokens) * 60 / self._rate

    def __len__(self) -> int:
        return len(self._buckets)


def _network(address: str) -> str:
    try:
        one = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(ipaddress.ip_network((one, 64), strict=False)) if one.version == 6 else address
