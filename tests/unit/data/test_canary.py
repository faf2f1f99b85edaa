"""The encryption of benchmarks that keep their texts out of training data."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3_agent.data.published.canary import decrypted, encrypted
from s3_agent.errors import DataError
from tests.published_files import KEY, encrypted_text

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(JSON, st.text(min_size=1, max_size=50).filter(lambda key: key.isascii()))
def test_what_is_encrypted_is_decrypted_again(value: object, key: str) -> None:
    assert decrypted(encrypted(value, key), key, place="here") == value


@given(st.text(max_size=200))
def test_it_is_the_published_scheme(text: str) -> None:
    assert encrypted(text, KEY) == encrypted_text(text)


def test_names_and_numbers_stay() -> None:
    assert encrypted({"query_id": 7, "docs": [{"docid": "x"}]}, KEY) == {
        "query_id": 7,
        "docs": [{"docid": encrypted_text("x")}],
    }


@pytest.mark.parametrize(
    "text", ["plain text", "", encrypted_text("a long enough text that was encrypted otherwise")[1:]]
)
def test_a_text_that_is_not_encrypted_is_refused_without_showing_it(text: str) -> None:
    if not text:
        assert decrypted(text, KEY, place="here") == ""
        return
    with pytest.raises(DataError, match="here can not be decrypted") as caught:
        decrypted(text, KEY, place="here")
    assert text not in str(caught.value) and caught.value.__cause__ is None


def test_a_wrong_key_is_refused() -> None:
    with pytest.raises(DataError, match="the key is not the one"):
        decrypted(encrypted_text("Which bird did the keeper of the lighthouse paint?"), KEY + " ", place="row 1")
