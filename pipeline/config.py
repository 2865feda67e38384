"""Settings: what may be set, within which range, and where each value came from.

A value is taken from a flag, else from the environment (SOCKSCOPE_<SECTION>_<KEY>, and SOCKSCOPE_RUNTIME_DIR
for agent.runtime_dir; HOST_PROC for agent.proc_root), else from the TOML file, else it is the default.
configs/default.toml says what each key means; a test keeps it equal to this module.
"""

from __future__ import annotations

import grp
import math
import os
import tomllib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

import msgspec
from msgspec import Meta

from pipeline.errors import ConfigError, did_you_mean

ENV_PREFIX = "SOCKSCOPE_"
_ENV_ALIASES = {"SOCKSCOPE_RUNTIME_DIR": "agent.runtime_dir"}
# What other programs that watch a host from a container take for the same; ours has the last word.
_ENV_OF_OTHERS = {"HOST_PROC": "agent.proc_root"}

# sun_path of a unix socket holds 107 bytes and a NUL, unix(7); the names in the directory need up to 17.
_RUNTIME_DIR_MAX_BYTES = 90

LogLevel = Literal["debug", "info", "warning", "error"]
TableSource = Literal["auto", "sock_diag", "proc"]
EbpfMode = Literal["off", "auto", "require"]
ConntrackMode = Literal["auto", "off"]
Seconds = Annotated[float, Meta(ge=0.05, le=3600)]
Milliseconds = Annotated[float, Meta(ge=1, le=60_000)]


class Agent(msgspec.Struct, frozen=True):
    """[agent]: where the pipeline lives and how it speaks.

    Empty: `group` the user's own, `host_name` the kernel's, `log_file` stderr.
    """

    runtime_dir: Annotated[str, Meta(min_length=1)] = "/run/sockscope"
    group: str = ""
    host_name: str = ""
    proc_root: Annotated[str, Meta(min_length=1)] = "/proc"
    log_level: LogLevel = "info"
    log_file: str = ""


class Discovery(msgspec.Struct, frozen=True):
    """[discovery]: which namespaces are found. `include`, `exclude`: shell patterns on a name or an inode."""

    interval_s: Seconds = 1.0
    mount_dirs: tuple[str, ...] = ("/run/netns", "/run/docker/netns")
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


class Walk(msgspec.Struct, frozen=True):
    """[walk]: the pace of one pass over a namespace's descriptors."""

    fd_block: Annotated[int, Meta(ge=1, le=100_000)] = 300
    period_initial_ms: Milliseconds = 50.0
    period_min_ms: Milliseconds = 50.0
    period_max_ms: Milliseconds = 500.0
    target_s: Seconds = 10.0
    late_factor: Annotated[float, Meta(ge=1, le=100)] = 1.5


class Tables(msgspec.Struct, frozen=True):
    """[tables]: how, and how often at least and at most, a namespace's socket tables are read."""

    source: TableSource = "auto"
    interval_s: Seconds = 1.0
    idle_interval_s: Seconds = 5.0
    full_interval_s: Seconds = 10.0
    tcp_info: bool = False


class Budget(msgspec.Struct, frozen=True):
    """[budget]: CPU of the pipeline without query work, in percent of one core."""

    cpu_percent: Annotated[float, Meta(ge=0.1, le=10_000)] = 5.0


class Workers(msgspec.Struct, frozen=True):
    """[workers]: the processes that walk. `restart_backoff_s`: the first wait, doubled by each failure."""

    max: Annotated[int, Meta(ge=1, le=4096)] = 64
    restart_backoff_s: Seconds = 0.5
    stale_after_s: Seconds = 15.0


class Query(msgspec.Struct, frozen=True):
    """[query]: limits of one request. `sql_timeout_s` holds for every op."""

    sql_timeout_s: Seconds = 5.0
    max_request_bytes: Annotated[int, Meta(ge=1024, le=64 * 1024 * 1024)] = 1024 * 1024


class Feed(msgspec.Struct, frozen=True):
    """[feed]: what subscribers get. `high_water_mark`: messages kept for each of them."""

    heartbeat_s: Seconds = 1.0
    high_water_mark: Annotated[int, Meta(ge=16, le=100_000)] = 1000


