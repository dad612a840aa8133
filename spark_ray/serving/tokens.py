"""JSON Web Tokens of an identity provider (OpenID Connect), in place of API keys.

A token is taken for what RFC 7519 and RFC 8725 say it must be: signed, with an algorithm of public
keys that the operator named, by a key of the provider's set, for this audience, and not out of
date. Whose it is stands in `sub`; what it may do, in a claim that the operator maps to scopes.
"""

import hashlib
import threading
import time
from typing import Annotated, Any, Literal

import httpx2 as httpx
import jwt
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from spark_ray.core.errors import StorageError
from spark_ray.core.logging import get_logger
from spark_ray.core.storage import read_bytes
from spark_ray.serving.database import Database
from spark_ray.serving.errors import ApiError
from spark_ray.serving.keys import Caller, Scope

log = get_logger(__name__)

# None of a shared secret: who could check such a token could make one.
Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]

_REMEMBERED_S = 5.0
_MOST_REMEMBERED = 10_000
_MOST_TOKEN_CHARS = 16 << 10
_MOST_KEY_SET_BYTES = 256 << 10
_FETCH_TIMEOUT_S = 10.0
_FETCH_AGAIN_S = 30.0
_MOST_STALE_S = 86_400.0
_LOCAL = ("http://127.0.0.1", "http://localhost", "http://[::1]")


class TokenSettings(BaseModel):
    """Whose tokens are taken, and for what."""

    model_config = ConfigDict(extra="forbid")

    issuer: Annotated[str, Field(min_length=1)] = Field(description="what `iss` must be")
    audience: Annotated[str, Field(min_length=1)] = Field(description="what `aud` must hold")
    jwks_url: str | None = Field(None, description="https:// address of the provider's keys")
    jwks_file: str | None = Field(None, description="the keys as a file, instead of jwks_url")
    algorithms: list[Algorithm] = Field(["RS256"], min_length=1)
    scopes_claim: Annotated[str, Field(min_length=1)] = Field(
        "scope",
        description="claim that lists what its holder may; dots lead into it (realm_access.roles)",
    )
    scopes: dict[str, Scope] = Field(
        default_factory=lambda: {f"sparkray:{scope}": scope for scope in ("infer", "jobs")},
        description="entries of that claim, and the scope that each gives",
    )
    requests_per_minute: int = Field(600, ge=1, description="of each holder")
    max_concurrent: int = Field(32, ge=1, description="requests of each holder at a time")
    leeway_s: float = Field(30.0, ge=0, le=300, description="by which clocks may differ")
    jwks_lifetime_s: float = Field(
        3600.0,
        ge=60,
        description="time after which the provider's keys are read again",
    )

    @field_validator("jwks_url")
    @classmethod
    def _encrypted(cls, url: str | None) -> str | None:
        local = url is not None and any(url.startswith((f"{own}:", f"{own}/")) for own in _LOCAL)
        if url is not None and not local and not url.startswith("https://"):
            raise ValueError("give an https:// address: who answers there decides who gets in")
        return url

    @model_validator(mode="after")
    def _one_source(self) -> "TokenSettings":
        if (self.jwks_url is None) == (self.jwks_file is None):
            raise ValueError("tokens: give the provider's keys once, as jwks_url or as jwks_file")
        return self


