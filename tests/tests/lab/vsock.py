"""The guest's ends of sockets between guest and host.

    serve PORT          sends back what comes, for ever
    talk PORT SIZE      sends so many random bytes to the host's port, says that this was all, and wants them back
    many PORT COUNT     the same over so many connections at once, a few bytes each
"""

import os
import socket
import sys
import threading

HOST = socket.VMADDR_CID_HOST


def made():
    return socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)


def echo(stream):
    try:
        while piece := stream.recv(1 << 16):
            stream.sendall(piece)
        stream.shutdown(socket.SHUT_WR)
        stream.recv(1)
    except OSError:
        pass  # its other end is gone, perhaps with the whole host
    finally:
        stream.close()


def serve(port):
    listener = made()
    listener.bind((socket.VMADDR_CID_ANY, port))
    listener.listen(1024)  # the kernel refuses what is beyond
    open("/run/serving", "w").close()
    while True:
        stream, _ = listener.accept()
        threading.Thread(target=echo, args=[stream], daemon=True).start()


def write(stream, data):
    stream.sendall(data)
    stream.shutdown(socket.SHUT_WR)


def back(stream):
    data = bytearray()
    while piece := stream.recv(1 << 16):
        data += piece
    return data


def talk(port, size):
    with made() as stream:
        stream.connect((HOST, port))
        data = os.urandom(size)
        writer = threading.Thread(target=write, args=[stream, data])
        writer.start()
        if back(stream) != data:
            sys.exit("what came back is something else")
        writer.join()


def many(port, count):
    streams = [made() for _ in range(count)]
    for stream in streams:
        stream.connect((HOST, port))
    for number, stream in enumerate(streams):
        write(stream, b"%d" % number)
    for number, stream in enumerate(streams):
        if back(stream) != b"%d" % number:
            sys.exit(f"what came back of {number} is something else")


{"serve": serve, "talk": talk, "many": many}[sys.argv[1]](*map(int, sys.argv[2:]))
