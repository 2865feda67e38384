"""What the shell offers: click's own completion, called as bash calls it."""

from __future__ import annotations

import subprocess

import pytest

from tests.cli.conftest import Sockscope


def offered(sockscope: Sockscope, *words: str) -> list[str]:
    """The words offered for the last of `words`, which follow the command's name."""
    env = {
        "_SOCKSCOPE_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(("sockscope", *words)),
        "COMP_CWORD": str(len(words)),
    }
    completed = sockscope(env=env)
    assert (completed.returncode, completed.stderr) == (0, b"")
    return [line.split(",", 1)[1] for line in completed.stdout.decode().split()]


def test_verbs_and_options_are_completed(sockscope: Sockscope) -> None:
    assert offered(sockscope, "con") == ["connections", "config"]
    assert offered(sockscope, "connections", "--remote-p") == ["--remote-port"]


def test_values_of_fixed_words_are_completed_in_either_case(sockscope: Sockscope) -> None:
    assert offered(sockscope, "connections", "--state", "close") == ["CLOSE", "CLOSE_WAIT"]
    assert offered(sockscope, "connections", "--state", "UN") == ["UNCONN"]
    assert offered(sockscope, "snapshot", "--family", "") == ["inet", "inet6"]
    assert offered(sockscope, "edges", "--proto", "t") == ["tcp"]


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("verb", ["connections", "namespaces", "edges", "run", "snapshot"])
def test_names_of_namespaces_are_those_of_the_running_pipeline(sockscope: Sockscope, verb: str) -> None:
    assert offered(sockscope, verb, "--netns", "") == ["web", "box"]
    assert offered(sockscope, verb, "--netns", "b") == ["box"]


@pytest.mark.usefixtures("filled")
def test_topics_of_the_feed_are_completed(sockscope: Sockscope) -> None:
    assert offered(sockscope, "feed", "--topic", "delta.") == [
        "delta.edges", "delta.4026531840", "delta.4026532200",
    ]  # fmt: skip


def test_without_a_running_pipeline_no_name_is_offered_and_nothing_is_said(sockscope: Sockscope) -> None:
    assert offered(sockscope, "connections", "--netns", "") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_its_script(sockscope: Sockscope, shell: str) -> None:
    completed = sockscope(env={"_SOCKSCOPE_COMPLETE": f"{shell}_source"})
    assert completed.returncode == 0
    assert "_SOCKSCOPE_COMPLETE" in completed.stdout.decode()


def test_bash_accepts_its_script(sockscope: Sockscope) -> None:
    script = sockscope(env={"_SOCKSCOPE_COMPLETE": "bash_source"}).stdout
    checked = subprocess.run(["bash", "-n"], input=script, capture_output=True)
    assert (checked.returncode, checked.stderr) == (0, b"")
