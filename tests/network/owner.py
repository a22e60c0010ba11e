"""Make a network with programs that will not end by themselves, say so, and wait to be killed."""

import json
import signal
import subprocess

from tests.network import FAR, Network

STUBBORN = "trap '' TERM HUP INT; echo up; while :; do sleep 1000; done"

if __name__ == "__main__":
    with Network() as network:
        hosts = [network.host("server"), network.host("runner", FAR, nat=True)]
        programs = []
        for host in hosts:
            program = host.popen(["sh", "-c", STUBBORN], stdout=subprocess.PIPE, uid=65534)
            assert program.stdout
            program.stdout.readline()
            programs.append(program.pid)
        print(json.dumps({"name": network.name, "programs": programs}), flush=True)
        signal.pause()
