"""The demo's application: says which release answers."""

import time

RELEASE = None


def application(environ, start_response):
    if environ["PATH_INFO"] == "/slow":
        time.sleep(0.7)  # a request that is still open when its release is replaced
    body = ("release %s\n" % RELEASE).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
