"""The query socket: every request gets one answer, and nobody's request costs anybody else."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq

from pipeline.errors import ConfigError, Denied, NoAggregator
from pipeline.model.deferred import Heavy, Later
from pipeline.transport.poller import Poller
from pipeline.transport.query_socket import Handler, QueryFront
from pipeline.transport.requester import Requester

DEADLINE_S = 60.0


def echo() -> Handler:
    return lambda request: b"answer to " + request


def refusal(request: bytes, code: str, message: str) -> bytes:
    return code.encode() + b" " + request[:10]


def anything(answer: bytes) -> bool:
    return True


class Server:
    """A front pumped by a thread of its own, as the aggregator's main loop would."""

    def __init__(self, front: QueryFront) -> None:
        self.front = front
        self._end = os.pipe()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        poller = Poller()
        for source in (*self.front.poll_sockets, self._end[0]):
            poller.register(source)
        soon = False
        while self._end[0] not in poller.wait(0.05 if soon else DEADLINE_S):
            soon = self.front.pump()

    def stop(self) -> None:
        os.write(self._end[1], b"1")
        self._thread.join()
        for fd in self._end:
            os.close(fd)
        self.front.close()


@contextmanager
def serving(path: str, make_handler: Callable[[], Handler] = echo, **options: Any) -> Iterator[QueryFront]:
    server = Server(QueryFront(path, make_handler, refuse=refusal, **options))
    try:
        yield server.front
    finally:
        server.stop()


@contextmanager
def stranger(path: str, kind: int = zmq.DEALER) -> Iterator[zmq.Socket[bytes]]:
    """Somebody else's program on the socket. Its receives give up after the deadline."""
    with zmq.Context() as context, context.socket(kind) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVTIMEO, round(DEADLINE_S * 1000))
        socket.connect("ipc://" + path)
        yield socket


def wait_until(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end_s, "the condition did not come true"
        threading.Event().wait(0.005)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "query.ipc")


def test_requester_gets_its_answers(path: str) -> None:
    with serving(path), Requester(path, DEADLINE_S) as requester:
        for number in range(23):
            assert requester.request(b"%d" % number, anything) == b"answer to %d" % number


def test_req_and_dealer_with_and_without_delimiter_are_answered_in_their_own_shape(path: str) -> None:
    with serving(path):
        with stranger(path, zmq.REQ) as req:
            req.send(b"one")
            assert req.recv_multipart() == [b"answer to one"]
        with stranger(path) as dealer:
            dealer.send(b"two")
            assert dealer.recv_multipart() == [b"answer to two"]
            dealer.send_multipart([b"", b"three"])
            assert dealer.recv_multipart() == [b"", b"answer to three"]


def test_answers_of_one_peer_come_in_the_order_of_its_questions(path: str) -> None:
    with serving(path), stranger(path) as dealer:
        for number in range(20):
            dealer.send(b"%d" % number)
        assert [dealer.recv() for _ in range(20)] == [b"answer to %d" % number for number in range(20)]


def test_each_thread_makes_its_own_handler_and_uses_it_alone(path: str) -> None:
    makers: list[int] = []
    strangers: list[int] = []

    def make_handler() -> Handler:
        maker = threading.get_ident()
        makers.append(maker)

        def handle(request: bytes) -> bytes:
            if threading.get_ident() != maker:
                strangers.append(maker)
            return request

        return handle

    with serving(path, make_handler, threads=3), Requester(path, DEADLINE_S) as requester:
        for _ in range(10):
            requester.request(b"x", anything)
        wait_until(lambda: len(makers) == 3)
    assert len(set(makers)) == 3
    assert strangers == []


def test_frames_of_another_shape_are_dropped_and_counted(path: str) -> None:
    with serving(path) as front, stranger(path) as dealer:
        dealer.send_multipart([b"a", b"b"])
        dealer.send_multipart([b"", b"", b"c"])
        dealer.send_multipart([b"x"] * 50)
        dealer.send(b"proper")
        assert dealer.recv() == b"answer to proper"
        assert front.garbage == 3


