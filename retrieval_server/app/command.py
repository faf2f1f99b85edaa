"""The command `python -m retrieval_server --corpus corpus.jsonl --index folder`: serves one corpus."""

import argparse
import gc
import socket
import sys
from pathlib import Path

from pydantic import ValidationError

from retrieval_server.app import create_app
from retrieval_server.app.listening import http_server
from retrieval_server.app.mcp_routes import require_mcp
from retrieval_server.config import HttpSettings, ServerSettings, read_index_settings, read_rerank_settings
from retrieval_server.errors import RetrievalError
from retrieval_server.schemas import KEY_VARIABLE
from retrieval_server.services import Key


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="retrieval_server",
        description="Serve a corpus over POST /retrieve.",
        epilog=f"With {KEY_VARIABLE} in the environment, clients must send that key as a bearer token.",
    )
    parser.add_argument(
        "--corpus", type=Path, help="JSONL with id and contents, or title and text (not for kinds without one)"
    )
    parser.add_argument("--index", type=Path, required=True, help="folder of the index")
    parser.add_argument("--build", action="store_true", help="build an index that is missing or another corpus's")
    parser.add_argument("--backend", type=Path, help="YAML: the index's settings; default: its manifest, else BM25")
    parser.add_argument("--rerank", type=Path, help="YAML: a reranker's settings; default: no reranker")
    for name, field in HttpSettings.model_fields.items():
        option, kind = "--" + name.replace("_", "-"), type(field.default)
        if kind is bool:
            parser.add_argument(option, action="store_true", help=field.description)
            continue
        parser.add_argument(option, type=kind, default=field.default, help=f"{field.description} (default %(default)s)")
    return parser


def _problem(place: tuple[int | str, ...], message: str) -> str:
    """What is wrong with which option; a rule about several options has no place."""
    message = message.removeprefix("Value error, ")
    return f"--{str(place[0]).replace('_', '-')}: {message}" if place else message


def collect_less() -> None:
    """Leave what is loaded out of garbage collections: an eighth of the CPU time of an answer, and half of its p95."""
    gc.collect()
    gc.freeze()


def main() -> int:
    """Serve until stopped; the exit code."""
    parser = _parser()
    options = vars(parser.parse_args())
    build = options.pop("build")
    try:
        key = Key(KEY_VARIABLE).value or None
        options["backend"] = options["backend"] and read_index_settings(options["backend"])
        options["rerank"] = options["rerank"] and read_rerank_settings(options["rerank"])
        settings = ServerSettings(**options)
        if settings.mcp:
            require_mcp()
    except ValidationError as error:
        parser.error("; ".join(_problem(item["loc"], item["msg"]) for item in error.errors()))
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

        app = create_app(settings, build=build, key=key, on_ready=collect_less, on_failure=stop)
        server = http_server(app, settings)
        server.run(sockets=[listening])
    return 1 if failed else 0
