"""Follows the logs of many jobs at once: `followers.py HOST PORT JOB…`, with a token on stdin.

Says `ready` when all are followed; when its standard input closes, it tells as JSON how many lines
each of them got.
"""

import asyncio
import json
import resource
import ssl
import sys

import uvloop

_COMING_IN = asyncio.Semaphore(20)
"""A server takes only so many at a time that have not said who they are."""


async def follow(host: str, port: int, token: str, job: str, got: dict[str, int]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the server is the benchmark's own
    async with _COMING_IN:
        reader, writer = await asyncio.open_connection(host, port, ssl=context)
        request = f"GET /api/v1/jobs/{job}/logs/stdout?follow=true HTTP/1.1\r\nHost: {host}\r\n"
        writer.write(f"{request}Authorization: Bearer {token}\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
    if b" 200 " not in head.split(b"\r\n")[0]:
        raise SystemExit(f"following {job}: {head!r}")
    got[job] = 0
    while data := await reader.read(65536):
        got[job] += data.count(b"a line of output")


async def main(host: str, port: int, jobs: list[str]) -> None:
    token = sys.stdin.readline().strip()
    got: dict[str, int] = {}
    tasks = [asyncio.create_task(follow(host, port, token, job, got)) for job in jobs]
    while len(got) < len(jobs):
        await asyncio.sleep(0.1)
        for task in tasks:
            if task.done():
                task.result()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    print(json.dumps(sorted(got.values())), flush=True)
    for task in tasks:
        task.cancel()


if __name__ == "__main__":
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))
