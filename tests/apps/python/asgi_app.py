"""A plain ASGI application: `uvicorn --fd 3 asgi_app:application`."""

import asyncio
from urllib.parse import parse_qs

import release


async def application(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            print(message["type"], flush=True)
            if release.settings.get("lifespan") == "fail":
                return await send({"type": "lifespan.startup.failed", "message": "%s cannot start" % release.NAME})
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    seconds = parse_qs(scope["query_string"].decode()).get("seconds", [None])[0]
    path = scope["path"]
    if path == "/slow":
        await asyncio.sleep(float(seconds or 1))
        path = "/"
    status, text = release.answer(path, seconds)
    data = text.encode()
    await send({"type": "http.response.start", "status": status,
                "headers": [(b"content-type", b"text/plain"), (b"content-length", str(len(data)).encode())]})
    await send({"type": "http.response.body", "body": data})
