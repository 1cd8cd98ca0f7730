"""Commands in the outer machine: brought up when needed, run over ssh, ended with all they started."""

import contextlib
import fcntl
import os
import re
import shlex
import subprocess
import time
import uuid

from . import outer
from .common import Failure, say
from .debian import tools
from .machine import Instance, end, shares, tail

# What of the environment goes along. The rest stays out: secrets are often in it.
PASSED = re.compile(r"(PATH|HOME|USER|LOGNAME|SHELL|TERM|LANG|LC_\w+|TZ|COLUMNS|LINES|NO_COLOR|RUST\w*|CARGO\w*|VIRGA\w*)$")
IDLE = 900


class Crashed(Failure):
    """The outer machine went while a command ran in it, of a fault of its own: emulated kernels do now and then."""

    status = 125


class Lab:
    """This checkout's lab."""

    def __init__(self):
        self.instance = Instance()
        self.directory = self.instance.directory
        self.keep = self.directory / "keep"

    def ssh(self, *words, options=()):
        """The command line of an ssh to the machine."""
        key = outer.keys()
        settings = {
            "IdentityFile": key / "user", "IdentitiesOnly": "yes", "IdentityAgent": "none",
            "UserKnownHostsFile": key / "known_hosts", "HostKeyAlias": "virga-lab", "StrictHostKeyChecking": "yes",
            "BatchMode": "yes", "LogLevel": "ERROR", "ConnectTimeout": "30", "ServerAliveInterval": "30",
            "ServerAliveCountMax": "10", "ControlPath": "ctl", "ControlMaster": "no", "EscapeChar": "none",
        }
        flags = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
        return tools().argv("ssh", "-F", "/dev/null", *flags, *options, "-p", self.instance.port(),
                            "root@127.0.0.1", *words)

    def tell(self, *words, limit=60):
        """Runs a short command in the machine, outside the host's root."""
        line = shlex.join(str(word) for word in words)
        try:
            done = subprocess.run(self.ssh(line), cwd=self.directory, stdin=subprocess.DEVNULL, check=False,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=limit)
        except subprocess.TimeoutExpired:
            raise Failure(f"the outer machine does not answer in {limit} s: {line}") from None
        if done.returncode:
            raise Failure(f"in the outer machine: {line}: exit status {done.returncode}\n"
                          f"{done.stdout.decode(errors='replace').strip()}")
        return done.stdout.decode(errors="replace")

    def up(self, idle):
        """Starts the machine if it is not running, and makes it this host's. The caller holds the lock."""
        begin = time.monotonic()
        fresh = self.instance.pid() is None
        if fresh:
            self.instance.start()
        try:
            if fresh:
                self.connect()
            tags = [word for tag, (path, _) in sorted(shares().items(), key=lambda item: len(str(item[1][0])))
                    for word in (tag, path)]
            if fresh or idle:
                self.tell("/lab/join", int(time.time()), idle or IDLE, *tags)
        except BaseException:
            if fresh:
                self.instance.stop()
            raise
        if fresh:
            say(f"the outer machine is up, in {time.monotonic() - begin:.1f} s")
        return fresh

    def connect(self):
        """Starts the ssh connection that the others share. It ends with the machine."""
        with open(self.directory / "ssh.log", "wb") as log:
            for attempt in range(3):
                argv = self.ssh(options=("-f", "-N", "-M"))
                try:
                    done = subprocess.run(argv, cwd=self.directory, stdin=subprocess.DEVNULL, stdout=log,
                                          stderr=log, timeout=60, check=False)
                    if done.returncode == 0:
                        return
                except subprocess.TimeoutExpired:
                    say(f"no ssh connection in 60 s, attempt {attempt + 1}")
        raise Failure(f"no ssh connection to the outer machine:\n{tail(self.directory / 'ssh.log')}\n"
                      f"{tail(self.directory / 'serial.log')}")

    @contextlib.contextmanager
    def used(self):
        """The machine, up and not taken down while in this block; down afterwards if nobody asked it to stay."""
        with open(self.directory / "users", "w", encoding="ascii") as users:
            with self.instance.lock():
                fcntl.flock(users, fcntl.LOCK_SH)
                self.up(idle=None)
            try:
                yield
            finally:
                with self.instance.lock():
                    try:
                        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        if not self.keep.exists():
                            self.instance.stop()
                    except BlockingIOError:
                        pass  # another command still runs: its end sees to it

    def run(self, command, *, terminal=False, limit=None, extra=(), directory=None):
        """Runs a command with our standard streams; returns its exit status, 124 when `limit` seconds are over."""
        name = uuid.uuid4().hex[:12]
        # The machine's own limit is for the case that we are killed without a word.
        words = ["/lab/exec", name, str(int(limit) + 30 if limit else 0)]
        line = shlex.join([*words, script(command, extra, directory or os.getcwd())])
        process = subprocess.Popen(self.ssh(line, options=("-tt",) if terminal else ("-T",)), cwd=self.directory)
        ended = False
        try:
            status = process.wait(limit)
            ended = status >= 0
        except subprocess.TimeoutExpired:
            say(f"no end after {limit:g} s, killed: {shlex.join(command)}")
            status = 124
        finally:
            if not ended:
                self.kill(name)
                end(process)
        if status == 255 and self.instance.pid() is None:
            raise Crashed(f"the outer machine ended:\n{tail(self.directory / 'serial.log')}\n"
                          f"{tail(self.directory / 'qemu.log')}")
        return status

    def kill(self, name):
        """Kills all that a command has started."""
        try:
            self.tell("sh", "-c", f"cd /sys/fs/cgroup/run-{name} 2> /dev/null && echo 1 > cgroup.kill || true",
                      limit=20)
        except Failure as failure:
            say(f"cannot kill: {failure}")


def script(command, extra, directory):
    """The line of shell that runs a command with our environment and directory."""
    environment = {name: value for name, value in os.environ.items() if PASSED.match(name)}
    environment["PATH"] = f"{environment.get('PATH', '/usr/bin')}:/usr/sbin:/sbin:{tools().root}/wrappers"
    environment["VIRGA_IN_LAB"] = "1"
    for word in extra:
        name, equals, value = word.partition("=")
        environment[name] = value if equals else os.environ.get(name, "")
    settings = [f"{name}={value}" for name, value in environment.items()]
    return f"cd {shlex.quote(directory)} && exec {shlex.join(['env', '-i', *settings, *command])}"
