"""Requests made from the API's own description: no 5xx, and answers are as described."""

import ssl

import pytest

from tests.hostile.team import Team

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

SETTINGS = "requests_per_second = 100000"
EXCLUDED = {
    "/api/v1/stop": "ends the server",
    "/api/v1/sign-out": "ends the credential that asks",
    "/api/v1/tokens/{token}": "may revoke the credential that asks",
}
EXAMPLES = 6


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
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path in EXCLUDED or "follow" in str(operation.path):
            continue

        @settings(
            max_examples=EXAMPLES, deadline=None, database=None,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(case=operation.as_strategy())
        def check(case: object) -> None:
            try:
                answer = case.call(  # type: ignore[attr-defined]  # noqa: B023
                    base_url=server.url, headers=headers, verify=False, timeout=3
                )
            except (requests.Timeout, requests.ConnectionError, ssl.SSLError):
                return  # one that waits, or that HTTP cannot carry
            if answer.status_code >= 500:
                failed.append(f"{operation.label}: {answer.status_code} {answer.text[:200]}")

        check()
    assert not failed, "\n".join(sorted(set(failed)))
