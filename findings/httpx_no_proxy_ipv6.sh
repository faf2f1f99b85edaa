#!/usr/bin/env bash
# If no_proxy has one entry that httpx can not read, such as [::1] or a range of IPv6 addresses, no httpx client can be
# created, for any address. A SOCKS proxy without the package socksio has the same effect, also for addresses in
# no_proxy. urllib and requests work with both.
#
# Seen with httpx 0.28.1, requests 2.32.5, Python 3.12, Linux x86-64. Fails when that changes. Needs Python 3.12 and PyPI;
# installs into a temporary folder.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.12}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "httpx==0.28.1" "requests==2.32.5"
for name in $(env | cut -d= -f1 | grep -i '_proxy$' || true); do unset "$name"; done
"$folder/venv/bin/python" - <<'PYTHON'
import os
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version

import httpx
import requests


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}/"
print("httpx", version("httpx"), "requests", version("requests"))
for changes, expected in (
    ({"no_proxy": "127.0.0.1,[::1]"}, httpx.InvalidURL),
    ({"no_proxy": "127.0.0.1,fd00::/8"}, httpx.InvalidURL),
    ({"no_proxy": "127.0.0.1", "all_proxy": "socks5://127.0.0.1:9"}, ImportError),
):
    os.environ.pop("all_proxy", None)
    os.environ.update(changes)
    assert urllib.request.urlopen(url).status == requests.get(url).status_code == 200
    try:
        httpx.get(url)
    except expected as cause:
        print(changes, "->", type(cause).__name__, str(cause)[:60])
    else:
        raise SystemExit(f"httpx {version('httpx')} goes on with {changes}")
PYTHON
