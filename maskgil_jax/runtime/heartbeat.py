"""The processes of a run watch each other: when one dies, freezes or stops with an error, the others say so and leave as well.

JAX alone would end them by SIGABRT with a native stack, when its heartbeat has been missing for long enough, or leave them
waiting in a collective for one that stopped. So every process holds a connection of our own to process 0, on a port that it
picks and makes known, with a secret, through JAX's key-value store. The end of a connection tells of a death at once, silence
of a process that is frozen or cut off. What process 0 learns it passes on, so all say the same.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import NoReturn

_log = logging.getLogger(__name__)
EXIT_CODE = 5
KEY = "maskgil_jax/peers"
GRACE = 1.0  # seconds for an error that all processes have to reach each of them before it is told by another
JOINING = 60.0  # seconds to find process 0; without it a process is left to JAX's heartbeat
WAITS = 6  # parts that the time is waited in
_own: Peers | None = None


def watch(client, coordinator: str, index: int, count: int, timeout: float) -> None:
    """Starts to watch, beside the program; to be called once, by every process. Never raises.

    client: JAX's distributed client. coordinator: "HOST:PORT" of JAX's coordinator, which lives in process 0. timeout: seconds
    of silence that are too long; 0: nothing is watched.
    """
    global _own
    if timeout:
        _own = Peers(client, coordinator.rpartition(":")[0].strip("[]"), index, count, timeout)


def tell(code: int, reason: str) -> None:
    """Lets the other processes know that this one is about to leave with exit code `code`; they leave with the same, and this
    one will not wait for them at its end. Returns after two seconds; nothing happens if no process is watched.

    Not every error is a process's own: one from a collective may come of another's death. If a death is noticed meanwhile, that
    is what the program ends with.
    """
    if _own is not None:
        _own.leave(code, reason)


class Peers:
    """One process's end of the connections: all of them in process 0, one in each other process."""

    def __init__(self, client, host: str, index: int, count: int, timeout: float):
        self.client, self.host, self.index, self.count, self.timeout = client, host, index, count, timeout
        self.open: list[socket.socket] = []
        self.lock = threading.Lock()  # for what is written and what it is written to
        self.leaving: int | None = None
        self.ending = threading.Lock()
        threading.Thread(target=self._meet, name="peers", daemon=True).start()
        threading.Thread(target=self._beat, name="peers' beat", daemon=True).start()
        atexit.register(self._at_exit)  # after JAX's own, hence to be called before it

    def leave(self, code: int, reason: str) -> None:
        """See `tell`."""
        self.leaving = code
        self._send({"end": code, "reason": f"{self._called(self.index, _name())} stopped: {reason}"})
        time.sleep(2 * GRACE)

    def _at_exit(self) -> None:
        if self.leaving is None:
            self._send({"bye": True})
            return
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(self.leaving)  # JAX would wait for processes that wait for this one

    def _meet(self) -> None:
        try:
            if self.index == 0:
                self._serve()
            else:
                self._join()
        except Exception as error:
            _log.warning("other processes are not watched (%s); if one dies, JAX will notice within minutes", error)

    def _serve(self) -> None:
        """Process 0: takes connections from here on, and listens to each in a thread of its own."""
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        with socket.create_server(("", 0), family=family, dualstack_ipv6=both, backlog=1024) as listener:
            secret = secrets.token_hex(16)
            self.client.key_value_set(KEY, json.dumps({"port": listener.getsockname()[1], "secret": secret, "name": _name()}))
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=self._welcome, args=(connection, secret), name="peer", daemon=True).start()

    def _welcome(self, connection: socket.socket, secret: str) -> None:
        """Listens to a connection if it is of one of ours."""
        with connection:
            lines = self._lines(connection, JOINING)
            hello = next(lines)
            if isinstance(hello, dict) and secrets.compare_digest(str(hello.get("secret")).encode(), secret.encode()):
                connection.settimeout(self.timeout / WAITS)
                self._listen(int(hello["index"]), str(hello["name"]), connection, lines)

    def _join(self) -> None:
        """Another process: connects to process 0."""
        place = json.loads(self.client.blocking_key_value_get(KEY, int(JOINING * 1000)))
        with socket.create_connection((self.host, place["port"]), timeout=JOINING) as connection:
            hello = {"secret": place["secret"], "index": self.index, "name": _name()}
            connection.sendall(json.dumps(hello).encode() + b"\n")
            self._listen(0, place["name"], connection, self._lines(connection, self.timeout))

    def _lines(self, connection: socket.socket, timeout: float) -> Iterator:
        """What comes in, line by line; "silent" when nothing did for too long, None at the end of the connection.

        Silence is counted in short waits: the time in which this process was stopped as well, as on a laptop asleep, is one.
        """
        text, waited = b"", 0
        connection.settimeout(timeout / WAITS)
        while True:
            try:
                arrived = connection.recv(1 << 16)
            except TimeoutError:
                waited += 1
                if waited % WAITS == 0:
                    yield "silent"
                continue
            except OSError:
                arrived = b""
            *lines, text = (text + arrived).split(b"\n")
            if not arrived or len(text) > 1 << 16:
                yield None
            waited = 0
            for line in lines:
                try:
                    yield json.loads(line)
                except ValueError:
                    yield None

    def _listen(self, peer: int, name: str, connection: socket.socket, lines: Iterator) -> None:
        """Waits for what a process has to say. One that left in good order may end its connection, but not this process: that
        one still has to be told when this one leaves as well."""
        name, left = self._called(peer, name), False
        with self.lock:
            self.open.append(connection)
        try:
            for said in lines:
                if left and (said is None or said == "silent"):
                    return
                if said is None:
                    self._lost(f"{name} ended without a word (killed, preempted, or out of memory)")
                elif said == "silent":
                    silence = f"no sign of life for {self.timeout:.0f} s"
                    self._lost(f"{name} has given {silence} (frozen, or cut off from the network)")
                elif "lost" in said:
                    self._end(EXIT_CODE, said["lost"])
                elif "end" in said:
                    self._another_left(said["end"], said["reason"])
                left = left or "end" in said or "bye" in said
        finally:
            with self.lock:
                self.open.remove(connection)

    def _beat(self) -> None:
        while True:
            self._send({})
            time.sleep(min(5.0, self.timeout / 6))

    def _send(self, message: dict) -> None:
        """To every process this one is connected to."""
        line = json.dumps(message).encode() + b"\n"
        with self.lock:
            for connection in self.open:
                with contextlib.suppress(OSError):  # who listens to it will notice
                    connection.sendall(line)

    def _called(self, index: int, name: str) -> str:
        return f"process {index} of {self.count} ({name})"

    def _another_left(self, code: int, reason: str) -> None:
        """A process stops with an error of its own: so does this one, unless it has one as well."""
        self._send({"bye": True} if self.index else {"end": code, "reason": reason})  # for the one that stops, too
        time.sleep(GRACE)
        if self.leaving is None:
            self._end(code, reason)

    def _lost(self, sentence: str) -> NoReturn:
        with self.ending:  # what is noticed first is what all end with
            self._send({"lost": sentence})
            self._end(EXIT_CODE, sentence)

    def _end(self, code: int, sentence: str) -> NoReturn:
        restart = "; the same command, on all machines, goes on from the last checkpoint" if code == EXIT_CODE else ""
        os.write(2, f"error: {sentence}{restart}\n".encode())
        os._exit(code)  # every other thread may be waiting for a process that is not there any more


def _name() -> str:
    return f"pid {os.getpid()} on {socket.gethostname()}"
