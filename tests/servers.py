"""Throw-away servers: PostgreSQL, memcached and PgBouncer in temporary folders, on free ports of 127.0.0.1.

Run as `python -m tests.servers` it prints the Debian packages of those that this machine lacks.

1. A server is a child of the process that started it, by its own binary: no service, no cluster of the
   machine's own, no pid file that could name somebody else's process.
2. The kernel stops it when that process dies, however it dies (PR_SET_PDEATHSIG through setpriv), and whoever
   comes next removes the folder that it left.
3. Nothing of it runs as root: PostgreSQL and PgBouncer refuse to.

Only the standard library at module level, and psycopg where a statement is sent: benchmarks start these too.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

#: Debian package, binary. In the order in which they are reported.
PACKAGES = {
    "postgresql": "initdb",
    "memcached": "memcached",
    "pgbouncer": "pgbouncer",
    "lighttpd": "lighttpd",
    "nginx-light": "nginx",
    "systemd": "systemd-analyze",
    "uwsgi-plugin-python3": "uwsgi_python3",
    "chromium-driver": "chromedriver",  # brings chromium of the same version along
}

_FOLDERS = (
    *sorted(glob.glob("/usr/lib/postgresql/*/bin"), key=lambda path: int(path.split("/")[4]), reverse=True),
    *glob.glob("/usr/pgsql-*/bin"),
    "/usr/local/bin",
    "/usr/sbin",
)

_PREFIX = "forkrunner-test-"


def find(binary: str) -> str | None:
    """Return the path of a server's binary; Debian keeps PostgreSQL's off PATH."""
    return shutil.which(binary) or shutil.which(binary, path=os.pathsep.join(_FOLDERS))


def missing() -> list[str]:
    return [package for package, binary in PACKAGES.items() if find(binary) is None]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def tree(*roots: int) -> list[int]:
    """Return the pids of these processes and of all below them, parents before children, zombies included."""
    parents: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                # The command in parentheses may hold spaces and parentheses itself.
                fields = Path("/proc", entry, "stat").read_text(errors="replace").rpartition(")")[2].split()
                parents.setdefault(int(fields[1]), []).append(int(entry))
    found = [pid for pid in roots if os.path.exists(f"/proc/{pid}")]
    for pid in found:
        found.extend(parents.get(pid, ()))
    return found


class Server:
    """One server process: started at once, stopped by `close`."""

    name = "server"
    #: What the kernel sends when the process that started it dies: stop without waiting for clients.
    death_signal = "KILL"
    #: How it is told to stop.
    stop_signal = signal.SIGTERM

    def __init__(self) -> None:
        sweep()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{self.name}-"))
        # Held as long as this process lives: see sweep, which must not meet it before it is held.
        self._lock = open(self.folder / "new", "w")  # noqa: SIM115  # closed by close()
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        os.rename(self.folder / "new", self.folder / "lock")
        self.user = self._own()
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.paused = False
        try:
            self.prepare()
            for attempt in range(3):
                try:
                    self.start()
                    break
                except RuntimeError:
                    # Somebody may have taken the port between free_port and now.
                    if attempt == 2:
                        raise
                    self.port = free_port()
        except BaseException:
            self.close()
            raise

    def _own(self) -> str | None:
        if os.geteuid() != 0:
            return None
        for user in ("postgres", "nobody"):
            with contextlib.suppress(KeyError):
                entry = pwd.getpwnam(user)
                os.chown(self.folder, entry.pw_uid, entry.pw_gid)
                return user
        raise RuntimeError("expected a user postgres or nobody to run servers as")

    def wrap(self, command: Sequence[str]) -> list[str]:
        """Return the command with what makes it harmless put before it."""
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            if self.user:
                raise RuntimeError("expected setpriv (package util-linux): servers do not run as root")
            return list(command)
        options = ["--pdeathsig", self.death_signal]
        if self.user:
            entry = pwd.getpwnam(self.user)
            options += ["--reuid", str(entry.pw_uid), "--regid", str(entry.pw_gid), "--clear-groups"]
        return [setpriv, *options, *command]

    def prepare(self) -> None:
        """Make what is made once: a cluster, a file of settings."""

    def command(self) -> list[str]:
        raise NotImplementedError

    def ready(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    @property
    def pids(self) -> list[int]:
        return tree(self.process.pid) if self.process else []

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self, timeout: float = 60) -> None:
        assert not self.running, f"{self.name} is running"
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                self.wrap(self.command()),
                cwd=self.folder,
                env={"PATH": os.environ["PATH"], "LC_ALL": "C", "TZ": "UTC"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C in the terminal is for the tests, which then stop the servers in their own order.
                start_new_session=True,
            )
        end = time.monotonic() + timeout
        while not self.ready():
            if self.process.poll() is not None or time.monotonic() > end:
                self.stop("kill")
                raise RuntimeError(f"{self.name} did not start:\n{self.log[-3000:]}")
            time.sleep(0.02)

    def stop(self, mode: str = "", timeout: float = 30) -> None:
        """Stop it: by its own signal, or, with mode "kill", all its processes at once by SIGKILL.

        A server that does not stop within the timeout (seconds) is killed.
        """
        if self.process is None:
            return
        if mode == "kill":
            self.signal_all(signal.SIGKILL)
        else:
            self.resume()
            self.process.send_signal(self.signal_of(mode))
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.signal_all(signal.SIGKILL)
            self.process.wait()
        self.process = None
        self.paused = False

    def signal_of(self, mode: str) -> signal.Signals:
        if mode:
            raise ValueError(f"{self.name}: expected no mode or 'kill', got {mode!r}")
        return self.stop_signal

    def restart(self, mode: str = "") -> None:
        """Stop and start it, at the same port and with the same data."""
        self.stop(mode)
        self.start()

    def signal_all(self, signum: int) -> None:
        """Send a signal to each of its processes, parents first, until no new one appears."""
        done: set[int] = set()
        while new := [pid for pid in self.pids if pid not in done]:
            for pid in new:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signum)
            done.update(new)

    def pause(self) -> None:
        """Freeze it: connections stay open, new ones are accepted by the kernel, nobody answers."""
        self.paused = True
        self.signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        if self.paused:
            self.signal_all(signal.SIGCONT)
        self.paused = False

    def heal(self) -> None:
        """Make it run again, whatever a test did to it."""
        self.resume()
        if not self.running:
            self.process = None
            self.start()

    def close(self) -> None:
        self.stop()
        self._lock.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Postgres(Server):
    """A PostgreSQL cluster of its own."""

    name = "postgresql"
    death_signal = "QUIT"
    user_name = "forkrunner"

    def __init__(self, **settings: object) -> None:
        #: Settings of the server, as in postgresql.conf.
        self.settings = {
            "listen_addresses": "127.0.0.1",
            # Nothing here outlives the machine. synchronous_commit stays on: without it a server that is killed
            # forgets what it had committed, and fault tests would blame the code.
            "fsync": "off",
            "full_page_writes": "off",
            "max_connections": 200,
            "shared_buffers": "64MB",
            "jit": "off",
            "log_line_prefix": "%m [%p] %d ",
            **settings,
        }
        self._numbers = itertools.count(1)
        super().__init__()

    def prepare(self) -> None:
        initdb = find("initdb")
        assert initdb, "initdb is not installed"
        self.bin = os.path.dirname(os.path.realpath(initdb))
        options = ["--auth=trust", "--username", self.user_name, "--encoding=UTF8", "--locale=C", "--no-sync"]
        done = subprocess.run(
            self.wrap([f"{self.bin}/initdb", "-D", f"{self.folder}/data", *options]),
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C", "TZ": "UTC"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise RuntimeError(f"initdb failed:\n{done.stdout}{done.stderr}")

    def command(self) -> list[str]:
        settings = {**self.settings, "port": self.port, "unix_socket_directories": self.folder}
        pairs = [f"{name}={value}" for name, value in settings.items()]
        return [
            f"{self.bin}/postgres",
            "-D",
            f"{self.folder}/data",
            *itertools.chain(*(("-c", p) for p in pairs)),
        ]

    def ready(self) -> bool:
        # The postmaster writes it there itself, so an answer is not mistaken for another server's on this port.
        try:
            lines = (self.folder / "data/postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return (
            len(lines) > 7
            and self.process is not None
            and lines[0] == str(self.process.pid)
            and lines[7].strip() == "ready"
        )

    def signal_of(self, mode: str) -> signal.Signals:
        modes = {
            "": signal.SIGINT,
            "fast": signal.SIGINT,
            "smart": signal.SIGTERM,
            "immediate": signal.SIGQUIT,
        }
        return modes[mode]

    def url(self, database: str = "postgres") -> str:
        """Return the SQLAlchemy URL of a database, over TCP."""
        return f"postgresql+psycopg://{self.user_name}@127.0.0.1:{self.port}/{database}"

    def socket_url(self, database: str = "postgres") -> str:
        """Return the same through the Unix socket."""
        return f"postgresql+psycopg://{self.user_name}@/{database}?host={self.folder}&port={self.port}"

    def connect(self, database: str = "postgres") -> Any:
        """Return a psycopg connection in autocommit; use it in a `with`."""
        import psycopg

        return psycopg.connect(
            f"host={self.folder} port={self.port} user={self.user_name} dbname={database}", autocommit=True
        )

    def create_database(self, template: str | None = None) -> str:
        """Make a fresh database, or a copy of one that nobody is connected to, and return its URL."""
        name = f"test{next(self._numbers)}"
        with self.connect() as connection:
            connection.execute(f'create database "{name}"' + (f' template "{template}"' if template else ""))
        return self.url(name)

    def drop(self, url: str) -> None:
        """Drop a database that create_database made, whoever is still connected to it."""
        name = url.partition("?")[0].rpartition("/")[2]
        with self.connect() as connection:
            connection.execute(f'drop database if exists "{name}" with (force)')


class Memcached(Server):
    name = "memcached"

    def __init__(self, megabytes: int = 64) -> None:
        self.megabytes = megabytes
        super().__init__()

    def command(self) -> list[str]:
        binary = find("memcached")
        assert binary, "memcached is not installed"
        options = ["-m", str(self.megabytes), *(["-I", "512k"] if self.megabytes == 1 else [])]
        return [binary, "-l", "127.0.0.1", "-p", str(self.port), "-U", "0", *options]

    def ask(self, command: str) -> str:
        """Send a command and return the lines of its answer."""
        with socket.create_connection(("127.0.0.1", self.port), 5) as sock:
            sock.sendall(command.encode() + b"\r\n")
            answer = b""
            while not answer.endswith(b"END\r\n"):
                data = sock.recv(65536)
                assert data, f"memcached closed the connection after {answer!r}"
                answer += data
        return answer.decode()

    def stats(self) -> dict[str, int]:
        """Return its counters."""
        words = [line.split(maxsplit=2) for line in self.ask("stats").splitlines()]
        return {name: int(value) for _, name, value in (w for w in words if len(w) == 3) if value.isdigit()}

    @property
    def url(self) -> str:
        return f"memcached://127.0.0.1:{self.port}"


class PgBouncer(Server):
    """PgBouncer in transaction mode before a `Postgres`."""

    name = "pgbouncer"
    # Its SIGTERM is the fast one; SIGINT waits for clients.
    death_signal = "TERM"

    def __init__(self, postgres: Postgres, **settings: object) -> None:
        self.postgres = postgres
        self.settings = {
            "pool_mode": "transaction",
            "default_pool_size": 10,
            "max_client_conn": 500,
            **settings,
        }
        super().__init__()

    def prepare(self) -> None:
        self.write()

    def write(self) -> None:
        upstream = f"host={self.postgres.folder} port={self.postgres.port} user={self.postgres.user_name}"
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "any",
            **self.settings,
        }
        lines = [
            "[databases]",
            f"* = {upstream}",
            "[pgbouncer]",
            *(f"{k} = {v}" for k, v in settings.items()),
        ]
        (self.folder / "pgbouncer.ini").write_text("\n".join(lines) + "\n")

    def command(self) -> list[str]:
        binary = find("pgbouncer")
        assert binary, "pgbouncer is not installed"
        self.write()  # the port may be another one than at first
        return [binary, str(self.folder / "pgbouncer.ini")]

    def url(self, database: str = "postgres") -> str:
        """Return the SQLAlchemy URL of a database, through PgBouncer."""
        return f"postgresql+psycopg://{self.postgres.user_name}@127.0.0.1:{self.port}/{database}"


class Browser(Server):
    """Chromium without a window, and the driver that takes commands for it."""

    name = "chromium"
    # It ends the browser too.
    death_signal = "TERM"
    _FLAGS = (
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic"),
        *(
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
        ),
        *("--window-size=800,300", "--force-color-profile=srgb"),
    )

    def command(self) -> list[str]:
        binary = find("chromedriver")
        assert binary, "chromium-driver is not installed"
        return ["env", f"HOME={self.folder}", f"TMPDIR={self.folder}", binary, f"--port={self.port}"]

    def open(self) -> Any:
        """Return a Selenium driver of a fresh browser; the caller quits it."""
        from selenium import webdriver
        from selenium.webdriver.remote.file_detector import UselessFileDetector

        options = webdriver.ChromeOptions()
        options.binary_location = find("chromium") or ""
        for flag in self._FLAGS:
            options.add_argument(flag)
        options.add_argument(f"--user-data-dir={self.folder}/profile{time.monotonic_ns()}")
        driver = webdriver.Remote(f"http://127.0.0.1:{self.port}", options=options)
        # files are on this host: they need not be sent to the driver
        driver.file_detector = UselessFileDetector()
        return driver

    def own(self, path: Path) -> Path:
        """Copy a file to where the browser, which is another user's, may read it."""
        copy = self.folder / path.name
        shutil.copyfile(path, copy)
        copy.chmod(0o644)
        return copy


def sweep() -> None:
    """Remove the folders of servers whose process was killed: nobody holds their lock."""
    for lock in _locks():
        with contextlib.suppress(OSError), open(lock) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)


def _locks() -> Iterator[Path]:
    return Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/lock")


if __name__ == "__main__":
    print("\n".join(missing()))
