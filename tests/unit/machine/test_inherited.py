"""What a process of a run takes over from the environment."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3_agent.errors import LaunchError
from s3_agent.machine import inherited as inherited_module
from s3_agent.machine.inherited import LEFT_OUT, MARK, SHORT, inherited, temporary_folder
from s3_agent.processes.stack import scratch_folder


@pytest.mark.parametrize("name", [*LEFT_OUT, "TORCHELASTIC_RUN_ID"])
def test_what_another_program_was_told_is_left_out(name: str) -> None:
    assert name not in inherited({name: "1"})


@pytest.mark.parametrize(("name", "kept"), [("VLLM_PORT", False), ("RAY_PORT", False), ("MY_SERVICE_PORT", True)])
def test_a_service_of_kubernetes_is_left_out_where_ours_would_read_it(name: str, kept: bool) -> None:
    assert (name in inherited({name: "tcp://10.0.0.1:80"})) == kept


@given(
    st.dictionaries(
        st.sampled_from(["VLLM_PORT", "VLLM_CPU_KVCACHE_SPACE", "RAY_worker_niceness", "HF_TOKEN"]), st.text()
    )
)
def test_everything_else_is_taken_over_as_it_is(environment: dict[str, str]) -> None:
    kept = inherited(environment)
    assert {name: kept[name] for name in environment if "://" not in environment[name]} == {
        name: value for name, value in environment.items() if "://" not in value
    }


def test_a_short_temporary_folder_is_used_and_a_long_one_is_not(tmp_path: Path) -> None:
    exact = Path("/tmp") / ("x" * (SHORT - MARK - len("/tmp/")))
    exact.mkdir(exist_ok=True)
    try:
        assert temporary_folder(exact) == exact
    finally:
        exact.rmdir()
    long = tmp_path / ("x" * SHORT)
    long.mkdir()
    assert temporary_folder(long) == Path("/tmp")


def test_no_folder_for_sockets_is_an_error_that_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inherited_module, "FALLBACKS", ())
    monkeypatch.setattr("tempfile.tempdir", "/" + "x" * SHORT)
    with pytest.raises(LaunchError, match="too long for the sockets") as caught:
        scratch_folder("a-run")
    assert "TMPDIR" in caught.value.remedy
