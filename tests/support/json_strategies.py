"""Hypothesis strategies for JSON values that YAML reads the same way."""

from __future__ import annotations

from hypothesis import strategies as st

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**15), 10**15)
    | st.floats(allow_nan=False, allow_infinity=False)
    # what JSON must escape, YAML reads in its own way: U+007F and lone surrogates are not text to it
    | st.text(
        st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufeff\ufffe\uffff"), max_size=20
    ),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text("abc_- :", min_size=1, max_size=8), inner, max_size=4)
    ),
    max_leaves=20,
)
