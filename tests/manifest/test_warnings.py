"""What a manifest is warned of, though it is legal."""

from __future__ import annotations

from pathlib import Path

from manifest_folder import load_text

TEXT = """
hosts:
  a: {url: "http://a", labels: {vram: lots, site: lyon}}
  b: {url: "http://b", labels: {vram: 48GiB, site: 2}}
  c: {url: "http://c"}
models:
  - {name: big, where: vram>=24GiB}
  - {name: here, where: "site=lyon,host>a", expect: [{capabilities: [completion, tool]}, {capabilities: [fly]}]}
  - {name: silent, expect: {max_load: 90s}}
"""


def test_values_that_no_host_can_have_are_warned_of(tmp_path: Path) -> None:
    said = [warning.message for warning in load_text(tmp_path, TEXT).warnings]
    assert sorted(said) == [
        "'here:latest' is meant for no host: none has the labels that its where: asks for",
        "expect: no Ollama up to 0.33 lists the capability 'fly'",
        "expect: no Ollama up to 0.33 lists the capability 'tool': did you mean 'tools'?",
        "label 'vram' of host 'a' is no number or size, but where: compares it with one",
    ]
