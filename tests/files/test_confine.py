"""No path named in a manifest leaves the manifest's folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import shared_fixtures

from ollamaops.errors import InvalidValue
from ollamaops.files.confine import confine


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A manifest's folder with a file, links that stay inside and links that leave, beside a secret."""
    root = tmp_path / "manifests"
    (root / "weights").mkdir(parents=True)
    (root / "weights" / "a.gguf").write_text("a")
    (tmp_path / "secret").write_text("s")
    (root / "inside.gguf").symlink_to("weights/a.gguf")
    (root / "outside.gguf").symlink_to("../secret")
    (root / "up").symlink_to("..")
    (root / "loop").symlink_to("loop")
    (tmp_path / "manifests-2").mkdir()
    return root


@pytest.mark.parametrize(
    "relative",
    [
        "weights/a.gguf",
        "./weights/a.gguf",
        "weights",
        ".",
        "weights/../weights/a.gguf",
        "../manifests/weights/a.gguf",
        "inside.gguf",
        "not/there/yet",
        "a name with spaces",
        "..weights",
        "loop",
        "weights/~",
    ],
)
def test_a_path_in_the_folder_is_taken_as_written(root: Path, relative: str) -> None:
    assert confine(root, relative) == root / relative


@pytest.mark.parametrize(
    "relative, why",
    [
        ("..", "its '..' lead out of it"),
        ("../secret", "its '..' lead out of it"),
        ("weights/../../secret", "its '..' lead out of it"),
        ("../manifests-2", "its '..' lead out of it"),
        ("/etc/passwd", "it is absolute"),
        ("~", "it begins with '~', a home folder"),
        ("~/models/a.gguf", "it begins with '~', a home folder"),
        ("~root/a.gguf", "it begins with '~', a home folder"),
        ("outside.gguf", "a symbolic link leads to {outside}/secret"),
        ("up/secret", "a symbolic link leads to {outside}/secret"),
        ("up", "a symbolic link leads to {outside}"),
        ("up/not-there", "a symbolic link leads to {outside}/not-there"),
    ],
)
def test_a_path_that_leaves_the_folder_is_refused_with_the_way_out(
    root: Path, relative: str, why: str
) -> None:
    with pytest.raises(InvalidValue) as caught:
        confine(root, relative)
    expected = f"{relative!r} is outside the manifest's folder: {why.format(outside=root.parent.resolve())}"
    assert str(caught.value) == expected
    assert caught.value.hint == f"keep it below {root}, or allow it with --allow-outside"


@pytest.mark.parametrize("relative", ["../secret", "outside.gguf", "up/secret", "weights/a.gguf"])
def test_allow_outside_lifts_the_rule(root: Path, relative: str) -> None:
    assert confine(root, relative, allow_outside=True) == root / relative


def test_allow_outside_takes_absolute_and_home_paths(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert confine(root, "/etc/passwd", allow_outside=True) == Path("/etc/passwd")
    assert confine(root, "~/a.gguf", allow_outside=True) == Path("/home/me/a.gguf")


def test_the_home_of_an_unknown_user_is_named(root: Path) -> None:
    with pytest.raises(InvalidValue, match="'~no-such-user/x' cannot be read: no such user"):
        confine(root, "~no-such-user/x", allow_outside=True)


@pytest.mark.parametrize("allow_outside", [False, True])
@pytest.mark.parametrize(
    "relative, message",
    [
        ("", "a path is empty"),
        ("  ", "a path is empty"),
        ("a\0b", r"'a\x00b' is not a path: it has characters that no file name can have"),
        ("\ud800", r"'\ud800' is not a path: it has characters that no file name can have"),
    ],
)
def test_what_cannot_be_a_path_is_refused(
    root: Path, relative: str, message: str, allow_outside: bool
) -> None:
    with pytest.raises(InvalidValue) as caught:
        confine(root, relative, allow_outside=allow_outside)
    assert str(caught.value) == message


def test_the_folder_itself_may_be_reached_through_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    assert confine(tmp_path / "link", "inside.gguf") == tmp_path / "link" / "inside.gguf"
    with pytest.raises(InvalidValue):
        confine(tmp_path / "link", "outside.gguf")


def test_a_relative_folder_is_the_one_below_the_working_directory(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root.parent)
    assert confine(Path("manifests"), "weights/a.gguf") == root / "weights" / "a.gguf"


@shared_fixtures()
@given(
    parts=st.lists(
        st.one_of(
            st.sampled_from(["..", ".", "", "weights", "up", "outside.gguf", "inside.gguf", "secret", "~"]),
            st.text(max_size=3),
        ),
        max_size=8,
    )
)
def test_no_spelling_leads_out_of_the_folder(root: Path, parts: list[str]) -> None:
    try:
        path = confine(root, "/".join(parts))
    except InvalidValue:
        return
    assert Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))
