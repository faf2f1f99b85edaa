#!/usr/bin/env bash
# Ray 2.60.0 starts its workers at niceness 15 without a message: a task that computes on the CPU gets only the time
# that other programs of the machine leave. The driver stays at 0. RAY_worker_niceness=0 in the environment that starts
# Ray prevents it.
#
# Seen with ray 2.60.0, Python 3.12, Linux x86-64: driver 0, task 15, actor 15; with RAY_worker_niceness=0: 0, 0, 0.
# Fails when that changes. Needs Python 3.12 and PyPI; installs into a temporary folder.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.12}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "ray==2.60.0"
cat >"$folder/look.py" <<'PYTHON'
import os, sys
import ray

ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")

@ray.remote
def task():
    return os.nice(0)

@ray.remote
class Actor:
    def look(self):
        return os.nice(0)

seen = [os.nice(0), ray.get(task.remote()), ray.get(Actor.remote().look.remote())]
print("ray", ray.__version__, "driver, task, actor:", seen)
sys.exit(seen != [int(number) for number in sys.argv[1:]])
PYTHON
RAY_USAGE_STATS_ENABLED=0 "$folder/venv/bin/python" "$folder/look.py" 0 15 15
RAY_USAGE_STATS_ENABLED=0 RAY_worker_niceness=0 "$folder/venv/bin/python" "$folder/look.py" 0 0 0
