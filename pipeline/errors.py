"""What can go wrong, sorted once where the system call is made; nothing above sees an errno.

Every class is also a child of the builtin that fits, so a caller who knows only builtins still catches it.
`hint` says what a person can do about it: likely cause and the command to try.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SockscopeError(Exception):
    """Any error of ours. `str(error)` is one sentence; `hint` what to try, or empty."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Vanished(SockscopeError, ProcessLookupError):
    """The process, thread, namespace or file was there and is gone: skip it, count it."""


class Denied(SockscopeError, PermissionError):
    """The kernel refuses. `capability` names what is missing, e.g. CAP_SYS_PTRACE, or is empty."""

    def __init__(self, message: str, capability: str = "", hint: str = "") -> None:
        super().__init__(message, hint)
        self.capability = capability


class Unsupported(SockscopeError, NotImplementedError):
    """This kernel or host lacks the feature as a whole: use the fallback, say so once."""


class EventsLost(SockscopeError, BufferError):
    """The kernel dropped events before we read them. `count` is None where it does not say how many."""

    def __init__(self, message: str, count: int | None = None, hint: str = "") -> None:
        super().__init__(message, hint)
        self.count = count


class Malformed(SockscopeError, ValueError):
    """Text or bytes that do not decode; the message says where and what."""


class Refused(SockscopeError, ValueError):
    """A request or a command line that we do not carry out. `code` is the protocol's word for it."""

    def __init__(self, message: str, code: str = "bad_request", hint: str = "") -> None:
        super().__init__(message, hint)
        self.code = code


class ConfigError(SockscopeError, ValueError):
    """A configuration that cannot be used: names key, where it was set, allowed range, nearest key."""


class NoAggregator(SockscopeError, ConnectionError):
    """Nobody answers at that runtime directory."""


class Taken(SockscopeError, FileExistsError):
    """Another instance holds the runtime directory."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown word: the nearest known one, or nothing where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.3)
    return f"; the nearest known one is {near[0]}" if near else ""
