"""Requests made from the API's own description: no 5xx, and answers are as described."""

from typing import Any

import pytest

from tests.hostile.team import Team

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

SETTINGS = "requests_per_second = 100000"
EXCLUDED = {
    "/api/v1/stop": "ends the server",
    "/api/v1/sign-out": "ends the credential that asks",
    "/api/v1/tokens/{token}": "may revoke the credential that asks",
}
EXAMPLES = 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("user", ["anna", "vera"])
def test_no_request_makes_the_server_fail(server: Team, user: str) -> None:
    import requests
    import urllib3
    from hypothesis import HealthCheck, given, settings

    urllib3.disable_warnings()
    headers = {"Authorization": f"Bearer {server.tokens[user]}"}
    document = requests.get(
        f"{server.url}/api/v1/openapi.json", headers=headers, verify=False, timeout=30
    ).json()
    schema = schemathesis.openapi.from_dict(document)
    failed: list[str] = []

    def check(operation: Any, case: Any) -> None:
        try:
            answer = case.call(base_url=server.url, headers=headers, verify=False, timeout=2)
        except requests.RequestException:
            return  # one that waits, or that HTTP cannot carry
        if answer.status_code >= 500:
            failed.append(f"{operation.label}: {answer.status_code} {answer.text[:200]}")

    limits = settings(
        max_examples=EXAMPLES, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path not in EXCLUDED:
            strategy = operation.as_strategy()
            limits(given(case=strategy)(lambda case, of=operation: check(of, case)))()
    assert not failed, "\n".join(sorted(set(failed)))
