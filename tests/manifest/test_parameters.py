"""The types of parameters, and when two values are the same."""

from __future__ import annotations

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollamaops.errors import InvalidValue
from ollamaops.manifest.parameters import (
    GONE_PARAMETERS,
    PARAMETER_TYPES,
    check_parameter,
    normalize_parameter,
    parse_parameter,
    same_parameter,
)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("num_ctx", "4096", 4096),
        ("seed", "+07", 7),
        ("num_predict", "-1", -1),
        ("seed", str(2**63 - 1), 2**63 - 1),
        ("temperature", "0.7", 0.7),
        ("temperature", "1", 1.0),
        ("top_p", ".5", 0.5),
        ("min_p", "5.", 5.0),
        ("top_p", "1e-05", 1e-05),
        ("top_p", "0.12345678901", 0.12345679),
        ("typical_p", "-0.0", -0.0),
        ("temperature", "3.4028235e38", 3.4028235e38),
        ("use_mmap", "T", True),
        ("use_mmap", "0", False),
        ("stop", "4096", ("4096",)),
        ("stop", "", ("",)),
    ],
)
def test_a_parameter_is_read_by_its_type(name: str, text: str, value: object) -> None:
    parsed = parse_parameter(name, text)
    assert (parsed, type(parsed)) == (value, type(value))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("num_ctx", "4_096", "invalid int value [4_096]"),
        ("num_ctx", "4096.0", "invalid int value [4096.0]"),
        ("num_ctx", "", "invalid int value []"),
        ("num_ctx", "٣", "invalid int value [٣]"),
        ("seed", str(2**63), f"invalid int value [{2**63}]"),
        ("seed", "9" * 5000, f"invalid int value [{'9' * 5000}]"),
        ("temperature", "hot", "invalid float value [hot]"),
        ("temperature", "inf", "invalid float value [inf]"),
        ("temperature", "1e39", "invalid float value [1e39]"),
        ("temperature", "1e999", "invalid float value [1e999]"),
        ("temperature", "0.7 # warm", "invalid float value [0.7 # warm]"),
        ("use_mmap", "yes", "invalid bool value [yes]"),
        ("STOP", "x", "unknown parameter 'STOP'"),
        ("mirostat", "1", "unknown parameter 'mirostat'"),
    ],
)
def test_a_wrong_parameter_is_refused_in_ollamas_words(name: str, text: str, message: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        parse_parameter(name, text)
    assert str(caught.value) == message


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_a_float_is_the_shortest_that_is_the_same_float32(value: float) -> None:
    sent = normalize_parameter("temperature", value)
    assert isinstance(sent, float)
    assert struct.pack("f", sent) == struct.pack("f", value)
    assert len(repr(sent)) <= len(repr(value))


@pytest.mark.parametrize(
    ("name", "value", "sent"),
    [
        ("num_ctx", 4096, 4096),
        ("num_ctx", "4096", 4096),
        ("num_ctx", 1e6, 1000000),
        ("temperature", 1, 1.0),
        ("temperature", "0.7", 0.7),
        ("temperature", 0.1 + 0.2, 0.3),
        ("use_mmap", True, True),
        ("use_mmap", "false", False),
        ("stop", "x", ("x",)),
        ("stop", ["x", "y"], ("x", "y")),
        ("stop", [], ()),
        ("stop", None, None),
        ("num_ctx", None, None),
        ("house_made", [1, "x"], InvalidValue),
        ("house_made", ["x"], ("x",)),
        ("house_made", True, True),
        ("house_made", {"a": 1}, InvalidValue),
    ],
)
def test_a_declared_value_is_sent_in_the_type_of_its_parameter(
    name: str, value: object, sent: object
) -> None:
    if sent is InvalidValue:
        with pytest.raises(InvalidValue, match="takes a number, true, false, text or a list of texts, not"):
            normalize_parameter(name, value)
    else:
        assert repr(normalize_parameter(name, value)) == repr(sent)


@pytest.mark.parametrize("name", PARAMETER_TYPES)
def test_every_parameter_takes_a_value_of_its_type_and_null(name: str) -> None:
    value = {"int": 1, "float": 0.5, "bool": True, "list": ["x"]}[PARAMETER_TYPES[name]]
    assert (check_parameter(name, value), check_parameter(name, None)) == (None, None)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_ctx", 1.5, "parameter 'num_ctx' takes a whole number, not 1.5"),
        ("num_ctx", 1e300, f"parameter 'num_ctx' takes a whole number, not {1e300}"),
        ("num_ctx", "1e3", "parameter 'num_ctx' takes a whole number, not \"1e3\""),
        ("num_ctx", True, "parameter 'num_ctx' takes a whole number, not true"),
        ("num_ctx", [1], "parameter 'num_ctx' takes a whole number, not [1]"),
        ("seed", 2**63, f"parameter 'seed' takes a whole number, not {2**63}"),
        ("temperature", "hot", "parameter 'temperature' takes a number, not \"hot\""),
        ("temperature", math.inf, "parameter 'temperature' takes a number, not Infinity"),
        ("temperature", math.nan, "parameter 'temperature' takes a number, not NaN"),
        ("temperature", 10**400, f"parameter 'temperature' takes a number, not 1{'0' * 254}…"),
        ("temperature", False, "parameter 'temperature' takes a number, not false"),
        ("use_mmap", 1, "parameter 'use_mmap' takes true or false, not 1"),
        ("stop", 7, "parameter 'stop' takes text or a list of texts, not 7"),
        ("stop", ["a", 7], "parameter 'stop' takes text or a list of texts, not [\"a\", 7]"),
        ("temprature", 0.7, "unknown parameter 'temprature'"),
        ("tfs_z", 1, "parameter 'tfs_z' was removed: Ollama 0.5.1 was the last version to have it"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_wanted(name: str, value: object, message: str) -> None:
    assert check_parameter(name, value) == message


def test_no_parameter_is_both_known_and_gone() -> None:
    assert set(PARAMETER_TYPES) & set(GONE_PARAMETERS) == set()


@pytest.mark.parametrize(
    ("name", "a", "b", "same"),
    [
        ("temperature", "0.7", 0.7, True),
        ("temperature", 0.7, struct.unpack("f", struct.pack("f", 0.7))[0], True),
        ("temperature", 1, 1.0, True),
        ("temperature", 0.7, 0.70001, False),
        ("temperature", "hot", "hot", True),
        ("num_ctx", 1000000, 1e06, True),
        ("num_ctx", "1.048576e+06", 1048576, True),
        ("num_ctx", 4096, 4096.5, False),
        ("seed", 2**60 + 1, float(2**60 + 1), True),
        ("seed", 1, True, False),
        ("seed", None, 0, False),
        ("seed", None, None, True),
        ("seed", 10**400, 1, False),
        ("use_mmap", "true", True, True),
        ("use_mmap", True, 1, False),
        ("stop", "x", ["x"], True),
        ("stop", ["a", "b"], ("a", "b"), True),
        ("stop", ["a", "b"], ["b", "a"], False),
        ("stop", [1], ["1"], False),
        ("house_made", 1, 1.0, True),
        ("house_made", ["x"], ("x",), True),
        ("house_made", "1", 1, False),
    ],
)
def test_parameters_are_compared_by_what_they_mean_to_a_server(
    name: str, a: object, b: object, same: bool
) -> None:
    assert same_parameter(name, a, b) is same_parameter(name, b, a) is same


_values = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.lists(st.text())
)


@given(st.sampled_from([*PARAMETER_TYPES, "house_made"]), _values)
def test_a_value_is_the_same_as_itself_and_as_what_is_sent_for_it(name: str, value: object) -> None:
    assert same_parameter(name, value, value)
    try:
        sent = normalize_parameter(name, value)
    except InvalidValue:
        return
    assert same_parameter(name, sent, value)
    assert normalize_parameter(name, sent) == sent
