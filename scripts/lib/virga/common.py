"""Where things live, how progress is told, and how other programs are run.

Nothing here knows about QEMU, kernels or images.
"""

import contextlib
import fcntl
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

CHECKOUT = pathlib.Path(__file__).resolve().parents[3]
SCRIPTS = CHECKOUT / "scripts"

# The name in front of progress messages; each program sets its own.
program = "lab"


class Failure(Exception):
    """Something the user has to know about: printed without a traceback, with this exit status."""

    status = 1


class Stopped(BaseException):
    """A signal asked us to end."""

    def __init__(self, number):
        super().__init__(number)
        self.number = number


def cache_dir():
    """The cache, outside the checkout by default: what is fetched and built once for all checkouts."""
    chosen = os.environ.get("VIRGA_CACHE")
    if not chosen:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        chosen = os.path.join(base, "virga")
    path = pathlib.Path(chosen).absolute()
    path.mkdir(parents=True, exist_ok=True)
    return path.resolve()


def say(message):
    """One line of progress, on stderr so that a command's own output stays clean."""
    print(f"{program}: {message}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def step(what):
    """Announces something slow, and how long it took."""
    say(f"{what} ...")
    begin = time.monotonic()
    yield
    say(f"{what}: done in {time.monotonic() - begin:.1f} s")


@contextlib.contextmanager
def locked(path, waiting_for=None, limit=1800):
    """Holds an exclusive lock on `path` (a file, made if absent); says so if it has to wait.

    Raises Failure after `limit` seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="ascii") as file:
        deadline = time.monotonic() + limit
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Failure(f"gave up waiting for {path} after {limit} s") from None
                if not told:
                    say(f"waiting for another process: {waiting_for or path}")
                    told = True
                time.sleep(0.1)
        yield file


def run(argv, *, limit=600, **options):
    """Runs a program, quietly; its output is shown only if it fails. Returns its standard output as text."""
    argv = [str(word) for word in argv]
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            timeout=limit, check=False, **options,
        )
    except FileNotFoundError:
        raise Failure(f"{argv[0]}: no such program") from None
    except subprocess.TimeoutExpired:
        raise Failure(f"{' '.join(argv[:6])}: no end after {limit} s") from None
    if done.returncode != 0:
        output = (done.stdout + done.stderr).decode(errors="replace").strip()
        raise Failure(f"{' '.join(argv[:12])}: exit status {done.returncode}\n{output[-4000:]}")
    return done.stdout.decode(errors="replace")


@contextlib.contextmanager
def building(target):
    """Yields a path beside `target` to build at; moves it into place only if all went well.

    So nothing half-made is ever found under its final name, whatever interrupts us.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    for old in target.parent.glob(f".{target.name}.*.partial"):  # of builders that were killed
        if not os.path.exists(f"/proc/{old.name.split('.')[-2]}"):
            remove(old)
    remove(partial)
    try:
        yield partial
        remove(target)
        partial.rename(target)
    finally:
        remove(partial)


def remove(path):
    """Removes a file or a whole directory, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def forget_old(pattern, days=7):
    """Removes things of the cache that nothing has used for days. Other checkouts may still want the younger ones."""
    for path in cache_dir().glob(pattern):
        if time.time() - max(path.stat().st_mtime, path.stat().st_atime) > days * 86400:
            remove(path)


def need(program, package):
    """Makes sure of a program that has to be installed on the host; says so if it installs it."""
    if not shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin"):
        install(package)


def install(*packages):
    """Installs packages of the host's own distribution, as root or by sudo; says so."""
    argv = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]
    if os.geteuid() != 0:
        if not shutil.which("sudo"):
            raise Failure(f"packages are needed and there is no sudo: as root, apt-get install {' '.join(packages)}")
        argv.insert(0, "sudo")
    with step(f"installing {' '.join(packages)} on this machine with apt-get"):
        try:
            run([*argv, "install", "-y", "--no-install-recommends", *packages], limit=900)
        except Failure:  # lists may be absent or old on a fresh machine
            run([*argv, "update"], limit=600)
            run([*argv, "install", "-y", "--no-install-recommends", *packages], limit=900)


def main(function):
    """Runs a program's main function and turns its failures into messages and exit statuses.

    SIGTERM and SIGHUP unwind like an interrupt, so that whatever was started is ended.
    """
    def unwind(number, _frame):
        signal.signal(number, signal.SIG_IGN)
        raise Stopped(number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, unwind)
    try:
        sys.exit(function())
    except Failure as failure:
        say(f"error: {failure}")
        sys.exit(failure.status)
    except KeyboardInterrupt:
        say("interrupted")
        sys.exit(130)
    except Stopped as stopped:
        sys.exit(128 + stopped.number)
