"""A small OpenID Connect provider that signs: ``python -m tests.server.oidc_provider``.

Writes its port on one line and serves on loopback.  Whoever is sent to ``/authorize`` comes back at
once; the parameter ``as`` (JSON), which a test adds, says as whom, and what is wrong with the
token.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import secrets
import sys
import time
from typing import Any
from urllib.parse import parse_qs, urlencode

import uvicorn
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey, RSAKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

CLIENT_ID, CLIENT_SECRET = "updraft", "a secret of the client's"

KEYS: dict[str, Any] = {"first": RSAKey.generate_key(2048, {"kid": "first"})}
codes: dict[str, dict[str, Any]] = {}


def issuer(request: Request) -> str:
    return f"http://{request.headers['host']}"


async def configuration(request: Request) -> Response:
    here = issuer(request)
    return JSONResponse(
        {
            "issuer": here,
            "authorization_endpoint": f"{here}/authorize",
            "token_endpoint": f"{here}/token",
            "jwks_uri": f"{here}/keys",
        }
    )


async def keys(_request: Request) -> Response:
    return JSONResponse({"keys": [key.as_dict(private=False) for key in KEYS.values()]})


async def authorize(request: Request) -> Response:
    asked = dict(request.query_params)
    assert asked["response_type"] == "code"
    assert asked["client_id"] == CLIENT_ID
    assert asked["code_challenge_method"] == "S256"
    code = secrets.token_urlsafe(16)
    codes[code] = asked
    back = {"code": code, "state": asked["state"]}
    return RedirectResponse(f"{asked['redirect_uri']}?{urlencode(back)}", 302)


async def token(request: Request) -> Response:
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    secret = base64.b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).decode()
    form = {name: value[0] for name, value in parse_qs((await request.body()).decode()).items()}
    asked = codes.pop(form["code"], None)
    challenge = base64.urlsafe_b64encode(hashlib.sha256(form["code_verifier"].encode()).digest())
    if (
        (kind, given) != ("Basic", secret)
        or asked is None
        or asked["redirect_uri"] != form["redirect_uri"]
        or asked["code_challenge"] != challenge.decode().rstrip("=")
    ):
        return JSONResponse({"error": "invalid_grant"}, 400)
    told = json.loads(asked.get("as", "{}"))
    now = int(time.time())
    claims = {
        "iss": issuer(request), "aud": CLIENT_ID, "sub": "1", "nonce": asked["nonce"],
        "iat": now, "exp": now + 300, **told.get("claims", {}),
    }  # fmt: skip
    return JSONResponse({"id_token": signed(claims, told.get("wrong")), "token_type": "Bearer"})


def signed(claims: dict[str, Any], wrong: str | None) -> str:
    header = {"alg": "RS256", "kid": "first"}
    key: Any = KEYS["first"]
    match wrong:
        case "none":
            return ".".join((packed({"alg": "none"}), packed(claims), ""))
        case "our secret":
            header, key = {"alg": "HS256"}, OctKey.import_key(CLIENT_SECRET)
        case "public key as secret":
            public = KEYS["first"].as_pem(private=False)
            text = ".".join(map(packed, [{"alg": "HS256", "kid": "first"}, claims]))
            mac = hmac.digest(public, text.encode(), "sha256")
            return f"{text}.{base64.urlsafe_b64encode(mac).decode().rstrip('=')}"
        case "another key":
            key = RSAKey.generate_key(2048, {"kid": "first"})
        case "new key":
            KEYS["second"] = key = ECKey.generate_key("P-256", {"kid": "second"})
            header = {"alg": "ES256", "kid": "second"}
        case "changed":
            text = jwt.encode(header, claims, key)
            head, body, signature = text.split(".")
            data = json.loads(base64.urlsafe_b64decode(body + "=="))
            data["sub"] = "another"
            return ".".join((head, packed(data), signature))
    return jwt.encode(header, claims, key, algorithms=["RS256", "HS256", "ES256"])


def packed(value: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


APP = Starlette(
    routes=[
        Route("/.well-known/openid-configuration", configuration),
        Route("/keys", keys),
        Route("/authorize", authorize),
        Route("/token", token, methods=["POST"]),
    ]
)


async def main() -> None:
    server = uvicorn.Server(uvicorn.Config(APP, port=0, log_level="error", lifespan="off"))
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    await serving


if __name__ == "__main__":
    asyncio.run(main())
