"""Settings: precedence, refusals, and that configs/ says what the code does."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import KEYS, group_id, load, range_text
from pipeline.errors import ConfigError

CONFIGS = Path(__file__).parent.parent / "configs"


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "my.toml"
    path.write_text(text)
    return str(path)


def test_without_anything_given_every_value_is_the_default() -> None:
    loaded = load(None, {}, {})
    assert loaded.config.walk.fd_block == 300
    assert loaded.config.agent.runtime_dir == "/run/sockscope"
    assert set(loaded.origin) == set(KEYS)
    assert set(loaded.origin.values()) == {"default"}


def test_a_flag_beats_the_environment_beats_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, '[agent]\nruntime_dir = "/f"\nlog_level = "error"\nhost_name = "file"\n')
    env = {"SOCKSCOPE_RUNTIME_DIR": "/e", "SOCKSCOPE_AGENT_LOG_LEVEL": "debug", "HOME": "/root"}
    loaded = load(path, env, {"agent.runtime_dir": "/flag", "agent.log_level": None})
    agent = loaded.config.agent
    assert (agent.runtime_dir, agent.log_level, agent.host_name) == ("/flag", "debug", "file")
    assert loaded.origin["agent.runtime_dir"] == "flag --runtime-dir"
    assert loaded.origin["agent.log_level"] == "environment SOCKSCOPE_AGENT_LOG_LEVEL"
    assert loaded.origin["agent.host_name"] == f"file {path}"
    assert loaded.origin["agent.group"] == "default"


def test_environment_text_becomes_numbers_and_lists() -> None:
    env = {
        "SOCKSCOPE_WALK_FD_BLOCK": "17",
        "SOCKSCOPE_WALK_TARGET_S": "2.5",
        "SOCKSCOPE_DISCOVERY_EXCLUDE": "ci-*, 4026531840,",
    }
    config = load(None, env, {}).config
    assert (config.walk.fd_block, config.walk.target_s) == (17, 2.5)
    assert config.discovery.exclude == ("ci-*", "4026531840")


def test_the_short_variable_for_the_runtime_dir_beats_the_long_one() -> None:
    env = {"SOCKSCOPE_RUNTIME_DIR": "/short", "SOCKSCOPE_AGENT_RUNTIME_DIR": "/long"}
    assert load(None, env, {}).config.agent.runtime_dir == "/short"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[walk]\nfd_blok = 3\n", ["unknown key walk.fd_blok", "my.toml", "walk.fd_block"]),
        ("[wlak]\nfd_block = 3\n", ["unknown key wlak", "my.toml", "walk"]),
        ("fd_block = 3\n", ["unknown key fd_block", "walk.fd_block"]),
        ("walk = 3\n", ["unknown key walk"]),
        ("[walk]\nfd_block = 0\n", ["walk.fd_block = 0", "my.toml", "a whole number from 1 to 100000"]),
        ("[walk]\nfd_block = true\n", ["walk.fd_block = True", "a whole number"]),
        ("[walk]\nfd_block = 1.5\n", ["walk.fd_block = 1.5"]),
        ('[walk]\nfd_block = "300"\n', ["walk.fd_block = '300'"]),
        ("[walk]\ntarget_s = nan\n", ["walk.target_s = nan", "a number from 0.05 to 3600"]),
        ("[walk]\ntarget_s = inf\n", ["walk.target_s = inf"]),
        ('[tables]\nsource = "ebpf"\n', ["tables.source = 'ebpf'", "one of auto, sock_diag, proc"]),
        ("[discovery]\ninclude = [1]\n", ["discovery.include = [1]", "a list of texts"]),
        ('[agent]\nruntime_dir = "run"\n', ["agent.runtime_dir = 'run'", "absolute path"]),
        (f'[agent]\nruntime_dir = "/{"d" * 90}"\n', ["agent.runtime_dir", "at most 90 bytes"]),
        (
            "[walk]\nperiod_min_ms = 60\n",
            ["walk.period_min_ms = 60", "walk.period_initial_ms = 50", "default"],
        ),
        ("[tables]\nidle_interval_s = 0.5\n", ["tables.interval_s = 1.0", "tables.idle_interval_s = 0.5"]),
        ("[tables]\nidle_interval_s = 20\n", ["tables.idle_interval_s", "workers.stale_after_s = 15"]),
        ("[walk\n", ["is not TOML"]),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_key_place_and_range(
    tmp_path: Path, text: str, parts: list[str]
) -> None:
    with pytest.raises(ConfigError) as refused:
        load(write(tmp_path, text), {}, {})
    assert [part for part in parts if part not in str(refused.value)] == []


def test_a_file_of_random_bytes_or_none_at_all_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not TOML"):
        load(str(tmp_path / "bytes"), {}, {})
    with pytest.raises(ConfigError, match="No such file or directory"):
        load(str(tmp_path / "none"), {}, {})


def test_a_bad_variable_is_refused_by_its_name() -> None:
    with pytest.raises(ConfigError, match=r"SOCKSCOPE_WALK_FD_BLOC .*SOCKSCOPE_WALK_FD_BLOCK"):
        load(None, {"SOCKSCOPE_WALK_FD_BLOC": "3"}, {})
    with pytest.raises(ConfigError, match=r"walk.fd_block = 'many' \(environment SOCKSCOPE_WALK_FD_BLOCK\)"):
        load(None, {"SOCKSCOPE_WALK_FD_BLOCK": "many"}, {})


def test_a_bad_flag_is_refused_by_its_name() -> None:
    with pytest.raises(ConfigError, match=r"agent.log_level = 'loud' \(flag --log-level\).*one of debug"):
        load(None, {}, {"agent.log_level": "loud"})


def test_an_unknown_group_is_refused_and_a_known_one_has_its_number() -> None:
    assert group_id(load(None, {}, {}).config) is None
    assert group_id(load(None, {"SOCKSCOPE_AGENT_GROUP": "root"}, {}).config) == 0
    with pytest.raises(ConfigError, match="no group 'no-such-group'"):
        group_id(load(None, {"SOCKSCOPE_AGENT_GROUP": "no-such-group"}, {}).config)


def test_default_toml_holds_every_key_with_the_code_s_default() -> None:
    document = tomllib.loads((CONFIGS / "default.toml").read_text())
    written = {f"{section}.{key}": value for section, keys in document.items() for key, value in keys.items()}
    expected: dict[str, Any] = {
        key.name: list(key.default) if isinstance(key.default, tuple) else key.default
        for key in KEYS.values()
    }
    assert written == expected
    assert list(written) == list(expected)


def test_default_toml_says_for_every_key_what_it_means_and_allows() -> None:
    text = (CONFIGS / "default.toml").read_text()
    for key in KEYS.values():
        section, name = key.name.split(".")
        part = text[text.index(f"[{section}]\n") :]
        comment = re.search(rf"((?:^#.*\n)+){name} = ", part, re.MULTILINE)
        assert comment, key.name
        lines = comment[1].splitlines()
        assert len(lines) >= 2, f"{key.name} has no meaning written"
        assert lines[-1] == f"# Allowed: {range_text(key)}.", key.name


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.name)
def test_every_shipped_file_loads(path: Path) -> None:
    load(str(path), {}, {})


def test_multi_netns_toml_sets_only_known_keys_and_explains_each_section() -> None:
    loaded = load(str(CONFIGS / "multi-netns.toml"), {}, {})
    changed = {name for name, origin in loaded.origin.items() if origin.startswith("file ")}
    assert changed >= {"tables.full_interval_s", "budget.cpu_percent", "walk.target_s"}


def test_host_proc_names_the_proc_root_where_nothing_of_ours_does(tmp_path: Path) -> None:
    env = {"HOST_PROC": "/host/proc"}
    loaded = load(write(tmp_path, '[agent]\nproc_root = "/other"\n'), env, {})
    assert loaded.config.agent.proc_root == "/host/proc"
    assert loaded.origin["agent.proc_root"] == "environment HOST_PROC"
    assert load(None, {**env, "SOCKSCOPE_AGENT_PROC_ROOT": "/ours"}, {}).config.agent.proc_root == "/ours"
    assert load(None, env, {"agent.proc_root": "/flag"}).config.agent.proc_root == "/flag"
    assert load(None, {"HOST_PROC": ""}, {}).config.agent.proc_root == "/proc"
