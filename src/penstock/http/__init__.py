"""HTTP: one handler, and two adapters under it (our own server, and ASGI).

The handler turns a `Request` into an answer; it knows services and nothing of sockets. The server (`server`,
`connection`, `reader`) turns bytes into requests and answers into bytes; it knows sockets and nothing of services.
"""
