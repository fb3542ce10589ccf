import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_lab.errors import LabError
from moe_lab.files import digest_of
from moe_lab.registry.exact_json import MAX_BYTES, MAX_DEPTH, ManifestProblem, canonical
from moe_lab.registry.manifest import TensorRecord, build, parse

CHUNK = digest_of(b"")
RECORD = {"dtype": "float32", "shape": [2, 3], "chunk_bytes": 12, "chunks": [CHUNK, CHUNK], "blocks": True}
VALUE = {"format": 1, "kind": "module", "interface": {}, "tensors": {"gate": RECORD}}


def parse_value(value):
    data = canonical(value)
    return parse(data, digest_of(data))


def with_record(**changes):
    return {**VALUE, "tensors": {"gate": {**RECORD, **changes}}}


def test_the_example_is_sound():
    manifest = parse_value(VALUE)
    assert dict(manifest) == VALUE
    assert manifest.digest == digest_of(canonical(VALUE))
    assert manifest.record("gate") == TensorRecord("float32", (2, 3), 12, (CHUNK, CHUNK), True)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"shape": [2, -3]}, "integers from 0 up"),
        ({"shape": [-2, -3]}, "integers from 0 up"),
        ({"shape": [2, True]}, "integers from 0 up"),
        ({"shape": [2, "3"]}, "integers from 0 up"),
        ({"shape": 6}, "integers from 0 up"),
        ({"shape": [1] * 33}, "at most 32"),
        ({"shape": [2, 4]}, "shape"),
        ({"shape": [3, 3]}, "so 3 chunks"),
        ({"shape": [1, 6]}, "axis 0"),
        ({"shape": []}, "chunks"),
        ({"shape": [2**62, 2**62]}, "chunks"),
        ({"dtype": "float64"}, "so 4 chunks"),
        ({"dtype": "object"}, "unknown dtype"),
        ({"dtype": "float31"}, 'Did you mean "float32"'),
        ({"dtype": ["float32"]}, "unknown dtype"),
        ({"chunk_bytes": 0}, "chunk_bytes"),
        ({"chunk_bytes": -12}, "chunk_bytes"),
        ({"chunk_bytes": 2**31}, "chunk_bytes"),
        ({"chunk_bytes": True}, "chunk_bytes"),
        ({"chunks": [CHUNK]}, "so 2 chunks"),
        ({"chunks": [CHUNK] * 3}, "so 2 chunks"),
        ({"chunks": [CHUNK, CHUNK.upper()]}, "not a digest"),
        ({"chunks": [CHUNK, "../../etc/passwd"]}, "not a digest"),
        ({"chunks": [CHUNK, None]}, "not a digest"),
        ({"chunks": {"0": CHUNK, "1": CHUNK}}, "so 2 chunks"),
        ({"blocks": 1}, "neither true nor false"),
        ({"offset": 0}, "exactly"),
    ],
    ids=str,
)
def test_records_whose_parts_disagree_are_refused(changes, reason):
    with pytest.raises(ManifestProblem, match=reason):
        parse_value(with_record(**changes))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": 2}, "format is 2 and this version reads 1"),
        ({"format": True}, "format is True"),
        ({"format": "1"}, "format is '1'"),
        ({"format": None}, "format is None"),
        ({"kind": "modul"}, 'Did you mean "module"'),
        ({"kind": ["module"]}, "kind"),
        ({"interface": []}, "interface"),
        ({"tensors": None}, "tensors"),
        ({"tensors": {"": RECORD}}, "printable"),
        ({"tensors": {"a\nb": RECORD}}, "printable"),
        ({"tensors": {"x" * 257: RECORD}}, "printable"),
        ({"tensors": {"gate": [RECORD]}}, "exactly"),
        ({"lineage": {"parents": {}}}, "lineage.parents"),
        ({"lineage": {"parents": ["team/part@1"]}}, "lineage.parents"),
        ({"lineage": {"parents": [{"ref": "a/b@1", "digest": "../x", "relation": "teacher"}]}}, "digest"),
        ({"lineage": {"parents": [{"ref": 1, "digest": CHUNK, "relation": "teacher"}]}}, "lineage.parents"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_sections_of_the_wrong_kind_are_refused(changes, reason):
    with pytest.raises(ManifestProblem, match=reason):
        parse_value({**VALUE, **changes})


SOUND = canonical(VALUE).decode()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (SOUND.replace('"format":1', '"format":1,"format":1'), "'format' is there twice"),
        (SOUND.replace('"format":1', '"format":2,"format":1'), "'format' is there twice"),
        (SOUND.replace('"blocks":true', '"blocks":true,"blocks":true'), "'blocks' is there twice"),
        (SOUND.replace('"interface":{}', '"interface":{"a":NaN}'), "NaN"),
        (SOUND.replace('"interface":{}', '"interface":{"a":-Infinity}'), "-Infinity"),
        (SOUND.replace('"interface":{}', '"interface":{"a":0.5}'), "0.5"),
        (SOUND.replace('"interface":{}', '"interface":{"a":1e3}'), "1e3"),
        (SOUND.replace('"interface":{}', '"interface":{"a":-0}'), "not canonical"),
        (SOUND.replace('"interface":{}', '"interface":{"a":9223372036854775808}'), "64 bits"),
        (SOUND.replace('"interface":{}', '"interface":{"a":' + "9" * 5000 + "}"), "64 bits"),
        (SOUND.replace('"interface":{}', '"interface":{"a":"\\u0041"}'), "not canonical"),
        (SOUND.replace('"interface":{}', '"interface":{"a":"\\ud800"}'), "not UTF-8"),
        (SOUND.replace('"interface":{}', '"interface":{"b":1,"a":1}'), "not canonical"),
        (SOUND.replace(":", ": "), "not canonical"),
        (SOUND + "\n", "not canonical"),
        (SOUND[:-1], "not JSON"),
        (SOUND + SOUND, "not JSON"),
        ("", "not JSON"),
        ("[" * 200_000, "nested"),
        ('{"a":' * 200_000, "nested"),
        (SOUND.replace('"interface":{}', '"interface":{"a":' + "[" * 200 + "]" * 200 + "}"), "nested"),
        (SOUND.replace('"shape":[2,3]', '"shape":[2,' + "[" * 200 + "]" * 200 + "]"), "integers from 0"),
        (SOUND.replace('"float32"', "[" * 200 + "]" * 200), "unknown dtype a list"),
        ("[]", "not a JSON object"),
        ("null", "not a JSON object"),
    ],
    ids=lambda text: str(text)[:30],
)
def test_text_that_readers_could_read_in_two_ways_is_refused(text, reason):
    with pytest.raises(ManifestProblem, match=reason) as caught:
        parse(text.encode(), CHUNK)
    assert len(str(caught.value)) < 300


