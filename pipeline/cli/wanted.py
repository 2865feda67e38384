"""What the options ask for that all verbs with rows share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

import click

from pipeline.cli.options import output_options_with
from pipeline.cli.render import Output

_NO_MORE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Wanted:
    """`fields`: columns in the order asked for, none for all. `limit`: None for all rows. `count`: only how many
    match. `exit_code`: whether to tell by it that nothing does."""

    output: Output
    fields: tuple[str, ...]
    limit: int | None
    count: bool
    exit_code: bool


def row_options(formats: Mapping[str, str] = _NO_MORE) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """--limit, --count, --exit-code and the options of the output, in the verb as `wanted: Wanted`.

    `formats`: more of them than all verbs have, by name, and what each is.
    """

    def decorate(verb: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(verb)
        def with_wanted(**given: Any) -> int:
            wanted = Wanted(**{one.name: given.pop(one.name) for one in fields(Wanted)})
            return verb(wanted=wanted, **given)

        found: Callable[..., int] = output_options_with(formats)(with_wanted)
        for option in (
            click.option("--exit-code", is_flag=True, help="Exit with 3 if nothing matches."),
            click.option("--count", is_flag=True, help="Print only how many match."),
            click.option(
                "--limit", type=click.IntRange(min=1), metavar="N", help="At most N rows; all by default."
            ),
        ):
            found = option(found)
        return found

    return decorate
