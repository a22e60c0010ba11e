"""Submits detached jobs at a steady rate: `submitters.py HOST PORT POOL RATE SECONDS COMMAND`.

A token comes on standard input. Each submission is due at its own time, however long the ones
before it take, and its latency counts from there to its acknowledgement. Tells as JSON: how many
were due and acknowledged, and the latencies in seconds.
"""

import asyncio
import json
import os
import ssl
import sys
import time
from collections import deque
from functools import partial

import uvloop

from updraft.sdk.submission import submission
from updraft.wire import frames
from updraft.wire.transport import FrameConnection, body_of

CONNECTIONS = 20


class Submitter:
    """One client's connection."""

    def __init__(self) -> None:
        self.connection = FrameConnection(self)
        self.waiting: deque[float] = deque()
        self.latencies: list[float] = []
        self.jobs: list[str] = []

    def frame(self, kind: int, channel: int, offset: int, payload: bytes | memoryview) -> None:
        if kind == frames.ACCEPTED:
            self.latencies.append(time.perf_counter() - self.waiting.popleft())
            self.jobs.append(body_of(payload)["job"])
        elif kind == frames.ERROR:
            raise SystemExit(f"refused: {body_of(payload)}")

    def closed(self) -> None:
        if self.waiting:
            raise SystemExit("the server hung up")

    def writable(self, ready: bool) -> None:
        pass


def _same(submitter: Submitter) -> FrameConnection:
    return submitter.connection


async def main(host: str, port: int, pool: str, rate: float, seconds: float, word: str) -> None:
    token = sys.stdin.readline().strip()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the server is the benchmark's own
    loop = asyncio.get_running_loop()
    submitters = []
    for _ in range(CONNECTIONS):
        submitter = Submitter()
        make = partial(_same, submitter)
        await loop.create_connection(make, host, port, ssl=context)
        hello = {"role": "client", "wire": frames.WIRE_VERSION, "release": "0", "token": token}
        submitter.connection.send_message(frames.HELLO, hello)
        submitters.append(submitter)
    body = {**submission([word.encode()], attached=False), "pool": pool, "environment": b"A=b"}
    due = round(rate * seconds)
    began = time.perf_counter()
    for number in range(due):
        at = began + number / rate
        await asyncio.sleep(max(at - time.perf_counter(), 0))
        submitter = submitters[number % CONNECTIONS]
        submitter.waiting.append(at)
        submitter.connection.send_message(frames.SUBMIT, {**body, "key": os.urandom(16)})
    async with asyncio.timeout(30):
        while any(each.waiting for each in submitters):
            await asyncio.sleep(0.01)
    latencies = sorted(latency for each in submitters for latency in each.latencies)
    jobs = [job for each in submitters for job in each.jobs]
    print(json.dumps({"due": due, "latencies": latencies, "jobs": jobs}), flush=True)
    for each in submitters:
        each.waiting.clear()
        each.connection.close()


if __name__ == "__main__":
    _, host_, port_, pool_, rate_, seconds_, word_ = sys.argv
    uvloop.run(main(host_, int(port_), pool_, float(rate_), float(seconds_), word_))