class TokenVerifier:
    """Tokens to callers. It answers as a `KeyStore` does."""

    def __init__(self, settings: TokenSettings, database: Database) -> None:
        self._settings, self._database = settings, database
        self._keys = _KeySet(settings)
        self._remembered: dict[str, tuple[float, Caller | None]] = {}
        self._seen: set[str] = set()

    def caller(self, token: str) -> Caller | None:
        """Whose token this is; None for one that is not to be taken.

        Raises:
            ApiError: the provider's keys can't be read, so nobody can tell.
        """
        claims = self._claims(token)
        caller = None if claims is None else self._caller(claims)
        until = time.time() + _REMEMBERED_S
        if claims is not None:
            until = min(until, float(claims["exp"]) + self._settings.leeway_s)
        if len(self._remembered) >= _MOST_REMEMBERED:
            self._remembered.clear()
        self._remembered[_hash(token)] = (until, caller)
        if caller is not None and claims is not None and caller.id not in self._seen:
            # From the id, which jobs and assets are kept under, to the person at the provider.
            self._database.audit("token.accept", key=caller.id, subject=str(claims["sub"])[:200])
            if len(self._seen) >= _MOST_REMEMBERED:
                self._seen.clear()
            self._seen.add(caller.id)
        return caller

    def remembered(self, token: str) -> tuple[Caller | None] | None:
        """What `caller` answered within the last 5 s; None where it has to be asked."""
        until, caller = self._remembered.get(_hash(token), (0.0, None))
        return (caller,) if until > time.time() else None

    def _claims(self, token: str) -> dict[str, Any] | None:
        if len(token) > _MOST_TOKEN_CHARS:
            return None
        try:
            key = self._keys.find(jwt.get_unverified_header(token).get("kid"))
            if key is None:
                return None
            return jwt.decode(
                token,
                key,
                algorithms=list(self._settings.algorithms),
                audience=self._settings.audience,
                issuer=self._settings.issuer,
                leeway=self._settings.leeway_s,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.PyJWTError as error:
            log.info("token refused", reason=type(error).__name__)
            return None

    def _caller(self, claims: dict[str, Any]) -> Caller:
        settings = self._settings
        subject = str(claims["sub"])
        name = claims.get("preferred_username") or claims.get("email") or subject
        granted = {settings.scopes[e] for e in _entries(claims, settings.scopes_claim)
                   if e in settings.scopes}  # fmt: skip
        return Caller(
            # Of the issuer too, so that another provider's holder of that name is somebody else.
            id=f"sub-{_hash(f'{settings.issuer} {subject}')[:28]}",
            name=str(name)[:100],
            scopes=frozenset(granted),
            requests_per_minute=settings.requests_per_minute,
            max_concurrent=settings.max_concurrent,
        )


class _KeySet:
    """The provider's public keys, read when they are first needed and again after a while.

    A key that isn't among them may be new, so they are read again for it, though not at every
    request: anybody can send a token with a key's name that there never was. Nor does anyone wait
    for another's reading of them: a token of a known key is checked with what is there.
    """

    def __init__(self, settings: TokenSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._keys: list[jwt.PyJWK] = []
        self._read = self._tried = float("-inf")
        self._is_reading = False

    def find(self, name: object) -> jwt.PyJWK | None:
        """The key of that name; without a name, the only one.

        Raises:
            ApiError: they can't be read, and there are none from before that could be used; or it
                is not among them, and they are just being read.
        """
        now = time.monotonic()
        is_old = now - self._read > self._settings.jwks_lifetime_s
        if (is_old or self._held(name) is None) and self._may_read_again(now):
            self._read_again(now)
        is_being_read = self._is_reading  # before one looks: a key may come with what is read
        key = self._held(name)
        if key is None and is_being_read:
            raise _unavailable("are just being read; try again", 1.0)
        if not self._keys or now - self._read > self._settings.jwks_lifetime_s + _MOST_STALE_S:
            raise _unavailable("can't be read, so no token can be checked", _FETCH_AGAIN_S)
        return key

    def _may_read_again(self, now: float) -> bool:
        """Whether this thread is to do it: one at a time, and none too soon after another."""
        with self._lock:
            if self._is_reading or now - self._tried <= _FETCH_AGAIN_S:
                return False
            self._is_reading, self._tried = True, now
            return True

    def _held(self, name: object) -> jwt.PyJWK | None:
        if name is None:
            return self._keys[0] if len(self._keys) == 1 else None
        return next((key for key in self._keys if key.key_id == name), None)

    def _read_again(self, now: float) -> None:
        try:
            keys = jwt.PyJWKSet.from_json(self._data().decode()).keys
            self._keys, self._read = keys, now
        except (httpx.HTTPError, StorageError, ValueError, jwt.PyJWTError) as error:
            log.error("the identity provider's keys can't be read", error=str(error))
        finally:
            self._is_reading = False

    def _data(self) -> bytes:
        if self._settings.jwks_file is not None:
            return read_bytes(self._settings.jwks_file, _MOST_KEY_SET_BYTES)
        assert self._settings.jwks_url is not None
        data = b""
        end = time.monotonic() + _FETCH_TIMEOUT_S
        with httpx.stream(
            "GET", self._settings.jwks_url, timeout=_FETCH_TIMEOUT_S, follow_redirects=False
        ) as answer:
            if answer.status_code != 200:
                raise ValueError(f"it answered with status {answer.status_code}")
            for chunk in answer.iter_bytes():
                data += chunk
                if len(data) > _MOST_KEY_SET_BYTES:
                    raise ValueError(f"it sent more than {_MOST_KEY_SET_BYTES} bytes")
                if time.monotonic() > end:
                    raise ValueError(f"it took more than {_FETCH_TIMEOUT_S:g} s")
        return data


def _unavailable(why: str, again_s: float) -> ApiError:
    return ApiError(
        503,
        "identity_provider_unavailable",
        f"the identity provider's keys {why}",
        retry_after_s=again_s,
    )


def _entries(claims: dict[str, Any], path: str) -> list[str]:
    """What a claim lists, as a list or as words in a text; nothing where it is neither."""
    found: Any = claims.get(path)
    if found is None:
        found = claims
        for part in path.split("."):
            found = found.get(part) if isinstance(found, dict) else None
    if isinstance(found, str):
        return found.split()
    return [entry for entry in found if isinstance(entry, str)] if isinstance(found, list) else []


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
