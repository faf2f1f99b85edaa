"""Runs all checks on one case. Called by `job`; a new check is added to `CHECKS`, in the order of the report."""

from collections.abc import Callable, Iterable

from s3_agent.doctor.case import Case
from s3_agent.doctor.checks.batch import check_batch
from s3_agent.doctor.checks.disk import check_disk
from s3_agent.doctor.checks.environment import check_environment
from s3_agent.doctor.checks.files import check_files, check_rag_cache, check_tasks
from s3_agent.doctor.checks.gateway import check_gateway
from s3_agent.doctor.checks.gpus import check_gpus
from s3_agent.doctor.checks.host import check_host
from s3_agent.doctor.checks.lengths import check_lengths
from s3_agent.doctor.checks.limits import check_limits
from s3_agent.doctor.checks.lora import check_lora
from s3_agent.doctor.checks.memory import check_caches, check_gpu_memory, check_ram
from s3_agent.doctor.checks.nodes import check_nodes
from s3_agent.doctor.checks.output_layer import check_output_layer
from s3_agent.doctor.checks.ports import check_ports
from s3_agent.doctor.checks.precision import check_precision
from s3_agent.doctor.checks.protocol import check_protocol
from s3_agent.doctor.checks.retrievers import check_retrievers
from s3_agent.doctor.checks.versions import check_versions
from s3_agent.doctor.findings import Finding

Check = Callable[[Case], Iterable[Finding]]
CHECKS: tuple[Check, ...] = (
    check_versions,
    check_precision,
    check_gpus,
    check_gpu_memory,
    check_caches,
    check_ram,
    check_disk,
    check_ports,
    check_host,
    check_limits,
    check_environment,
    check_files,
    check_tasks,
    check_rag_cache,
    check_protocol,
    check_gateway,
    check_retrievers,
    check_nodes,
    check_batch,
    check_output_layer,
    check_lora,
    check_lengths,
)


def examine(case: Case) -> list[Finding]:
    """Every finding of every check, in the order of the checks."""
    return [finding for check in CHECKS for finding in check(case)]
