"""Which proxy an address is asked through, and the environment that other programs get."""

import os
from unittest import mock

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_server import proxies
from retrieval_server.proxies import LOOPBACK, is_loopback, proxy_of, spare_loopback, sparing_loopback, usable_proxy


def test_the_environments_exceptions_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("https_proxy", "proxy:3128")
    monkeypatch.setenv("no_proxy", "inside.example")
    assert proxy_of("https://outside.example/v1") == "http://proxy:3128"
    assert proxy_of("https://inside.example/v1") is None
    assert proxy_of("http://outside.example/v1") is None


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.1", "127.8.8.8", "localhost", "LOCALHOST.", "a.localhost", "::1", "[::1]", "0.0.0.0"),
        *("::ffff:127.0.0.1", "0:0:0:0:0:0:0:1", "::", "2130706433"),
    ],
)
def test_this_machine_in_every_form(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["", "example.com", "10.0.0.1", "128.0.0.1", "localhost.x", "::2", "fe80::1%eth0"])
def test_another_machine(host: str) -> None:
    assert not is_loopback(host)


@given(st.text(max_size=20))
def test_any_text_is_a_host_or_not(host: str) -> None:
    assert is_loopback(host) in (True, False)


@pytest.mark.parametrize("named", [{"NO_PROXY": "inside.example,10.0.0.0/8"}, {"no_proxy": "fd00::/8, inside.example"}])
def test_either_spelling_counts_whatever_the_other_says(named: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    for name, value in {"NO_PROXY": "x.example", "no_proxy": "y.example", **named}.items():
        monkeypatch.setenv(name, value)
    assert proxy_of("http://inside.example/v1") is None
    assert (proxy_of("http://10.1.2.3:80/") is None) == ("NO_PROXY" in named)
    assert (proxy_of("http://[fd00::1]:80/") is None) == ("no_proxy" in named)
    assert proxy_of("http://192.0.2.1/") == "http://proxy:3128"


def test_a_proxy_that_no_client_can_use_is_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("all_proxy", "socks4://proxy:1080")
    assert proxy_of("http://outside.example/") is None
    monkeypatch.setattr(proxies, "find_spec", lambda _: None)
    assert [usable_proxy(value) for value in ("socks5://p:1", "http://p:x", "p:1")] == [None, None, "http://p:1"]
    monkeypatch.setattr(proxies, "find_spec", lambda _: "socksio")
    assert usable_proxy("socks5://p:1") == "socks5://p:1"  # httpx 0.28 knows socks5h as well


def test_both_spellings_name_this_machine_and_what_either_named() -> None:
    spared = sparing_loopback({"NO_PROXY": "a, b, [fe80::1], fd00::/8", "no_proxy": "c,a", "HOME": "/h"})
    assert spared["NO_PROXY"] == spared["no_proxy"] == "a,b,fe80::1,c," + ",".join(LOOPBACK)
    assert spared["HOME"] == "/h"
    assert sparing_loopback(spared) == spared


def test_proxies_that_can_not_be_used_are_left_out() -> None:
    named = {"http_proxy": "http://p:1", "HTTPS_PROXY": "p:1", "All_Proxy": "socks://p:1", "FTP_PROXY": "ftp://p:1"}
    assert sparing_loopback(named).keys() - {"NO_PROXY", "no_proxy"} == named.keys() - {"All_Proxy"}


_PART = st.one_of(
    st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12),
    st.ip_addresses().map(str),
    st.ip_addresses(v=6).map(lambda address: f"[{address}]"),
    st.sampled_from(["*", ".local", "[::1]", "[::1]:80", "fd00::/8", "10.0.0.0/8", "http://x", "x:1", "all://[", "["]),
)


@settings(deadline=None)
@given(
    st.lists(_PART, max_size=5),
    st.lists(_PART, max_size=5),
    st.sampled_from(["socks5://p:1", "p", "x://", "http://p:x"]),
)
def test_every_client_can_be_made_in_what_is_handed_on(upper: list[str], lower: list[str], proxy: str) -> None:
    given_environment = {
        "NO_PROXY": ",".join(upper),
        "no_proxy": ",".join(lower),
        "all_proxy": proxy,
        "HTTP_PROXY": "http://p:1",
    }
    spared = sparing_loopback(given_environment)
    with mock.patch.dict(os.environ, spared, clear=True), httpx.Client(verify=False) as http:
        direct = http._transport_for_url(httpx.URL("http://127.0.0.1:1/"))
        assert direct is http._transport and http._transport_for_url(httpx.URL("http://[::1]:1/")) is direct


def test_this_process_spares_this_machine_too() -> None:
    unusable = {"all_proxy": "socks://p:1", "no_proxy": "[::1],fd00::/8", "HOME": "/h"}
    with mock.patch.dict(os.environ, unusable, clear=True):
        spare_loopback()
        assert dict(os.environ) == {"HOME": "/h", **dict.fromkeys(("NO_PROXY", "no_proxy"), "::1,127.0.0.1,localhost")}
