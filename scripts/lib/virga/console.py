"""Talks to a guest's console as a person would: waits for a prompt, types a line, reads the answer.

Every wait is bounded, and a wait that fails says what was on the console instead.
"""

import os
import pty
import re
import select
import subprocess
import time
import tty

from .common import Failure

# Escape sequences of terminals, and carriage returns: of no interest to a program.
NOISE = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|\x1b\][^\x07]*\x07|\r")


class Console:
    """A process whose standard input and output are a guest's console. It sees a terminal, raw from the start."""

    def __init__(self, argv, mirror=None, **options):
        self.master, slave = pty.openpty()
        try:
            tty.setraw(slave)
            self.process = subprocess.Popen([str(word) for word in argv], stdin=slave, stdout=slave,
                                            start_new_session=True, **options)
        except BaseException:
            os.close(self.master)
            raise
        finally:
            os.close(slave)
        self.mirror = mirror
        self.seen = b""

    def read(self, limit):
        """Takes in what comes within `limit` seconds; returns False at the end of the stream."""
        if not select.select([self.master], [], [], limit)[0]:
            return True
        try:
            data = os.read(self.master, 65536)
        except OSError:  # EIO: nobody holds the other side any more
            return False
        if data and self.mirror:
            self.mirror.write(data)
            self.mirror.flush()
        self.seen = NOISE.sub(b"", self.seen + data)
        return bool(data)

    def expect(self, pattern, limit):
        """Waits for a regular expression; returns the match, and forgets all up to its end."""
        deadline = time.monotonic() + limit
        open_still = True
        while True:
            found = re.search(pattern.encode(), self.seen)
            if found:
                self.seen = self.seen[found.end():]
                return found
            left = deadline - time.monotonic()
            if not open_still or left <= 0:
                why = f"not within {limit} s" if open_still else "the console ended"
                raise Failure(f"no {pattern!r} on the console ({why}); it showed:\n"
                              f"{self.seen[-2000:].decode(errors='replace')}")
            open_still = self.read(min(left, 1))

    def send(self, line):
        """Types a line."""
        os.write(self.master, line.encode() + b"\n")

    def ask(self, line, limit=60):
        """Runs a line of shell at a root prompt; returns its output and fails if it does."""
        self.seen = b""
        # The markers are split in what is typed, so that the terminal's echo is not taken for them.
        self.send(f"echo \":\":begin:; {line}; echo \":\":\"$?::\"")
        found = self.expect(r"(?s)::begin:\n(.*?)::(\d+)::", limit)
        output = found[1].decode(errors="replace").strip()
        if found[2] != b"0":
            raise Failure(f"in the guest: {line}: exit status {found[2].decode()}: {output}")
        return output

    def wait_end(self, limit):
        """Reads until the process ends; returns its exit status."""
        deadline = time.monotonic() + limit
        while self.read(1):
            if time.monotonic() > deadline:
                raise Failure(f"the guest's console does not end within {limit} s:\n"
                              f"{self.seen[-2000:].decode(errors='replace')}")
        return self.process.wait(max(1, deadline - time.monotonic()))

    def end(self):
        """Ends the process if it still runs."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)
        os.close(self.master)
