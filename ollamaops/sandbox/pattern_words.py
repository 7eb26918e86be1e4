"""Regular expression → a text that it finds: for `pattern` in a JSON Schema.

Reads the common core (literals, classes, groups, alternatives, repeats) and draws from it; lookarounds and back
references are not understood, for which `text_matching` raises ValueError. An unanchored pattern is satisfied by a
text that is the match and nothing else.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass

from ollamaops.sandbox.seeded_choice import SeededChoice

_DIGITS = string.digits
_WORD = string.ascii_lowercase + _DIGITS
_ESCAPED_CLASS = {"d": _DIGITS, "w": _WORD, "s": " ", "D": string.ascii_lowercase, "W": "-", "S": _WORD}
_ESCAPED_CHAR = {"n": "\n", "t": "\t", "r": "\r"}
_PRINTABLE = string.ascii_letters + _DIGITS + " -_.:/+@#"
_REPEAT = re.compile(r"\{(\d+)(,(\d*))?\}")
_MORE = 3


def text_matching(pattern: str, choice: SeededChoice) -> str:
    """A text in which `re.search(pattern)` finds a match; ValueError when none was drawn."""
    reader = _Reader(pattern)
    text = reader.alternatives(choice)
    if reader.place != len(pattern) or not re.search(pattern, text):
        raise ValueError(f"no text found for pattern {pattern}")
    return text


@dataclass
class _Reader:
    """Recursive descent over the pattern; each rule returns the text drawn for what it read."""

    pattern: str
    place: int = 0

    def alternatives(self, choice: SeededChoice) -> str:
        drawn = [self.sequence(choice.branch("alternative", 0))]
        while self._took("|"):
            drawn.append(self.sequence(choice.branch("alternative", len(drawn))))
        return choice.branch("which").one_of(drawn)

    def sequence(self, choice: SeededChoice) -> str:
        text = ""
        while self.place < len(self.pattern) and self._peek() not in "|)":
            text += self._repeated(choice.branch(self.place))
        return text

    def _repeated(self, choice: SeededChoice) -> str:
        """One atom as often as its repeat says, drawn anew each time."""
        start = self.place
        first = self._atom(choice.branch(0))
        end = self.place
        low, high = self._repeat()
        after = self.place
        times = choice.between(low, high)
        text = first if times else ""
        for number in range(1, times):
            self.place = start
            text += self._atom(choice.branch(number))
            assert self.place == end
        self.place = after
        return text

    def _repeat(self) -> tuple[int, int]:
        bounds = (1, 1)
        if counted := _REPEAT.match(self.pattern, self.place):
            self.place = counted.end()
            low = int(counted[1])
            bounds = (low, low if counted[2] is None else int(counted[3]) if counted[3] else low + _MORE)
        elif self._peek() and self._peek() in "*+?":
            bounds = {"*": (0, _MORE), "+": (1, 1 + _MORE), "?": (0, 1)}[self._next()]
        else:
            return bounds
        if self._peek() in ("?", "+"):
            self._next()
        return bounds

    def _atom(self, choice: SeededChoice) -> str:
        match self._next():
            case "(":
                return self._group(choice)
            case "[":
                return choice.one_of(self._class())
            case "\\":
                return self._escape(choice)
            case ".":
                return choice.one_of(_WORD)
            case "^" | "$":
                return ""
            case char:
                return char

    def _group(self, choice: SeededChoice) -> str:
        if self._took("?"):
            if self._took("P<") or self._took("<"):
                self.place = self.pattern.index(">", self.place) + 1
            elif not self._took(":"):
                raise ValueError(f"group {self.pattern[self.place :]} is not understood")
        text = self.alternatives(choice)
        if not self._took(")"):
            raise ValueError(f"pattern {self.pattern} has an open group")
        return text

    def _escape(self, choice: SeededChoice) -> str:
        char = self._next()
        if char in _ESCAPED_CLASS:
            return choice.one_of(_ESCAPED_CLASS[char])
        if char in "bBAZz":
            return ""
        if char.isdigit():
            raise ValueError("back references are not understood")
        return _ESCAPED_CHAR.get(char, char)

    def _class(self) -> str:
        negated = self._took("^")
        chars = self._next() if self._peek() == "]" else ""
        while not self._took("]"):
            chars += self._class_part()
        if negated:
            chars = "".join(char for char in _PRINTABLE if char not in chars)
        return chars

    def _class_part(self) -> str:
        first = self._next()
        if first == "\\":
            char = self._next()
            if char in _ESCAPED_CLASS:
                return _ESCAPED_CLASS[char]
            first = _ESCAPED_CHAR.get(char, char)
        if self._peek() == "-" and self.pattern[self.place + 1 : self.place + 2] not in ("]", ""):
            self._next()
            last = self._next()
            last = self._next() if last == "\\" else last
            return "".join(map(chr, range(ord(first), ord(last) + 1)))
        return first

    def _peek(self) -> str:
        return self.pattern[self.place : self.place + 1]

    def _next(self) -> str:
        if self.place >= len(self.pattern):
            raise ValueError(f"pattern {self.pattern} ends too early")
        self.place += 1
        return self.pattern[self.place - 1]

    def _took(self, text: str) -> bool:
        if self.pattern.startswith(text, self.place):
            self.place += len(text)
            return True
        return False
