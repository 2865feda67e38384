"""The command `sockscope`: its verbs, each imported when it is called, and what a failure says and exits with."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from pipeline import __version__
from pipeline.errors import (
    ConfigError,
    Denied,
    Malformed,
    NoAggregator,
    Refused,
    SockscopeError,
    did_you_mean,
)
from pipeline.model.printable import printable

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NO_MATCH = 3
EXIT_DENIED = 4
EXIT_NO_AGGREGATOR = 5
EXIT_INTERRUPTED = 130  # 128 + SIGINT, what a shell reports

# Said once, for --help and for the man page that scripts/man makes.
EXIT_CODES: dict[int, str] = {
    0: "done",
    EXIT_FAILED: "failed; `status`: no first state is merged yet",
    EXIT_USAGE: "wrong command line or settings, or a query that is refused",
    EXIT_NO_MATCH: "nothing matches (only with --exit-code)",
    EXIT_DENIED: "not permitted",
    EXIT_NO_AGGREGATOR: "no pipeline answers at that runtime directory",
    EXIT_INTERRUPTED: "Ctrl-C",
}
COMPLETION = "_SOCKSCOPE_COMPLETE"  # the variable by which click's completion scripts call us

# verb -> (module below pipeline.cli, its help line). Imported on use: a query starts without the pipeline's code.
_VERBS: dict[str, tuple[str, str]] = {
    "run": ("run", "Run the whole pipeline in the foreground."),
    "snapshot": ("snapshot", "Walk every namespace once, without a running pipeline, and print."),
    "connections": ("connections", "Print connections with their owners."),
    "edges": ("edges", "Print which process talks to which, both ends joined."),
    "processes": ("tables", "Print the processes that hold sockets."),
    "namespaces": ("tables", "Print the network namespaces and how fresh each is."),
    "status": ("tables", "Print freshness, losses and workers; exits 0 once the first state is merged."),
    "sql": ("sql", "Ask the latest state in SQL, read-only."),
    "feed": ("feed", "Print what changes, as it changes."),
    "probe": ("probe", "Print what this host allows, and what is used instead."),
    "config": ("settings", "Print the effective settings and where each value came from."),
}


class _Verbs(click.Group):
    """A group that imports a verb's module when the verb is called, not before."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        module, _ = _VERBS[cmd_name]
        command = getattr(import_module(f"pipeline.cli.{module}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in _VERBS and not args[0].startswith("-") and not ctx.resilient_parsing:
            ctx.fail(f"there is no verb {args[0]}{did_you_mean(args[0], _VERBS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(verb, help_line) for verb, (_, help_line) in _VERBS.items()])
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), meaning) for code, meaning in EXIT_CODES.items()])


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sockscope")
def sockscope() -> None:
    """For every network namespace of this host: which process owns which connection, now."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with the code that the contract names; never a traceback."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller: `sockscope connections >&-`
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        code = _drop_stdout()
    except OSError as error:
        code = _fail(f"cannot write the output: {error.strerror}", "", EXIT_FAILED)
        _drop_stdout()
    sys.exit(code)


def _invoke(arguments: Sequence[str] | None) -> int:
    if instruction := os.environ.get(COMPLETION):
        return _complete(instruction)
    # Not sockscope.main(): it exits by itself where the reader of a pipe went away.
    given = list(sys.argv[1:] if arguments is None else arguments)
    with sockscope.make_context("sockscope", given) as context:
        result: Any = sockscope.invoke(context)
    return result if isinstance(result, int) else 0


def _run(arguments: Sequence[str] | None) -> int:
    try:
        return _invoke(arguments)
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return EXIT_USAGE
    except click.UsageError as error:
        verb = error.ctx.command_path if error.ctx else "sockscope"
        return _fail(error.format_message(), f"`{verb} --help`", EXIT_USAGE)
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except (ConfigError, Refused, Malformed) as error:
        return _fail(str(error), error.hint, EXIT_USAGE)
    except Denied as error:
        named = not error.capability or error.capability in str(error)
        missing = "" if named else f" (missing {error.capability})"
        return _fail(
            f"{error}{missing}",
            error.hint or "root, or a user with the capabilities that `sockscope probe` names",
            EXIT_DENIED,
        )
    except NoAggregator as error:
        hint = error.hint or "start one with `sockscope run`, or name its directory with --runtime-dir"
        return _fail(str(error), hint, EXIT_NO_AGGREGATOR)
    except SockscopeError as error:
        return _fail(str(error), error.hint, EXIT_FAILED)
    except BrokenPipeError:
        raise
    except OSError as error:
        return _fail(
            f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", "", EXIT_FAILED
        )
    except Exception as error:
        if sys.flags.dev_mode:
            raise
        hint = "`python3 -X dev -m pipeline.cli` with the same options, which shows where"
        return _fail(f"internal error, a bug: {type(error).__name__}: {error}", hint, EXIT_FAILED)


def _complete(instruction: str) -> int:
    """What a shell asks for: its completion script, or the words that fit. Returns: the exit code."""
    from click.shell_completion import shell_complete

    return shell_complete(sockscope, {}, "sockscope", COMPLETION, instruction)


def _fail(message: str, hint: str, code: int) -> int:
    """One sentence and what to try, on stderr. Returns: `code`."""
    text = printable(message).rstrip(".")
    click.echo(f"sockscope: {text}.{f' Try: {printable(hint)}.' if hint else ''}", err=True)
    return code


def _drop_stdout() -> int:
    """The reader went away (`| head`): that is no failure. Returns: 0."""
    # The interpreter flushes stdout once more at exit and would complain: give it somewhere to write.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
