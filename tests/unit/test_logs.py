"""A log line must not end what it is about."""

import subprocess
import sys

CODE = """
import structlog
from s3_agent.logs import set_up_log
set_up_log()
for number in range(3):
    structlog.get_logger().warning("told", number=number)
print("went on")
"""


def test_a_log_on_a_full_disk_ends_nothing() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", CODE], stdout=subprocess.PIPE, stderr=full, text=True, timeout=60)
    assert done.stdout == "went on\n"
