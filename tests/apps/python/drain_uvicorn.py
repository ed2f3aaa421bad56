"""Runs uvicorn so that it leaves a shared listening socket without losing a connection: the options are uvicorn's own.

    python drain_uvicorn.py --fd 3 module:application

When it stops, uvicorn closes every connection on which no request has begun, also one that it accepted a moment ago and
whose request is on its way: the client sees a reset. Here it first stops accepting, then answers for LINGER seconds what it
has accepted, telling clients "Connection: close", and only then goes on as it always does.
"""

import asyncio
import sys

import uvicorn

LINGER = 0.5


class Server(uvicorn.Server):
    async def shutdown(self, sockets=None):
        for server in self.servers:
            server.close()
        # A list of its own: those that answers are being made with must not change.
        self.server_state.default_headers = [*self.server_state.default_headers, (b"connection", b"close")]
        await asyncio.sleep(LINGER)
        await super().shutdown(sockets)


if __name__ == "__main__":
    # uvicorn.main is the function of that name, which hides the module that it looks Server up in.
    sys.modules["uvicorn.main"].Server = Server
    sys.exit(uvicorn.main())
