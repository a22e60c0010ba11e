"""Guessers of passwords, of programs' codes and of tokens: they wait, and nobody else does."""

import re
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count

import httpx
import pytest

from tests.hostile.team import PASSWORD, Frames, Team, code_of, hello
from tests.waiting import until
from updraft.wire import frames

SETTINGS = "requests_per_second = 2000"  # so that what is met here is no rate of requests
SANE_SECONDS = 3.0
FREE = 5
FREE_PEER = 20
FREE_CODES = 10
ARGON2 = 64 << 20
"""What one computation takes; two are made at once."""

places = (f"127.0.1.{number}" for number in count(1))


def sign_in(client: httpx.Client, name: str, password: str) -> httpx.Response:
    return client.post("/sign-in", json={"name": name, "password": password})


def test_a_guesser_of_a_password_waits_longer_each_time_and_alone(server: Team) -> None:
    """Each 401 is an argon2 computation, and what has to wait costs none."""
    with server.at(next(places)) as guesser, server.at(next(places)) as anna:
        told = [sign_in(guesser, "anna", f"wrong-{n}").status_code for n in range(FREE)]
        assert told == [401] * FREE
        waits: list[int] = []
        computed = 0
        while computed < 2:
            refused = sign_in(guesser, "anna", "wrong again")
            assert (refused.status_code, code_of(refused)) == (429, "too_many_requests")
            waits.append(int(refused.headers["Retry-After"]))
            # The right one meets the same, and says nothing of itself.
            assert sign_in(guesser, "anna", PASSWORD).status_code == 429
            assert sign_in(anna, "anna", PASSWORD).status_code == 201
            until(lambda: sign_in(guesser, "anna", "wrong").status_code == 401, "its turn")
            computed += 1
        assert waits == [1, 2]


def test_many_guesses_at_once_are_few_computations(server: Team) -> None:
    """Of as many names as it likes; from some addresses at a time."""
    before = server.resident_bytes()
    begun = threading.Event()
    most = before
    addresses = [next(places) for _ in range(2)]

    def guess(number: int) -> tuple[str, int]:
        nonlocal most
        place = addresses[number % len(addresses)]
        with server.at(place) as client:
            answer = sign_in(client, f"user-{number}", "wrong one")
        most = max(most, server.resident_bytes())
        begun.set()
        return place, answer.status_code

    with ThreadPoolExecutor(24) as pool:
        told = pool.map(guess, range(100))
        assert begun.wait(30)
        assert server.good() < SANE_SECONDS
        codes = Counter(told)
    assert {code for _, code in codes} == {401, 429}
    for place in addresses:
        # Further ones may come after a second, two, four …: eight of them in four minutes.
        assert FREE_PEER <= codes[place, 401] <= FREE_PEER + 8
    assert most - before < 3 * ARGON2
    with server.at(next(places)) as anna:
        assert sign_in(anna, "anna", PASSWORD).status_code == 201


class Browser:
    """A person with a browser, at an address."""

    def __init__(self, server: Team, client: httpx.Client) -> None:
        self._client = client
        self._login = f"{server.url}/login"
        self._origin = {"Origin": server.url}

    def get(self, code: str = "") -> httpx.Response:
        return self._client.get(self._login, params={"code": code} if code else {})

    def post(self, **form: str) -> httpx.Response:
        found = re.search(r"name='token' value='([0-9a-f]+)'", self.get().text)
        assert found is not None
        fields = {"token": found[1], **form}
        return self._client.post(self._login, data=fields, headers=self._origin)

    def signs_in(self, name: str) -> None:
        assert self.post(name=name, password=PASSWORD, do="sign-in").status_code == 303


