import hashlib

import pytest

from moe_lab.config import Spec, canonical_json, fingerprint


class Pair(Spec):
    b: float = 1.0
    a: str = "é"


def test_the_order_of_keys_does_not_count() -> None:
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"b": [1, 2]}) != fingerprint({"b": [2, 1]})


def test_a_spec_has_the_fingerprint_of_its_plain_data() -> None:
    assert canonical_json(Pair()) == '{"a":"é","b":1.0}'
    assert fingerprint(Pair()) == fingerprint({"b": 1.0, "a": "é"})
    assert fingerprint(Pair()) == hashlib.sha256('{"a":"é","b":1.0}'.encode()).hexdigest()


def test_what_json_cannot_say_has_no_fingerprint() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        fingerprint({"a": float("nan")})
    with pytest.raises(TypeError, match="not JSON serializable"):
        fingerprint({"a": {1, 2}})
