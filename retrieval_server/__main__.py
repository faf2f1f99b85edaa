"""`python -m retrieval_server --corpus corpus.jsonl --index folder`: serve one corpus."""

import argparse
import socket
import sys
from pathlib import Path

import uvicorn
from pydantic import ValidationError

from retrieval_server.app import create_app
from retrieval_server.config import ServerSettings


def main() -> int:
    """Serve until stopped; the exit code."""
    parser = argparse.ArgumentParser(prog="retrieval_server", description="Serve a corpus over POST /retrieve.")
    parser.add_argument("--corpus", type=Path, required=True, help="JSONL with id and contents, or title and text")
    parser.add_argument("--index", type=Path, required=True, help="folder of the index")
    parser.add_argument("--build", action="store_true", help="build the index when it is missing or another corpus's")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=int, default=3000, help="port to listen on (default %(default)s)")
    parser.add_argument("--topk", type=int, default=3, help="passages a query when the request names none")
    options = vars(parser.parse_args())
    build = options.pop("build")
    try:
        settings = ServerSettings(**options)
    except ValidationError as error:
        parser.error("; ".join(f"--{item['loc'][0]}: {item['msg']}" for item in error.errors()))
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((settings.host, settings.port))
        except OSError as error:
            sys.stderr.write(f"port {settings.port} on {settings.host} can not be used: {error}\n")
            return 2
        failed: list[bool] = []

        def stop() -> None:
            failed.append(True)
            server.should_exit = True  # a signal would be raised again by uvicorn and end us before our exit code

        app = create_app(settings, build=build, on_failure=stop)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        server.run(sockets=[listening])
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