def test_bytes_that_are_not_utf_8_and_floods_are_refused():
    with pytest.raises(ManifestProblem, match="UTF-8"):
        parse(SOUND.encode().replace(b"gate", b"g\xffte"), CHUNK)
    with pytest.raises(ManifestProblem, match="at most"):
        parse(bytes(MAX_BYTES + 1), CHUNK)


def test_sections_of_a_later_version_are_kept():
    assert parse_value({**VALUE, "signatures": [1]})["signatures"] == [1]


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_bytes_make_the_parser_fail_in_any_other_way(data):
    with pytest.raises(ManifestProblem):
        parse(data, CHUNK)


@given(st.integers(0, len(SOUND) - 1), st.integers(1, 255))
def test_a_changed_byte_is_refused_or_means_something_else(position, change):
    data = bytearray(SOUND.encode())
    data[position] ^= change
    try:
        changed = parse(bytes(data), digest_of(bytes(data)))
    except ManifestProblem:
        return
    assert dict(changed) != VALUE
    assert canonical(changed) == data


texts = st.text(st.characters(codec="utf-8"), max_size=8)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


def reversed_keys(value):
    if isinstance(value, dict):
        return {key: reversed_keys(value[key]) for key in reversed(value)}
    return [reversed_keys(item) for item in value] if isinstance(value, list) else value


def without_floats(value):
    if isinstance(value, dict):
        return {key: without_floats(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_floats(item) for item in value]
    return repr(value) if isinstance(value, float) else value


@pytest.mark.slow
@given(st.dictionaries(texts, json_values, max_size=4))
def test_fields_come_back_and_their_order_does_not_count(config):
    built, data = build({"kind": "trunk", "config": config}, {})
    assert parse(data, digest_of(data)) == built
    assert built["config"] == without_floats(config)
    assert build(reversed_keys({"kind": "trunk", "config": config}), {}) == (built, data)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_is_kept_exactly_as_text(number):
    built, _ = build({"kind": "module", "claims": {"loss": number, "numpy": np.float64(number)}}, {})
    kept = float(built["claims"]["loss"])
    assert kept == number
    assert math.copysign(1, kept) == math.copysign(1, number)
    assert built["claims"]["numpy"] == built["claims"]["loss"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"kind": "module", "claims": {"loss": math.nan}}, r"claims\.loss is nan"),
        ({"kind": "module", "claims": {"loss": [0, math.inf]}}, r"claims\.loss\[1\] is inf"),
        ({"kind": "module", "claims": {"loss": np.float32(1)}}, "float32"),
        ({"kind": "module", "claims": {"steps": 2**63}}, "64-bit"),
        ({"kind": "module", "claims": {1: 2}}, "keys are text"),
        ({"kind": "module", "claims": {"x": b"raw"}}, "bytes"),
        ({"kind": "module", "claims": {"x": "\ud800"}}, "surrogate"),
        ({"kind": "module", "claim": {}}, 'Did you mean "claims"'),
        ({"kind": "module", "tensors": {}}, "no section"),
        ({"kind": "module", "format": 2}, "no section"),
        ({"kind": "expert"}, "Available: module, router, trunk"),
        ({}, "kind is None"),
    ],
    ids=lambda value: ascii(value)[:50],
)
def test_fields_that_json_cannot_hold_exactly_are_refused_by_name(registry, fields, reason):
    with pytest.raises(LabError, match=reason) as caught:
        registry.publish("team", "part", None, fields, {})
    assert str(caught.value).startswith("cannot publish team/part: ")
    assert not str(caught.value).endswith("..")
    assert registry.list() == []


def test_nesting_has_a_limit_that_writing_and_reading_share():
    def nested(depth):
        value: object = 1
        for _ in range(depth):
            value = [value]
        return {"kind": "module", "config": value}

    build(nested(MAX_DEPTH - 1), {})
    with pytest.raises(ManifestProblem, match="nested"):
        build(nested(MAX_DEPTH), {})
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(ManifestProblem, match="nested"):
        build({"kind": "module", "config": endless}, {})


def test_canonical_bytes_are_what_the_format_page_says():
    value = {"b": [1, True, None], "a": 'é\n"\\\x01\x7f', "B": {}}
    assert canonical(value) == '{"B":{},"a":"é\\n\\"\\\\\\u0001\x7f","b":[1,true,null]}'.encode()
    assert json.loads(canonical(value)) == value
