"""Ranges, addresses, selectors, and which model goes where."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollamaops.errors import InvalidValue
from ollamaops.manifest.hosts import (
    absent_on,
    expand_range,
    labels_of,
    matches,
    models_on,
    parse_ollama_host,
    parse_selector,
    parse_url,
    select_hosts,
)
from ollamaops.manifest.types import AbsentSpec, HostSpec, Manifest, ModelSpec, Pull, Requirement
from ollamaops.names import ModelName, NamePattern


def a_host(name: str, **labels: str) -> HostSpec:
    return HostSpec(name=name, url=f"http://{name}:11434", labels=labels)


def a_model(name: str, where: str = "") -> ModelSpec:
    parsed = ModelName.parse(name)
    return ModelSpec(name=parsed, source=Pull(ref=parsed), where=parse_selector(where))


def a_manifest(
    *hosts: HostSpec, models: tuple[ModelSpec, ...] = (), absent: tuple[AbsentSpec, ...] = ()
) -> Manifest:
    return Manifest(root=Path("/m"), files=("m.yaml",), hosts=hosts, models=models, absent=absent)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("gpu-1", ["gpu-1"]),
        ("lab-[01:03]", ["lab-01", "lab-02", "lab-03"]),
        ("lab-[8:11]-x", ["lab-8-x", "lab-9-x", "lab-10-x", "lab-11-x"]),
        ("[098:101]", ["098", "099", "100", "101"]),
        ("a[5:5]", ["a5"]),
        ("a[0:1]", ["a0", "a1"]),
    ],
)
def test_a_range_stands_for_its_hosts(pattern: str, names: list[str]) -> None:
    assert [name for name, _ in expand_range(pattern)] == names


def test_a_range_gives_the_number_as_it_stands_in_the_name() -> None:
    assert [number for _, number in expand_range("lab-[09:10]")] == ["09", "10"]
    assert expand_range("gpu") == (("gpu", ""),)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("", "'' is not a host name"),
        ("a b", "'a b' is not a host name"),
        ("a[a:b]", "'a[a:b]' is not a host name"),
        ("a[1:2][3:4]", "'a[1:2][3:4]' is not a host name"),
        ("a[3:1]", "'a[3:1]' has no hosts: 3 is more than 1"),
        ("a[1:1001]", "'a[1:1001]' has 1001 hosts: 1000 are allowed in one range"),
    ],
)
def test_a_range_that_cannot_be_is_refused(pattern: str, said: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        expand_range(pattern)
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("", "http://127.0.0.1:11434"),
        ("1.2.3.4", "http://1.2.3.4:11434"),
        ("1.2.3.4:", "http://1.2.3.4:11434"),
        ("gpu.lan:1234", "http://gpu.lan:1234"),
        (":1234", "http://127.0.0.1:1234"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:80", "http://127.0.0.1:80"),
        ("http://1.2.3.4", "http://1.2.3.4:80"),
        ("http://1.2.3.4:1", "http://1.2.3.4:1"),
        ("https://gpu.lan", "https://gpu.lan:443"),
        ("https://gpu.lan/a/b/", "https://gpu.lan:443/a/b"),
        ("gpu.lan/a", "http://gpu.lan:11434/a"),
        ("::1", "http://[::1]:11434"),
        ("[::1]", "http://[::1]:11434"),
        ("[::1]:80", "http://[::1]:80"),
        ("[::]:11434", "http://[::1]:11434"),
        ("[0:0::0001]", "http://[::1]:11434"),
        ("gpu.lan:99999", "http://gpu.lan:11434"),
        ("gpu.lan:-1", "http://gpu.lan:11434"),
        ("gpu.lan:x", "http://gpu.lan:11434"),
        ("https://gpu.lan:x", "https://gpu.lan:443"),
        (' "gpu.lan" ', "http://gpu.lan:11434"),
        ("' gpu.lan:1 '", "http://gpu.lan:1"),
        ("HTTP://GPU.lan", "http://gpu.lan:80"),
    ],
)
def test_ollama_host_is_read_as_ollama_reads_it(text: str, url: str) -> None:
    assert parse_ollama_host(text) == url
    assert parse_url(url) == url


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tcp://hunter2", "not a URL that begins with http:// or https://"),
        ("http://ops:hunter2@x", "a URL with a user or a password in it"),
        ("hunter2 x", "not the URL of a server"),
        ("http://x?hunter2", "not the URL of a server"),
        ("http://[hunter2]", "not the URL of a server"),
        ("[:::::]", "not the URL of a server: the IPv6 address is not valid"),
    ],
)
def test_a_bad_address_is_refused_without_repeating_it(text: str, said: str) -> None:
    for parse in (parse_url, parse_ollama_host):
        with pytest.raises(InvalidValue) as caught:
            parse(text)
        assert str(caught.value) == said
        assert "hunter2" not in str(caught.value.hint)


@pytest.mark.parametrize("text", ["", "http://", "https:///x", "x:99999", "x:a"])
def test_an_address_in_a_manifest_must_be_exact(text: str) -> None:
    with pytest.raises(InvalidValue):
        parse_url(text)


@pytest.mark.parametrize(
    ("text", "selector"),
    [
        ("", ()),
        ("  ", ()),
        ("gpu", (Requirement("gpu", "exists"),)),
        ("! gpu", (Requirement("gpu", "absent"),)),
        ("a=b", (Requirement("a", "=", ("b",)),)),
        ("a == b", (Requirement("a", "=", ("b",)),)),
        (
            "vram>=24GiB,site!=lyon",
            (Requirement("vram", ">=", ("24GiB",)), Requirement("site", "!=", ("lyon",))),
        ),
        (
            " a<1 , b<=2,c>3 ",
            (Requirement("a", "<", ("1",)), Requirement("b", "<=", ("2",)), Requirement("c", ">", ("3",))),
        ),
        (
            "site in (paris, lyon),x notin (a)",
            (Requirement("site", "in", ("paris", "lyon")), Requirement("x", "notin", ("a",))),
        ),
    ],
)
def test_a_selector_is_a_list_of_conditions(text: str, selector: tuple[Requirement, ...]) -> None:
    assert parse_selector(text) == selector


@pytest.mark.parametrize("text", ["a,,b", "a=", "=b", "a b", "a in ()", "a in (b", "!", "a>>b", "a=b=c", ","])
def test_a_bad_selector_is_refused(text: str) -> None:
    with pytest.raises(InvalidValue, match="is not a label selector"):
        parse_selector(text)


LABELS = {"vram": "48GiB", "site": "paris", "gpus": "10", "cost": "1.50", "nan": "nan", "huge": "9" * 400}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("", True),
        ("vram", True),
        ("tpu", False),
        ("!tpu", True),
        ("!vram", False),
        ("vram>=24GiB", True),
        ("vram>=49152MiB,vram<=48GiB,vram=51539607552", True),
        ("vram>48GiB", False),
        ("vram<100GB", True),
        ("gpus>9", True),
        ("gpus<9", False),
        ("cost=1.5", True),
        ("cost>-3", True),
        ("site=paris", True),
        ("site=Paris", False),
        ("site!=lyon", True),
        ("site!=paris", False),
        ("tpu!=v5", True),
        ("site in (lyon, paris)", True),
        ("site in (lyon)", False),
        ("tpu in (v5)", False),
        ("site notin (lyon)", True),
        ("site notin (lyon, paris)", False),
        ("tpu notin (v5)", True),
        ("tpu>=1", False),
        ("site>lyon", True),
        ("site<8GiB", False),
        ("nan=nan", True),
        ("huge>=1GiB", False),  # more than any size can be
        ("vram>=24GiB,site=lyon", False),
    ],
)
def test_labels_are_compared_as_numbers_sizes_or_text(text: str, holds: bool) -> None:
    assert matches(parse_selector(text), LABELS) is holds


def test_every_host_is_labelled_with_its_name_unless_it_says_otherwise() -> None:
    assert labels_of(a_host("gpu-1", site="paris")) == {"host": "gpu-1", "site": "paris"}
    assert labels_of(a_host("gpu-1", host="other")) == {"host": "other"}


def test_models_go_where_their_selector_says() -> None:
    big, small = a_host("big", vram="48GiB"), a_host("small", vram="8GiB")
    everywhere, large, named = a_model("a"), a_model("b", "vram>=24GiB"), a_model("c", "host=small")
    gone = AbsentSpec(pattern=NamePattern.parse("old:*"), where=parse_selector("vram<24GiB"))
    manifest = a_manifest(big, small, models=(everywhere, large, named), absent=(gone,))
    assert models_on(big, manifest) == (everywhere, large)
    assert models_on(small, manifest) == (everywhere, named)
    assert absent_on(big, manifest) == ()
    assert absent_on(small, manifest) == (gone,)


def test_hosts_are_chosen_by_any_of_the_globs_and_by_labels() -> None:
    one, two, three = (
        a_host("gpu-1", site="paris"),
        a_host("gpu-2", site="lyon"),
        a_host("cpu-1", site="paris"),
    )
    manifest = a_manifest(one, two, three)
    assert select_hosts(manifest, (), ()) == (one, two, three)
    assert select_hosts(manifest, ("gpu-*",), ()) == (one, two)
    assert select_hosts(manifest, ("gpu-2", "cpu-?"), ()) == (two, three)
    assert select_hosts(manifest, ("gpu-*",), parse_selector("site=paris")) == (one,)
    assert select_hosts(manifest, ("tpu-*",), ()) == ()


@given(st.text(max_size=40))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    for parse in (parse_url, parse_ollama_host):
        try:
            url = parse(text)
        except InvalidValue:
            continue
        assert parse_url(url) == url


@given(
    st.text(alphabet="ab1.GiB<>=!,() in", max_size=30),
    st.dictionaries(st.sampled_from("ab"), st.text(max_size=5)),
)
def test_any_text_is_a_selector_or_refused(text: str, labels: dict[str, str]) -> None:
    try:
        selector = parse_selector(text)
    except InvalidValue:
        return
    assert matches(selector, labels) in (True, False)


@given(st.integers(0, 99_999), st.integers(0, 200))
def test_a_range_has_every_number_once(first: int, count: int) -> None:
    names = expand_range(f"h[{first:04d}:{first + count}]")
    assert [int(number) for _, number in names] == list(range(first, first + count + 1))


def test_a_word_is_neither_more_nor_less_than_a_size() -> None:
    asked = ("vram>=24GiB", "vram<24GiB", "vram>1", "vram<=1")
    assert not any(matches(parse_selector(text), {"vram": "lots"}) for text in asked)
    assert matches(parse_selector("vram!=24GiB,vram=lots,vram>little"), {"vram": "lots"})
