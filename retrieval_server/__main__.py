"""`python -m retrieval_server --corpus corpus.jsonl --index folder`: serve one corpus. `… index …`: build indexes."""

import argparse
import os
import socket
import sys
from pathlib import Path

from pydantic import ValidationError

from retrieval_server.app import create_app
from retrieval_server.app.listening import http_server
from retrieval_server.config import HttpSettings, ServerSettings, read_index_settings, read_rerank_settings
from retrieval_server.errors import RetrievalError
from retrieval_server.schemas import KEY_VARIABLE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="retrieval_server",
        description="Serve a corpus over POST /retrieve.",
        epilog=f"With {KEY_VARIABLE} in the environment, clients must send that key as a bearer token.",
    )
    parser.add_argument("--corpus", type=Path, required=True, help="JSONL with id and contents, or title and text")
    parser.add_argument("--index", type=Path, required=True, help="folder of the index")
    parser.add_argument("--build", action="store_true", help="build an index that is missing or another corpus's")
    parser.add_argument("--backend", type=Path, help="YAML: the index's settings; default: its manifest, else BM25")
    parser.add_argument("--rerank", type=Path, help="YAML: a reranker's settings; default: no reranker")
    for name, field in HttpSettings.model_fields.items():
        option, kind = "--" + name.replace("_", "-"), type(field.default)
        parser.add_argument(option, type=kind, default=field.default, help=f"{field.description} (default %(default)s)")
    return parser


def main() -> int:
    """Serve until stopped; the exit code."""
    if sys.argv[1:2] == ["index"]:
        from retrieval_server.indexing.command import app as index

        index(sys.argv[2:], prog_name="python -m retrieval_server index")
    parser = _parser()
    options = vars(parser.parse_args())
    build = options.pop("build")
    try:
        options["backend"] = options["backend"] and read_index_settings(options["backend"])
        options["rerank"] = options["rerank"] and read_rerank_settings(options["rerank"])
        settings = ServerSettings(**options)
    except ValidationError as error:
        named = (("--" + str(item["loc"][0]).replace("_", "-"), item["msg"]) for item in error.errors())
        parser.error("; ".join(f"{option}: {message}" for option, message in named))
    except RetrievalError as error:
        parser.error(str(error))
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
            server.should_exit = True  # uvicorn would raise a signal again, before our exit code

        app = create_app(settings, build=build, key=os.environ.get(KEY_VARIABLE) or None, on_failure=stop)
        server = http_server(app, settings)
        server.run(sockets=[listening])
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