class Closed(msgspec.Struct, frozen=True):
    """[closed]: how long, and how many, connections are remembered that have ended."""

    retention_s: Seconds = 60.0
    max_rows: Annotated[int, Meta(ge=1, le=1_000_000)] = 20_000


class Ebpf(msgspec.Struct, frozen=True):
    """[ebpf]: programs in the kernel instead of walks. `ring_bytes`: of events not drained yet."""

    mode: EbpfMode = "off"
    ring_bytes: Annotated[int, Meta(ge=4096, le=1024 * 1024 * 1024)] = 8 * 1024 * 1024
    drain_interval_ms: Annotated[float, Meta(ge=5, le=1000)] = 50.0


class Conntrack(msgspec.Struct, frozen=True):
    """[conntrack]: how namespaces that translate addresses are found and followed. `max_flows`: of one namespace."""

    mode: ConntrackMode = "auto"
    interval_s: Seconds = 1.0
    idle_interval_s: Seconds = 10.0
    full_interval_s: Seconds = 60.0
    max_flows: Annotated[int, Meta(ge=1, le=10_000_000)] = 100_000


class Config(msgspec.Struct, frozen=True):
    """All settings, immutable."""

    agent: Agent = Agent()
    discovery: Discovery = Discovery()
    walk: Walk = Walk()
    tables: Tables = Tables()
    budget: Budget = Budget()
    workers: Workers = Workers()
    query: Query = Query()
    feed: Feed = Feed()
    closed: Closed = Closed()
    ebpf: Ebpf = Ebpf()
    conntrack: Conntrack = Conntrack()


class Key(NamedTuple):
    """One setting: `name` is "section.key", `type` its annotation (msgspec.Meta included)."""

    name: str
    type: Any
    default: Any


class Loaded(NamedTuple):
    """The effective settings, and for each "section.key" where its value came from.

    An origin is "default", "file F", "environment VARIABLE" or "flag --name".
    """

    config: Config
    origin: dict[str, str]


def _list_keys() -> Iterator[Key]:
    for section in msgspec.structs.fields(Config):
        for field in msgspec.structs.fields(section.type):
            yield Key(f"{section.name}.{field.name}", field.type, field.default)


KEYS: dict[str, Key] = {key.name: key for key in _list_keys()}
_SECTIONS = tuple(field.name for field in msgspec.structs.fields(Config))


def load(path: str | None, env: Mapping[str, str], flags: Mapping[str, Any]) -> Loaded:
    """The settings of one start.

    Args: path: the TOML file, or None; env: the whole environment; flags: "section.key" -> value given on the
    command line (None: not given).
    Raises: ConfigError for an unknown key, a value outside its range, values that contradict each other or a
    file that cannot be read.
    """
    values = {key.name: key.default for key in KEYS.values()}
    origin = dict.fromkeys(KEYS, "default")
    for name, raw, source, from_text in _all_settings(path, env, flags):
        values[name] = _convert(KEYS[name], raw, source, from_text)
        origin[name] = source
    _check_together(values, origin)
    sections: dict[str, dict[str, Any]] = {section: {} for section in _SECTIONS}
    for name, value in values.items():
        section, key = name.split(".")
        sections[section][key] = value
    return Loaded(msgspec.convert(sections, Config), origin)


def range_text(key: Key) -> str:
    """What a key accepts, in words: "a number from 0.05 to 3600", "one of auto, sock_diag, proc", ..."""
    base, meta = key.type, None
    if get_origin(base) is Annotated:
        base, meta = get_args(base)[:2]
    if get_origin(base) is Literal:
        return f"one of {', '.join(get_args(base))}"
    if get_origin(base) is tuple:
        return "a list of texts"
    if base is str:
        return "a text" if meta is None else "a text that is not empty"
    if base is bool:
        return "true or false"
    kind = "a whole number" if base is int else "a number"
    assert meta is not None
    return f"{kind} from {meta.ge} to {meta.le}"


def group_id(config: Config) -> int | None:
    """The numeric id of agent.group, None where it is empty. Raises: ConfigError if there is no such group."""
    name = config.agent.group
    if not name:
        return None
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        hint = f"create it with `groupadd --system {name}`, or leave the key empty"
        raise ConfigError(f"agent.group: there is no group {name!r} on this host", hint) from None


