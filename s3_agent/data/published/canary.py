"""The encryption with which benchmarks keep their texts out of training data: BrowseComp, BrowseComp-Plus, and others.

It only hides texts from those who collect web pages: the key is published too, as the canary that must stand in every
file with the plain texts. Texts are XORed with the SHA-256 of the canary, repeated, and written in base64.
"""

import base64
import binascii
import hashlib
from itertools import cycle
from typing import Any

from s3_agent.errors import DataError


def _xored(data: bytes, key: str) -> bytes:
    stream = hashlib.sha256(key.encode()).digest()
    return bytes(byte ^ mask for byte, mask in zip(data, cycle(stream), strict=False))


def encrypted(value: Any, key: str) -> Any:
    """`value` with every text in it encrypted; names of fields, numbers and None stay."""
    if isinstance(value, str):
        return base64.b64encode(_xored(value.encode("utf-8", "replace"), key)).decode("ascii")
    if isinstance(value, dict):
        return {name: encrypted(item, key) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [encrypted(item, key) for item in value]
    return value


def decrypted(value: Any, key: str, *, place: str) -> Any:
    """`value` with every text in it decrypted. Raises DataError with `place`, but without any text, for a wrong key."""
    if isinstance(value, str):
        try:
            return _xored(base64.b64decode(value, validate=True), key).decode()
        except (binascii.Error, UnicodeDecodeError, ValueError):
            # The cause is left out: it would show a part of the text.
            raise DataError(
                f"{place} can not be decrypted: the key is not the one of this data set, or the text is not encrypted",
                remedy="give the canary exactly as it is published, with every space and without quotes around it",
            ) from None
    if isinstance(value, dict):
        return {name: decrypted(item, key, place=place) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [decrypted(item, key, place=place) for item in value]
    return value
