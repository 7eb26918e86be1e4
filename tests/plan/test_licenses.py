"""Licenses are known by their identifier or their first line, and refused only when nothing allowed names them."""

from __future__ import annotations

import pytest

from ollamaops.plan.licenses import first_line, names_of, refused_licenses

APACHE = f"\n{' ' * 33}Apache License\n{' ' * 27}Version 2.0, January 2004\n   …"
MIT = "MIT License\n\nCopyright (c) 2026 Somebody\n\nPermission is hereby granted, free of charge, to any person"
LLAMA = "LLAMA 3.2 COMMUNITY LICENSE AGREEMENT\nLlama 3.2 Version Release Date: September 25, 2024"


GRANT = "Permission is hereby granted, free of charge, to any person obtaining a copy"
NON_COMMERCIAL = "Creative Commons Attribution-NonCommercial 4.0 International"
AGPL = "GNU AFFERO GENERAL PUBLIC LICENSE"


@pytest.mark.parametrize(
    "text, names",
    [
        (MIT, ["MIT", "MIT License"]),
        (APACHE, ["Apache-2.0", "Apache License"]),
        ("Apache License, Version 2.0", ["Apache-2.0", "Apache License, Version 2.0"]),
        ("apache-2.0", ["apache-2.0"]),
        (LLAMA, ["LLAMA 3.2 COMMUNITY LICENSE AGREEMENT"]),
        (GRANT, ["MIT", GRANT]),
        (
            "# SPDX-License-Identifier: BSD-3-Clause\n…",
            ["BSD-3-Clause", "# SPDX-License-Identifier: BSD-3-Clause"],
        ),
        ("MIT License with Commons Clause", ["MIT License with Commons Clause"]),
        ("MIT License, modified", ["MIT License, modified"]),
        (NON_COMMERCIAL, ["CC-BY-NC-4.0", NON_COMMERCIAL]),
        (f"{AGPL}\n  Version 3, 19 November 2007", ["AGPL-3.0", AGPL]),
        ("", [""]),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_a_text_is_known_by_its_identifier_and_its_first_line(text: str, names: list[str]) -> None:
    assert list(names_of(text)) == names


@pytest.mark.parametrize(
    "texts, allowed, refused",
    [
        ([MIT], ["mit"], ()),
        ([MIT], ["Apache-2.0"], ("MIT License",)),
        ([MIT, APACHE, MIT], ["GPL-3.0"], ("MIT License", "Apache License")),
        ([LLAMA], ["llama 3.*  community license*"], ()),
        ([LLAMA], ["llama 3.1 community license*"], ("LLAMA 3.2 COMMUNITY LICENSE AGREEMENT",)),
        ([LLAMA], [], ("LLAMA 3.2 COMMUNITY LICENSE AGREEMENT",)),
        (["", " \n "], [], ()),
        ([], [], ()),
    ],
)
def test_only_what_no_entry_names_is_refused(
    texts: list[str], allowed: list[str], refused: tuple[str, ...]
) -> None:
    assert refused_licenses(texts, allowed) == refused


def test_the_first_line_is_the_first_that_says_something() -> None:
    assert first_line(" \n\t\n  Some   license \n more") == "Some license"
