"""A TCP stream to HOST PORT of 64-bit numbers, each one more than the one before, until /run/stop is there.

With `both` the partner sends everything back, and what comes must be the same numbers.
"""

import os
import socket
import struct
import sys
import threading
import time

COUNT = 2048  # numbers a piece
WRONG = []


def numbers(first):
    return struct.pack(f"<{COUNT}Q", *range(first, first + COUNT))


def check(stream):
    """Reads what comes back to the end; the count of numbers, all of them right."""
    first, rest = 0, b""
    while piece := stream.recv(1 << 16):
        rest += piece
        while len(rest) >= COUNT * 8:
            if rest[: COUNT * 8] != numbers(first):
                WRONG.append(f"what came back is wrong behind number {first}")
                return
            first, rest = first + COUNT, rest[COUNT * 8:]
    if rest:
        WRONG.append(f"{len(rest)} bytes behind number {first}")
    if first != sent:
        WRONG.append(f"{first} numbers came back of {sent}")


host, port, way = sys.argv[1:]
with socket.create_connection((host, int(port))) as stream:
    reader = threading.Thread(target=check, args=[stream]) if way == "both" else None
    sent = 0
    if reader:
        reader.start()
    while not os.path.exists("/run/stop") and not WRONG:
        stream.sendall(numbers(sent))
        sent += COUNT
        time.sleep(0.02)
    stream.shutdown(socket.SHUT_WR)
    if reader:
        reader.join()
    else:
        stream.recv(1)  # its end: the partner has all
print(f"sent {sent}", *WRONG)
sys.exit(len(WRONG))