@pytest.mark.parametrize("how", ["looking", "allowing"])
def test_a_guesser_of_codes_has_to_wait_and_their_owners_do_not(server: Team, how: str) -> None:
    """Signed in: nobody else is shown whether a code is one."""
    with server.at(next(places)) as program, server.at(next(places)) as theirs:
        asked = program.post("/device", json={"client": "laptop"}).json()
        guesser = Browser(server, theirs)
        guesser.signs_in("vera")
        codes = [
            guesser.get(f"BBBB-BB{a}{b}")
            if how == "looking"
            else guesser.post(do="allow", code=f"BBBB-BB{a}{b}")
            for a in "BCDF"
            for b in "BCDF"
        ]
        told = Counter(each.status_code for each in codes)
        assert set(told) == {200 if how == "looking" else 404, 429}
        assert told[429] >= len(codes) - FREE_CODES - 1
        # Not even the right one, by then.
        assert guesser.post(do="allow", code=asked["user_code"]).status_code == 429
        with server.at(next(places)) as elsewhere:
            anna = Browser(server, elsewhere)
            anna.signs_in("anna")
            assert asked["user_code"] in anna.get(asked["user_code"]).text
            assert anna.post(do="allow", code=asked["user_code"]).status_code == 200
        body = {"device_code": asked["device_code"]}
        assert program.post("/device/token", json=body).json()["signed_in"]["user"] == "anna"


def test_nobody_who_is_not_signed_in_hears_whether_a_code_is_one(server: Team) -> None:
    with server.at(next(places)) as program, server.at(next(places)) as stranger:
        asked = program.post("/device", json={"client": "laptop"}).json()["user_code"]
        guesser = Browser(server, stranger)
        pages = {
            re.sub(r"value='[^']*'", "", guesser.get(code).text) for code in (asked, "BBBB-BBBB")
        }
        assert len(pages) == 1
        for code in (asked, "BBBB-BBBB"):
            answer = guesser.post(do="allow", code=code)
            assert (answer.status_code, answer.headers["location"]) == (303, f"/login?code={code}")


def guesses(server: Team) -> list[str]:
    """Tokens that are none: of every kind, and near to good ones."""
    good = server.tokens["anna"]
    identity = good.split("_")[2]
    return [
        "x", good[:-1], good + "0", good[:-1] + ("0" if good[-1] != "0" else "1"),
        f"updraft_user_{identity}_{'0' * 64}", f"updraft_browser_{identity}_{good.split('_')[3]}",
        f"updraft_runner_{identity}_{good.split('_')[3]}", "updraft_user_000000000000_" + "0" * 64,
        "é" * 50, "x" * 8000,
    ]  # fmt: skip


def test_guessed_tokens_are_refused_alike_and_cost_others_nothing(server: Team) -> None:
    """By HTTP and by frames; a good one from the same address is as good as ever."""
    before = server.resident_bytes()
    place = next(places)
    said: set[tuple[int, bytes]] = set()
    for guess in guesses(server):
        with server.at(place) as client:
            headers = {"Authorization": f"Bearer {guess}".encode()}
            answer = client.get("/jobs", headers=headers)  # type: ignore[arg-type]
            said.add((answer.status_code, answer.content))
        with Frames(server.tls(place), hello(guess)) as peer:
            ((kind, body),) = peer.answers()
            # A runner that the server does not know is told to end, and no more.
            runner = guess.startswith("updraft_runner_")
            assert (kind, body["code"]) == (
                frames.ERROR,
                "runner_removed" if runner else "not_signed_in",
            )
    assert len(said) == 1
    assert next(iter(said))[0] == 401
    over = threading.Event()

    def flood() -> None:
        with server.at(place) as client, suppress(httpx.TransportError):
            while not over.is_set():
                client.headers["Authorization"] = f"Bearer {guesses(server)[4]}"
                assert client.get("/jobs").status_code in (401, 429)

    threads = [threading.Thread(target=flood, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        assert max(server.good() for _ in range(3)) < SANE_SECONDS
        with server.at(place) as mine:
            mine.headers["Authorization"] = f"Bearer {server.tokens['ben']}"
            assert mine.get("/me").json()["name"] == "ben"
    finally:
        over.set()
        for thread in threads:
            thread.join(10)
    assert server.resident_bytes() - before < ARGON2
