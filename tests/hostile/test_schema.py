"""Requests made from the API's own description: no 5xx, and every answer is as described."""

from itertools import count
from typing import Any

import pytest
import requests
import schemathesis
import urllib3
from hypothesis import HealthCheck, given, seed, settings
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.core.result import Ok
from schemathesis.specs.openapi import checks

from tests.hostile.team import Team

SETTINGS = "requests_per_second = 100000"
EXCLUDED = {
    "/api/v1/stop": "ends the server",
    "/api/v1/sign-out": "ends the credential that asks",
    "/api/v1/tokens/{token}": "may revoke the credential that asks",
}
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
]
_numbers = count()
SECONDS = 2
"""For an answer; one that follows a job may have none."""


class Asked:
    """What was asked, and what of the answers is not as described."""

    def __init__(self) -> None:
        self.wrong: set[str] = set()
        self.met: set[str] = set()
        """The operations that were answered with what they are for."""


def spares(server: Team, number: int) -> dict[str, str]:
    """Make one of each thing that has a name, to be changed and deleted; return their names."""
    name = f"spare{number}"
    with server.http("anna") as client:
        client.post("/users", json={"name": name})
        client.post("/projects", json={"name": name})
        client.put(f"/projects/{name}/members/{name}", json={"role": "viewer"})
        client.post("/pools", json={"name": name})
        body = {"key": f"key-of-{name}", "argv": ["echo", "x"], "directory": "/"}
        job = client.post("/jobs", json=body).json()["id"]
        client.get(f"/jobs/{job}/wait?seconds=10")
    named = dict.fromkeys(("user", "project", "pool"), name)
    return {**named, "job": job, "runner": "local", "stream": "stdout"}


def ask_all(server: Team, user: str, examples: int) -> Asked:
    """Ask whatever the document says that can be asked."""
    urllib3.disable_warnings()
    headers = {"Authorization": f"Bearer {server.tokens[user]}"}
    document = requests.get(
        f"{server.url}/api/v1/openapi.json", headers=headers, verify=False, timeout=30
    ).json()
    schema = schemathesis.openapi.from_dict(document)
    asked = Asked()
    names: dict[str, str] = {}

    def check(case: Any) -> None:
        send(case)
        # The same of things that there are.
        case.path_parameters = {**case.path_parameters, **names}
        send(case)
        case.query = {}
        send(case)

    def send(case: Any) -> None:
        try:
            answer = case.call(base_url=server.url, headers=headers, verify=False, timeout=SECONDS)
        except requests.RequestException:
            return  # one that waits, or that HTTP cannot carry
        if 200 <= answer.status_code < 300:
            asked.met.add(f"{case.method} {case.path}")
        try:
            case.validate_response(answer, checks=CHECKS)
        except (Failure, FailureGroup) as error:
            for each in getattr(error, "exceptions", [error]):
                said = f"{case.method} {case.path}: {each.title}: {each.message}"
                asked.wrong.add(said[:600])

    limits = settings(
        max_examples=examples, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    for result in schema.get_all_operations():
        assert isinstance(result, Ok), "the document is no OpenAPI"
        operation = result.ok()
        if operation.path not in EXCLUDED:
            made = spares(server, next(_numbers))
            names = {name: made[name] for name in made if f"{{{name}}}" in operation.path}
            limits(seed(examples)(given(case=operation.as_strategy())(check)))()
    return asked


@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("user", ["anna", "vera"])
def test_answers_are_as_described_and_none_is_a_failure(server: Team, user: str) -> None:
    asked = ask_all(server, user, 2 if user == "anna" else 1)
    assert sorted(asked.wrong) == []
    # What she may do was done, too, and not only refused.
    assert len(asked.met) >= (30 if user == "anna" else 10), sorted(asked.met)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("user", ["anna", "vera"])
def test_answers_are_as_described_however_long_one_asks(server: Team, user: str) -> None:
    assert sorted(ask_all(server, user, 100).wrong) == []
