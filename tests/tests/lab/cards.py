"""Streams through all cards until /run/stop is there: blocks go out, come back, and must be the same. A stream that breaks begins anew.

Each argument is NAME=HOST:PORT. Blocks that came back are counted in /run/count-NAME, what is wrong is told in /run/wrong.
"""

import hashlib
import os
import socket
import sys
import threading
import time

BLOCK = 64 << 10


def stopped():
    return os.path.exists("/run/stop")


def blocks(stream):
    while not stopped():
        block = os.urandom(BLOCK)
        sender = threading.Thread(target=stream.sendall, args=[block])
        sender.start()
        came = hashlib.sha256()
        left = BLOCK
        while left:
            piece = stream.recv(left)
            if not piece:
                sender.join()
                return
            came.update(piece)
            left -= len(piece)
        sender.join()
        yield came.digest() == hashlib.sha256(block).digest()


def work(name, host, port):
    count = 0
    while not stopped():
        try:
            with socket.create_connection((host, int(port)), timeout=20) as stream:
                stream.settimeout(20)
                for right in blocks(stream):
                    if not right:
                        with open("/run/wrong", "a") as file:
                            file.write(f"{name}: block {count} came back changed\n")
                    count += 1
                    with open(f"/run/count-{name}.new", "w") as file:
                        file.write(str(count))
                    os.rename(f"/run/count-{name}.new", f"/run/count-{name}")
        except OSError:
            time.sleep(0.5)


threading.excepthook = lambda args: None  # a sender whose stream broke
for argument in sys.argv[1:]:
    name, _, place = argument.partition("=")
    threading.Thread(target=work, args=[name, *place.split(":")]).start()
