"""A plain WSGI application: `gunicorn wsgi_app:application`."""

from urllib.parse import parse_qs

import release


def application(environ, start_response):
    seconds = parse_qs(environ.get("QUERY_STRING", "")).get("seconds", [None])[0]
    status, text = release.answer(environ["PATH_INFO"], seconds)
    data = text.encode()
    start_response("%d %s" % (status, "OK" if status == 200 else "Internal Server Error"),
                   [("Content-Type", "text/plain"), ("Content-Length", str(len(data)))])
    return [data]
