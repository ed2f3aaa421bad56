"""A release that boots and then fails every request: the kind that a process manager takes for healthy."""

RELEASE = None


def application(environ, start_response):
    body = ("release %s: there is no table \"orders\"\n" % RELEASE).encode()
    start_response("500 Internal Server Error", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
