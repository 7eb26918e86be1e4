"""A small manifest cannot be made to cost much: what unfolds is bounded, and nothing outside is searched."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from manifest_folder import load_text

from ollamaops.errors import ManifestError
from ollamaops.manifest.merge import MAX_HOSTS
from ollamaops.manifest.variables import MAX_FILLED


def problems(folder: Path, text: str) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        load_text(folder, text)
    return [problem.message for problem in caught.value.problems]


def test_variables_that_hold_each_other_ten_times_are_refused_once(tmp_path: Path) -> None:
    """Thirty of them would unfold to 10^30 characters."""
    names = [f"v{number}" for number in range(30)]
    table = "vars:\n  v0: abcdefghij\n" + "\n".join(
        f"  {name}: '{('${vars.' + before + '}') * 10}'" for before, name in pairwise(names)
    )
    found = problems(tmp_path, f"{table}\nmodels: [{{name: m, from: a, system: '${{vars.v29}}'}}]\n")
    assert found == [f"variables unfold to more than {MAX_FILLED} characters"]


def test_many_uses_of_one_large_variable_count_together(tmp_path: Path) -> None:
    large = "x" * (MAX_FILLED // 64)
    uses = "\n".join(f"  - {{name: m{number}, from: a, system: 's ${{vars.v}}'}}" for number in range(70))
    assert problems(tmp_path, f"vars: {{v: {large}}}\nmodels:\n{uses}\n") == [
        f"variables unfold to more than {MAX_FILLED} characters"
    ]


def test_ranges_unfold_to_so_many_hosts_and_no_more(tmp_path: Path) -> None:
    ranges = "\n".join(
        f"  h{number}-[0:999]: {{url: 'http://h{number}-{{}}'}}" for number in range(MAX_HOSTS // 1000 + 2)
    )
    assert problems(tmp_path, f"hosts:\n{ranges}\nmodels: [a]\n") == [
        f"ranges unfold to more than {MAX_HOSTS} hosts"
    ]


def test_a_glob_looks_into_no_folder_that_a_link_puts_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    (outside / "deep").mkdir(parents=True)
    (outside / "deep" / "x.yaml").write_text("models: [from-outside]\n")
    (inside / "models" / "more").mkdir(parents=True)
    (inside / "models" / "more" / "x.yaml").write_text("models: [mine]\n")
    (inside / "models" / "link").symlink_to(outside)
    looked: list[Path] = []
    look = Path.iterdir

    def watched(path: Path) -> Iterator[Path]:
        looked.append(path)
        return look(path)

    monkeypatch.setattr(Path, "iterdir", watched)
    for pattern in ("models/**/*.yaml", "models/*/*.yaml", "**/x.yaml"):
        manifest = load_text(inside, f"include: ['{pattern}']\nmodels: []\n")
        assert [str(spec.name) for spec in manifest.models] == ["mine:latest"]
    assert looked
    assert all(path.resolve().is_relative_to(inside) for path in looked)
