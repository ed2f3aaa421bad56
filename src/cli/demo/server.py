"""A WSGI server of the standard library for the demo, where gunicorn cannot be had.

It takes its listening socket from svd (LISTEN_FDS), asks its application once before it says READY=1, and on TERM
accepts no more, finishes what it has and says "Connection: close".
"""

import os
import select
import signal
import socket
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from app import application

LINGER = 0.5  # how long an idle connection may still send a request after TERM
IDLE = 30.0

stopping = threading.Event()


def ask(path):
    """One request to the application: its status and body."""
    answer = []
    body = b"".join(application({"REQUEST_METHOD": "GET", "PATH_INFO": path}, lambda s, h: answer.append(s)))
    return answer[0], body


def serve(connection):
    with connection:
        connection.settimeout(0.1)
        waiting = b""
        give_up = time.monotonic() + IDLE
        while True:
            try:
                data = connection.recv(65536)
                if not data:
                    return
                waiting += data
            except socket.timeout:
                pass
            except OSError:
                return
            if stopping.is_set():
                give_up = min(give_up, stopping.since + LINGER)
            if b"\r\n\r\n" not in waiting:
                if time.monotonic() > give_up:
                    return
                continue
            head, waiting = waiting.split(b"\r\n\r\n", 1)
            status, body = ask(head.split(b" ", 2)[1].decode("latin-1"))
            close = stopping.is_set() or b"connection: close" in head.lower()
            lines = ["HTTP/1.1 " + status, "Content-Length: %d" % len(body)]
            if close:
                lines.append("Connection: close")
            try:
                connection.settimeout(10)
                connection.sendall("\r\n".join(lines + ["", ""]).encode() + body)
                connection.settimeout(0.1)
            except OSError:
                return
            if close:
                return
            give_up = time.monotonic() + IDLE


def notify(text):
    path = os.environ.get("NOTIFY_SOCKET", "")
    if path:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
            s.sendto(text.encode(), "\0" + path[1:] if path[0] == "@" else path)


def main():
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        sys.exit("this server is started by svd, which hands it the listening socket")
    status, body = ask("/")
    if not status.startswith("200"):
        sys.exit("GET / answered %s: %s" % (status, body.decode().strip()))
    listener = socket.socket(fileno=3)
    listener.setblocking(False)
    wake, wakener = os.pipe()

    def stop(number, frame):
        stopping.since = time.monotonic()
        stopping.set()
        os.write(wakener, b"x")

    signal.signal(signal.SIGTERM, stop)
    notify("READY=1")
    waiter = select.poll()
    waiter.register(listener, select.POLLIN)
    waiter.register(wake, select.POLLIN)
    while not stopping.is_set():
        waiter.poll()
        if stopping.is_set():
            break
        try:
            connection, _ = listener.accept()
        except OSError:
            continue  # another generation was quicker, or the client has left
        connection.setblocking(True)
        threading.Thread(target=serve, args=(connection,)).start()
    listener.close()
    # The interpreter waits for the threads.


main()