def test_oversize_request_is_refused_and_a_monstrous_one_hung_up_on(path: str) -> None:
    requester = Requester(path, DEADLINE_S)
    with serving(path, max_request_bytes=1000) as front, stranger(path) as dealer, requester:
        dealer.send(b"y" * 1000)
        assert dealer.recv() == b"answer to " + b"y" * 1000
        dealer.send(b"y" * 1001)
        assert dealer.recv() == b"too_large yyyyyyyyyy"
        assert front.refused == 1
        dealer.send(b"y" * 4001)
        assert requester.request(b"still there", anything) == b"answer to still there"
        assert front.garbage == 0


def test_bytes_that_are_no_zmq_at_all_harm_nobody(path: str) -> None:
    with serving(path):
        for noise in (b"GET / HTTP/1.0\r\n\r\n", bytes(200), b"\xff" * 100_000, os.urandom(5000)):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(path)
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    client.sendall(noise)
        with Requester(path, DEADLINE_S) as requester:
            assert requester.request(b"still there", anything) == b"answer to still there"


def test_handler_that_raises_answers_with_an_error_and_goes_on(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    def make_handler() -> Handler:
        def handle(request: bytes) -> bytes:
            return b"%d" % (1 // int(request))

        return handle

    with serving(path, make_handler, threads=1), Requester(path, DEADLINE_S) as requester:
        assert requester.request(b"0", anything) == b"internal 0"
        assert requester.request(b"1", anything) == b"1"
    assert "a query handler failed" in caplog.text


def test_handler_that_cannot_be_made_fails_the_pump(path: str) -> None:
    def make_handler() -> Handler:
        raise OSError("no database")

    front = QueryFront(path, make_handler, refuse=refusal, threads=1)

    def failed() -> bool:
        try:
            front.pump()
        except OSError as error:
            return str(error) == "no database"
        return False

    wait_until(failed)
    front.close()


class Gate:
    """A handler that answers `slow` requests only once the gate is open."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.at_work = threading.Semaphore(0)

    def make_handler(self) -> Handler:
        def handle(request: bytes) -> bytes:
            if request.startswith(b"slow"):
                self.at_work.release()
                assert self.open.wait(DEADLINE_S)
            return b"answer to " + request

        return handle


def test_one_peers_slow_requests_take_one_thread(path: str) -> None:
    gate = Gate()
    modest = Requester(path, DEADLINE_S)
    with serving(path, gate.make_handler, threads=2), stranger(path) as greedy, modest:
        for number in range(10):
            greedy.send(b"slow %d" % number)
        assert gate.at_work.acquire(timeout=DEADLINE_S)
        assert modest.request(b"quick", anything) == b"answer to quick"
        gate.open.set()
        assert [greedy.recv() for _ in range(10)] == [b"answer to slow %d" % number for number in range(10)]


def test_peer_over_its_share_of_the_backlog_is_told_at_once(path: str) -> None:
    gate = Gate()
    with serving(path, gate.make_handler, threads=1) as front, stranger(path) as dealer:
        dealer.send(b"slow")
        assert gate.at_work.acquire(timeout=DEADLINE_S)
        for number in range(33):
            dealer.send(b"%d" % number)
        assert dealer.recv() == b"busy 32"
        assert front.refused == 1
        gate.open.set()
        assert dealer.recv() == b"answer to slow"
        assert [dealer.recv() for _ in range(32)] == [b"answer to %d" % number for number in range(32)]


def test_peer_that_never_reads_holds_no_thread(path: str) -> None:
    answer = bytes(2_000_000)
    handled: list[bytes] = []

    def make_handler() -> Handler:
        def handle(request: bytes) -> bytes:
            handled.append(request)
            return answer if request == b"big" else request

        return handle

    with serving(path, make_handler, threads=1) as front, stranger(path) as deaf:
        deaf.setsockopt(zmq.RCVHWM, 1)
        # The option counts for connections made after it.
        deaf.disconnect("ipc://" + path)
        deaf.connect("ipc://" + path)
        for _ in range(32):
            deaf.send(b"big")
        wait_until(lambda: len(front._unsent) == 1)
        with Requester(path, DEADLINE_S) as requester:
            for number in range(5):
                assert requester.request(b"%d" % number, anything) == b"%d" % number
        # What the peer's own buffers, the kernel's and libzmq's hold, and not the rest.
        assert handled.count(b"big") < 16
        assert [deaf.recv() for _ in range(32)] == [answer] * 32


def test_peer_that_goes_away_is_forgotten_with_its_requests(path: str) -> None:
    gate = Gate()
    with serving(path, gate.make_handler, threads=1) as front:
        with stranger(path) as leaver:
            leaver.send(b"slow")
            leaver.send(b"never answered")
            assert gate.at_work.acquire(timeout=DEADLINE_S)
            wait_until(lambda: len(front._backlog) == 1)
        gate.open.set()
        with Requester(path, DEADLINE_S) as requester:
            assert requester.request(b"next", anything) == b"answer to next"
        wait_until(lambda: front.answers_lost == 2)
        assert len(front._backlog) == 0


def test_close_removes_the_socket_unless_a_successor_has_it(path: str) -> None:
    first = QueryFront(path, echo, refuse=refusal)
    second = QueryFront(path, echo, refuse=refusal)
    first.close()
    assert os.path.exists(path)
    second.close()
    assert not os.path.exists(path)


def test_socket_has_the_mode_and_group_asked_for(path: str) -> None:
    gid = 65534 if os.geteuid() == 0 else os.getgid()
    with serving(path, mode=0o660, gid=gid):
        status = os.stat(path)
        assert stat.S_IMODE(status.st_mode) == 0o660
        assert status.st_gid == gid


# --- the asker's end ---


def test_requester_skips_late_answers_to_earlier_requests(path: str) -> None:
    gate = Gate()
    mine = b"answer to mine"
    with serving(path, gate.make_handler, threads=1), Requester(path, timeout_s=0.2) as requester:
        with pytest.raises(NoAggregator, match=r"no answer .* within 0\.2 s"):
            requester.request(b"slow", anything)
        gate.open.set()
        requester.timeout_s = DEADLINE_S
        assert requester.request(b"mine", lambda answer: answer == mine) == mine


def test_requester_says_at_once_that_nobody_was_ever_there(tmp_path: Path) -> None:
    for missing in ("query.ipc", "missing/query.ipc"):
        with Requester(str(tmp_path / missing), timeout_s=3600) as requester:
            with pytest.raises(NoAggregator, match="no aggregator at") as caught:
                requester.request(b"x", anything)
            assert "sockscope run" in caught.value.hint


def test_requester_gives_up_on_a_dead_aggregators_socket(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with Requester(path, timeout_s=0.1) as requester, pytest.raises(NoAggregator, match="no answer"):
        requester.request(b"x", anything)


def test_requester_goes_on_with_the_next_aggregator(path: str) -> None:
    with Requester(path, DEADLINE_S) as requester:
        with serving(path):
            assert requester.request(b"one", anything) == b"answer to one"
        with serving(path):
            assert requester.request(b"two", anything) == b"answer to two"


def test_request_lost_with_its_aggregator_is_answered_by_the_next(path: str) -> None:
    first = QueryFront(path, echo, refuse=refusal)
    servers: list[Server] = []

    def succeed() -> None:
        if first.poll_sockets[0].poll(round(DEADLINE_S * 1000)):
            first.close()  # with the request in it
            servers.append(Server(QueryFront(path, echo, refuse=refusal)))

    successor = threading.Thread(target=succeed)
    successor.start()
    try:
        with Requester(path, DEADLINE_S) as requester:
            assert requester.request(b"once", anything) == b"answer to once"
    finally:
        successor.join()
        for server in servers:
            server.stop()


def test_request_that_the_aggregator_hangs_up_on_is_not_sent_for_ever(path: str) -> None:
    with serving(path, max_request_bytes=1000), Requester(path, DEADLINE_S) as requester:
        with pytest.raises(NoAggregator, match="hung up on the request 3 times"):
            requester.request(b"y" * 4001, anything)
        assert requester.request(b"small", anything) == b"answer to small"


def test_requester_names_a_path_that_is_too_long(tmp_path: Path) -> None:
    with Requester(str(tmp_path / ("x" * 120))) as requester, pytest.raises(ConfigError, match="107"):
        requester.request(b"x", anything)


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_requester_of_a_user_who_may_not_connect_is_denied() -> None:
    folder = tempfile.mkdtemp(dir="/tmp")  # pytest's own folders are closed to others as a whole
    path = os.path.join(folder, "query.ipc")
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
            for folder_mode, socket_mode in ((0o755, 0o660), (0o750, 0o666)):
                os.chmod(folder, folder_mode)
                os.chmod(path, socket_mode)
                assert denied_as_nobody(path)
    finally:
        shutil.rmtree(folder)


def denied_as_nobody(path: str) -> bool:
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            Requester(path).request(b"x", anything)
        except Denied:
            os._exit(23)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 23


def deferring(asked: list[bytes], due_in_s: float = 300.0) -> Callable[[], Handler]:
    """Handlers that put off every `wait` until it is asked again, and what begins with `heavy`."""

    def handle(request: bytes) -> bytes | Later | Heavy:
        asked.append(request)
        if request.startswith(b"wait"):
            return Later(b"again " + request, time.monotonic() + due_in_s)
        if request.startswith(b"heavy"):
            return Heavy(request)
        return b"answer to " + request

    return lambda: handle


def test_parked_request_is_answered_after_a_change_and_leaves_its_peer_free(path: str) -> None:
    asked: list[bytes] = []
    with serving(path, deferring(asked), threads=1) as front, stranger(path) as dealer:
        dealer.send(b"wait 1")
        wait_until(lambda: front.parked == 1)
        dealer.send(b"other")
        assert dealer.recv() == b"answer to other"

        front.wake()
        dealer.send(b"more")  # what makes this server pump; the aggregator does after each commit

        assert {dealer.recv(), dealer.recv()} == {b"answer to again wait 1", b"answer to more"}
    assert sorted(asked) == [b"again wait 1", b"more", b"other", b"wait 1"]


def test_parked_request_is_answered_when_it_is_due(path: str) -> None:
    with serving(path, deferring([], due_in_s=0.2)), stranger(path) as dealer:
        dealer.send(b"wait")

        assert dealer.recv() == b"answer to again wait"


def test_parked_requests_take_no_thread_and_are_bounded(path: str) -> None:
    with serving(path, deferring([]), threads=1) as front, contextlib.ExitStack() as stack:
        dealers = [stack.enter_context(stranger(path)) for _ in range(10)]
        for dealer in dealers:
            for number in range(26):
                dealer.send(b"wait %d" % number)
        wait_until(lambda: front.parked == 256 and front.refused == 4)
        dealers[0].send(b"other")
        answers = [dealers[0].recv()]
        while answers[-1] != b"answer to other":
            answers.append(dealers[0].recv())

    assert all(answer.startswith(b"busy ") for answer in answers[:-1])


def test_parked_requests_go_with_the_front(path: str) -> None:
    with serving(path, deferring([])) as front, stranger(path) as dealer:
        dealer.send(b"wait")
        wait_until(lambda: front.parked == 1)


def test_heavy_requests_wait_for_their_own_threads_only(path: str) -> None:
    at_work = threading.Semaphore(0)
    go_on = threading.Event()

    def make_heavy() -> Handler:
        def handle(request: bytes) -> bytes:
            at_work.release()
            go_on.wait(DEADLINE_S)
            return b"heavy answer to " + request

        return handle

    options: dict[str, Any] = {"make_heavy_handler": make_heavy, "heavy_threads": 2}
    with serving(path, deferring([]), threads=1, **options), contextlib.ExitStack() as stack:
        heavy = [stack.enter_context(stranger(path)) for _ in range(3)]
        for number, dealer in enumerate(heavy):
            dealer.send(b"heavy %d" % number)
        assert at_work.acquire(timeout=DEADLINE_S) and at_work.acquire(timeout=DEADLINE_S)
        with stranger(path) as dealer:
            for number in range(20):
                dealer.send(b"%d" % number)
            assert [dealer.recv() for _ in range(20)] == [b"answer to %d" % number for number in range(20)]
        go_on.set()
        assert [dealer.recv() for dealer in heavy] == [
            b"heavy answer to heavy %d" % number for number in range(3)
        ]


def test_too_many_heavy_requests_are_told_at_once(path: str) -> None:
    go_on = threading.Event()

    def make_heavy() -> Handler:
        def handle(request: bytes) -> bytes:
            go_on.wait(DEADLINE_S)
            return request

        return handle

    options: dict[str, Any] = {"make_heavy_handler": make_heavy, "heavy_threads": 1}
    with serving(path, deferring([]), **options) as front, contextlib.ExitStack() as stack:
        for _ in range(35):
            stack.enter_context(stranger(path)).send(b"heavy")
        wait_until(lambda: front.refused == 2)
        go_on.set()
