"""The little of QEMU's machine protocol that the lab needs."""

import json
import os
import socket
import time

from .common import Failure


class Monitor:
    """A connection to a QEMU's control socket. Every wait is bounded by `limit` seconds."""

    def __init__(self, directory, name="qmp.sock", limit=20):
        # By way of the directory's descriptor: a socket's path may have 107 bytes only, a cache's has more.
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(limit)
        descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY)
        try:
            self.socket.connect(f"/proc/self/fd/{descriptor}/{name}")
            self.file = self.socket.makefile("rw", encoding="utf-8")
            self.file.readline()
            self.do("qmp_capabilities")
        except BaseException:
            self.socket.close()
            raise
        finally:
            os.close(descriptor)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        self.socket.close()

    def do(self, command, **arguments):
        """Runs a command; returns what it returns."""
        self.file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.file.flush()
        while True:
            line = self.file.readline()
            if not line:
                raise Failure(f"QEMU went away during {command}")
            answer = json.loads(line)
            if "error" in answer:
                raise Failure(f"QEMU refused {command}: {answer['error'].get('desc')}")
            if "return" in answer:
                return answer["return"]

    def human(self, line):
        """Runs a command of the human monitor; returns its text."""
        return self.do("human-monitor-command", **{"command-line": line})

    def wait(self, command, done, limit=60):
        """Repeats a query until `done(answer)`; returns that answer."""
        deadline = time.monotonic() + limit
        while True:
            answer = self.do(command)
            if done(answer):
                return answer
            if answer.get("status") == "failed":
                raise Failure(f"QEMU: {command}: {answer}")
            if time.monotonic() > deadline:
                raise Failure(f"QEMU: {command} still says {answer} after {limit} s")
            time.sleep(0.02)
