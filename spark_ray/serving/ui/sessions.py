"""Who is logged in: keys in this process's memory, each known to its visitor's browser by a cookie.

The cookie is a random number. The key itself goes to the browser never again, and to no disk.
"""

import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass

COOKIE = "sparkray_session"


@dataclass
class Session:
    """A visitor. `name` and `scopes` are the key's; `used` is when it last asked for something."""

    key: str
    name: str
    scopes: frozenset[str]
    used: float

    def may(self, scope: str) -> bool:
        return scope in self.scopes or "admin" in self.scopes


class Sessions:
    """A bounded number of them; when there are more, the one that was idle longest is ended."""

    def __init__(self, lifetime_s: float, most: int) -> None:
        self._lifetime_s, self._most = lifetime_s, most
        self._sessions: OrderedDict[str, Session] = OrderedDict()

    def begin(self, key: str, name: str, scopes: frozenset[str]) -> str:
        """Log in; the cookie's value."""
        token = secrets.token_urlsafe(32)
        self._sessions[token] = Session(key, name, scopes, time.monotonic())
        while len(self._sessions) > self._most:
            self._sessions.popitem(last=False)
        return token

    def get(self, token: str | None) -> Session | None:
        """The session of a cookie; None where it has ended."""
        session = self._sessions.get(token or "")
        if session is None or token is None:
            return None
        now = time.monotonic()
        if now - session.used > self._lifetime_s:
            self.end(token)
            return None
        session.used = now
        self._sessions.move_to_end(token)
        return session

    def end(self, token: str | None) -> None:
        self._sessions.pop(token or "", None)
