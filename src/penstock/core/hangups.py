"""Tenants whose callers always hang up before an answer could be ready, and what they may take from others.

Such a call fills a replica's time with work for nobody, and a place in the queue that another would use. Where others
have to wait it is therefore refused at the door, but for one try in a hundred starts' time: so the tenant costs others
some one percent, and the first of its callers who waits longer than was believed makes it like any other. While nobody
else has to wait nothing is held against it: work for the impatient may fill what would have been idle.

Known here is a tenant of whom `RUN` callers in a row left in less time than a start takes, or were refused because they
would not wait for the start before theirs and their own. That also ends the lockout of a tenant that others leave no
spare time in which to be tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from penstock.core.request import Request

RUN = 30
SHARE = 0.01  # of a station's time, for tries
_TENANTS = 1024
_NEVER = (-math.inf, 0)


class HangUps:
    """Of one service. `start_seconds` says what a start takes; `waited` is who last had to wait, and who before that one.

    Only tenants that were not known here then count, and none of them for itself: alone, a tenant takes from nobody.
    """

    __slots__ = ("before", "runs", "start_seconds", "tenants", "tried", "waited")

    def __init__(self, start_seconds: Callable[[], float]) -> None:
        self.start_seconds = start_seconds
        self.runs: dict[str, int] = {}
        self.tenants: dict[str, None] = {}  # those known
        self.tried: dict[str, tuple[float, int]] = {}  # when, and the call's `seq`
        self.waited = self.before = ("", -math.inf)

    def left(self, tenant: str, age: float) -> None:
        """A caller left at this age."""
        if age < self.start_seconds():
            self._run(tenant)
        else:
            self._patient(tenant)

    def refused(self, tenant: str, patience: float) -> None:
        """A call was refused, whose callers are believed to wait so long."""
        if patience < 2 * self.start_seconds():
            self._run(tenant)

    def answered(self, tenant: str, age: float, patience: float) -> bool:
        """A caller had its answer at this age; True if it was one of those tried, and waited longer than was believed."""
        known = tenant in self.tenants
        self._patient(tenant)
        return known and age > patience and self.tried.pop(tenant, None) is not None

    def _run(self, tenant: str) -> None:
        run = self.runs.pop(tenant, 0) + 1
        if len(self.runs) >= _TENANTS:
            oldest = next(iter(self.runs))
            self._patient(oldest)
            self.tried.pop(oldest, None)
        self.runs[tenant] = run
        if run >= RUN:
            self.tenants[tenant] = None

    def _patient(self, tenant: str) -> None:
        self.runs.pop(tenant, None)
        self.tenants.pop(tenant, None)

    def refuses(self, request: Request, now: float, servers: int, waits: bool) -> float:
        """For how long this tenant's calls are to be refused; 0 if this one may come. `waits`: it cannot start at once."""
        tenant = request.tenant
        if tenant not in self.tenants:
            if waits:
                if tenant != self.waited[0]:
                    self.before = self.waited
                self.waited = tenant, now
            return 0.0
        spell = self.start_seconds() / SHARE
        _, at = self.before if self.waited[0] == tenant else self.waited
        if now >= at + spell:
            return 0.0
        again = self.tried.get(tenant, _NEVER)[0] + spell / servers
        if now < again:
            return again - now
        if len(self.tried) >= _TENANTS:
            del self.tried[next(iter(self.tried))]
        self.tried[tenant] = now, request.seq
        return 0.0

    def tries(self, request: Request) -> bool:
        """Whether this call was let in to see if its tenant still hangs up: then no other belief stops it."""
        return bool(self.tried) and self.tried.get(request.tenant, _NEVER)[1] == request.seq
