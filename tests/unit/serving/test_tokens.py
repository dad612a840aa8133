"""Tokens of an identity provider: real keys, and a real server that hands out the public ones."""

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from sqlalchemy import select

from spark_ray.core.errors import ConfigError
from spark_ray.serving import tokens as tokens_module
from spark_ray.serving.database import AuditEntry, Database
from spark_ray.serving.errors import ApiError
from spark_ray.serving.settings import ServeSettings
from spark_ray.serving.tokens import TokenSettings, TokenVerifier

ISSUER, AUDIENCE = "https://login.example", "sparkray"
KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def jwk(key: rsa.RSAPrivateKey, name: str) -> dict[str, Any]:
    public = jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return {**public, "kid": name, "use": "sig", "alg": "RS256"}


class Provider(ThreadingHTTPServer):
    """Hands out `body`, and counts how often it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.reached = threading.Event(), threading.Event()
        self.answers.set()
        self.body, self.status, self.asked = json.dumps({"keys": [jwk(KEY, "one")]}), 200, 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/keys"


class Handler(BaseHTTPRequestHandler):
    server: Provider

    def do_GET(self) -> None:
        self.server.asked += 1
        self.server.reached.set()
        self.server.answers.wait(10)
        self.send_response(self.server.status)
        self.send_header("Location", "/elsewhere")
        self.end_headers()
        self.wfile.write(self.server.body.encode())

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(f"sqlite:///{tmp_path}/serving.db")


def verifier(provider: Provider, database: Database, **settings: Any) -> TokenVerifier:
    given = {"issuer": ISSUER, "audience": AUDIENCE, "jwks_url": provider.url, **settings}
    return TokenVerifier(TokenSettings.model_validate(given), database)


def claims(**others: Any) -> dict[str, Any]:
    now = int(time.time())
    made = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "iat": now, "exp": now + 600,
            "scope": "openid sparkray:infer", **others}  # fmt: skip
    return {name: value for name, value in made.items() if value is not None}


def token(key: Any = KEY, algorithm: str = "RS256", kid: str | None = "one", **others: Any) -> str:
    headers = {} if kid is None else {"kid": kid}
    return jwt.encode(claims(**others), key, algorithm, headers=headers)


def test_a_token_is_its_holder_with_what_the_claim_grants(
    provider: Provider, database: Database
) -> None:
    tokens = verifier(provider, database, requests_per_minute=7, max_concurrent=3)
    assert tokens.remembered(token()) is None
    caller = tokens.caller(signed := token(preferred_username="Ada"))
    assert caller is not None
    assert (caller.name, caller.scopes) == ("Ada", {"infer"})
    assert (caller.requests_per_minute, caller.max_concurrent) == (7, 3)
    assert caller.may("infer")
    assert not caller.may("jobs")
    assert len(caller.id) == 32
    assert tokens.remembered(signed) == (caller,)
    assert tokens.caller(token(scope=["sparkray:jobs", 3])).scopes == {"jobs"}  # type: ignore[union-attr]
    assert tokens.caller(token(scope=None)).scopes == set()  # type: ignore[union-attr]
    assert tokens.caller(token(sub="bob")).id != caller.id  # type: ignore[union-attr]
    assert provider.asked == 1
    with database.session() as session:
        entries = list(session.scalars(select(AuditEntry)))
    assert [(entry.action, entry.subject) for entry in entries] == [
        ("token.accept", "ada"),
        ("token.accept", "bob"),
    ]
    assert entries[0].key == caller.id


def test_roles_may_lie_deep_in_a_token(provider: Provider, database: Database) -> None:
    tokens = verifier(
        provider, database, scopes_claim="realm_access.roles", scopes={"operator": "admin"}
    )
    caller = tokens.caller(token(realm_access={"roles": ["operator", "reader"]}))
    assert caller is not None
    assert caller.may("jobs"), "admin may everything"
    assert tokens.caller(token(realm_access="operator")).scopes == set()  # type: ignore[union-attr]


def forged_with_the_public_key() -> str:
    """HS256, with the provider's public key as the secret: what a careless verifier falls for."""
    pem = KEY.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    head, body = (
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=")
        for part in ({"alg": "HS256", "typ": "JWT", "kid": "one"}, claims())
    )
    signature = hmac.new(pem, head + b"." + body, hashlib.sha256).digest()
    return b".".join([head, body, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()


def tampered() -> str:
    head, _, signature = token().split(".")
    changed = base64.urlsafe_b64encode(json.dumps(claims(sub="root")).encode()).rstrip(b"=")
    return ".".join([head, changed.decode(), signature])


@pytest.mark.parametrize(
    "make",
    [
        lambda: token(None, "none"),
        forged_with_the_public_key,
        tampered,
        lambda: token(OTHER_KEY),
        lambda: token(KEY, "RS512"),
        lambda: token(ec.generate_private_key(ec.SECP256R1()), "ES256"),
        lambda: token(exp=int(time.time()) - 60),
        lambda: token(nbf=int(time.time()) + 600),
        lambda: token(exp=None),
        lambda: token(sub=None),
        lambda: token(aud="another"),
        lambda: token(aud=None),
        lambda: token(iss="https://login.example.evil"),
        lambda: token(kid="unknown"),
        lambda: "sk-not-a-token",
        lambda: "a.b.c",
        lambda: "",
        lambda: "x" * 100_000,
    ],
    ids=["none", "public key as secret", "tampered", "another key", "another algorithm",
         "another kind of key", "expired", "not yet", "endless", "nobody's", "wrong audience",
         "no audience", "wrong issuer", "unknown key", "no token", "broken", "empty", "huge"],
)  # fmt: skip
def test_what_is_no_good_token_is_nobodys(
    make: Any, provider: Provider, database: Database
) -> None:
    tokens = verifier(provider, database)
    assert tokens.caller(token()) is not None
    assert tokens.caller(make()) is None


def test_a_new_key_is_found_and_an_old_one_forgotten(
    provider: Provider, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = verifier(provider, database)
    assert tokens.caller(token()) is not None
    provider.body = json.dumps({"keys": [jwk(OTHER_KEY, "two")]})
    for _ in range(5):
        assert tokens.caller(token(OTHER_KEY, kid="two")) is None
    assert provider.asked == 1, "not asked again for each name that somebody makes up"
    monkeypatch.setattr(tokens_module, "_FETCH_AGAIN_S", 0.0)
    assert tokens.caller(token(OTHER_KEY, kid="two")) is not None
    assert tokens.caller(token()) is None
    assert tokens.caller(token(OTHER_KEY, kid=None)) is not None, "there is but one key"


def test_nobody_waits_while_the_keys_are_read_for_a_name_that_somebody_made_up(
    provider: Provider, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens_module, "_FETCH_AGAIN_S", 0.0)
    tokens = verifier(provider, database)
    assert tokens.caller(token()) is not None
    provider.answers.clear()
    provider.reached.clear()
    with ThreadPoolExecutor(2) as threads:
        try:
            made_up = threads.submit(tokens.caller, token(kid="made-up"))
            assert provider.reached.wait(10)
            known = threads.submit(tokens.caller, token(sub="bob"))
            assert known.result(timeout=5) is not None
            with pytest.raises(ApiError, match="just being read") as raised:
                tokens.caller(token(OTHER_KEY, kid="perhaps-new"))
            assert (raised.value.status, raised.value.retry_after_s) == (503, 1.0)
            assert not made_up.done()
        finally:
            provider.answers.set()
        assert made_up.result(timeout=10) is None
    assert provider.asked == 2


@pytest.mark.parametrize(
    ("status", "body"), [(500, ""), (302, ""), (200, "no json"), (200, "{}"), (200, "x" * 300_000)]
)
def test_keys_that_cant_be_read_are_the_servers_problem(
    status: int, body: str, provider: Provider, database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    provider.status, provider.body = status, body
    tokens = verifier(provider, database)
    with pytest.raises(ApiError) as raised:
        tokens.caller(token())
    assert (raised.value.status, raised.value.code) == (503, "identity_provider_unavailable")

    good = verifier(provider, database)
    provider.status, provider.body = 200, json.dumps({"keys": [jwk(KEY, "one")]})
    assert good.caller(token()) is not None
    provider.status, provider.body = status, body
    monkeypatch.setattr(tokens_module, "_FETCH_AGAIN_S", 0.0)
    assert good.caller(token(kid="new")) is None
    assert good.caller(token()) is not None, "those from before are used meanwhile"


def test_keys_may_lie_in_a_file(tmp_path: Path, provider: Provider, database: Database) -> None:
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({"keys": [jwk(KEY, "one")]}))
    tokens = verifier(provider, database, jwks_url=None, jwks_file=str(file))
    assert tokens.caller(token()) is not None
    assert provider.asked == 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"jwks_url": "http://login.example/keys"}, "https"),
        ({"jwks_url": "http://127.0.0.1.evil/keys"}, "https"),
        ({"jwks_url": None}, "jwks_file"),
        ({"jwks_file": "keys.json"}, "jwks_file"),
        ({"algorithms": ["HS256"]}, "RS256"),
        ({"algorithms": ["none"]}, "RS256"),
        ({"scopes": {"x": "root"}}, "infer"),
        ({"audience": ""}, "at least 1"),
    ],
)
def test_wrong_settings_of_tokens_are_one_sentence(settings: dict[str, Any], said: str) -> None:
    good = {"issuer": ISSUER, "audience": AUDIENCE, "jwks_url": "https://login.example/keys"}
    assert ServeSettings.from_values(tokens=good).tokens is not None
    with pytest.raises(ConfigError, match=said):
        ServeSettings.from_values(tokens={**good, **settings})