def _all_settings(
    path: str | None, env: Mapping[str, str], flags: Mapping[str, Any]
) -> Iterator[tuple[str, Any, str, bool]]:
    """(key name, value, where from, value is text to be read as the key's type), weakest source first."""
    if path is not None:
        for name, value in _read_file(path):
            yield name, value, f"file {path}", False
    for variable, name in _env_names(env):
        yield name, env[variable], f"environment {variable}", True
    for name, value in flags.items():
        if value is not None:
            yield name, value, f"flag --{name.split('.')[1].replace('_', '-')}", False


def _read_file(path: str) -> Iterator[tuple[str, Any]]:
    try:
        with open(path, "rb") as file:
            document = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"cannot read the config file {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the config file {path} is not TOML: {error}") from None
    for section, content in document.items():
        if section not in _SECTIONS or not isinstance(content, dict):
            raise _unknown(section, f"file {path}", _SECTIONS if isinstance(content, dict) else tuple(KEYS))
        for key, value in content.items():
            name = f"{section}.{key}"
            if name not in KEYS:
                raise _unknown(name, f"file {path}", tuple(KEYS))
            yield name, value


def _env_names(env: Mapping[str, str]) -> list[tuple[str, str]]:
    """(variable, key name) for each variable, the weakest first; the short alias comes last, so it wins."""
    by_variable = {ENV_PREFIX + name.upper().replace(".", "_"): name for name in KEYS}
    found = [(variable, name) for variable, name in _ENV_OF_OTHERS.items() if env.get(variable)]
    for variable in env:
        if not variable.startswith(ENV_PREFIX) or variable in _ENV_ALIASES:
            continue
        if variable not in by_variable:
            raise _unknown(variable, "environment", (*by_variable, *_ENV_ALIASES))
        found.append((variable, by_variable[variable]))
    return found + [(variable, name) for variable, name in _ENV_ALIASES.items() if variable in env]


def _unknown(name: str, source: str, known: tuple[str, ...]) -> ConfigError:
    message = f"unknown key {name} ({source}){did_you_mean(name, known)}"
    return ConfigError(message, "`sockscope config`, which lists every key")


def _convert(key: Key, raw: Any, source: str, from_text: bool) -> Any:
    value = raw
    if from_text and get_origin(key.type) is tuple:
        value = [part.strip() for part in raw.split(",") if part.strip()]
    try:
        converted = msgspec.convert(value, key.type, strict=not from_text)
    except msgspec.ValidationError:
        converted = math.nan
    # nan passes every comparison that msgspec makes, and `nan` is a TOML number.
    if isinstance(converted, float) and math.isnan(converted):
        message = f"{key.name} = {raw!r} ({source}) is not allowed: expected {range_text(key)}"
        raise ConfigError(message, f"leaving it out: the default is {key.default!r}")
    return converted


def _check_together(values: Mapping[str, Any], origin: Mapping[str, str]) -> None:
    """Raises: ConfigError for values that are each in range but contradict each other."""
    ordered = (
        ("walk.period_min_ms", "walk.period_initial_ms"),
        ("walk.period_initial_ms", "walk.period_max_ms"),
        ("tables.interval_s", "tables.idle_interval_s"),
        ("tables.interval_s", "tables.full_interval_s"),
        ("tables.idle_interval_s", "workers.stale_after_s"),
        ("conntrack.interval_s", "conntrack.idle_interval_s"),
        ("conntrack.idle_interval_s", "conntrack.full_interval_s"),
    )
    for low, high in ordered:
        if values[low] > values[high]:
            raise ConfigError(
                f"{low} = {values[low]} ({origin[low]}) may not be more than "
                f"{high} = {values[high]} ({origin[high]})"
            )
    directory = values["agent.runtime_dir"]
    is_text = directory.isprintable() and directory.encode("utf-8", "replace").decode() == directory
    if not os.path.isabs(directory) or not is_text or len(os.fsencode(directory)) > _RUNTIME_DIR_MAX_BYTES:
        raise ConfigError(
            f"agent.runtime_dir = {directory!r} ({origin['agent.runtime_dir']}) is not allowed: expected an "
            f"absolute path of at most {_RUNTIME_DIR_MAX_BYTES} bytes of UTF-8 (the path of a unix socket is short)"
        )
