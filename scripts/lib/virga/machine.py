"""The outer machine (L1): a QEMU without hardware virtualisation whose guest has /dev/kvm all the same.

One saved state serves every checkout; each checkout (with its target directory) has an instance of its own, in
`$VIRGA_CACHE/lab/run-HASH/`. Nothing here knows what commands are run in it: that is session.py.
"""

import hashlib
import os
import re
import signal
import subprocess
import time

from . import kernels, outer
from .common import CHECKOUT, Failure, building, cache_dir, forget_old, locked, remove, run, say, step
from .debian import tools
from .qmp import Monitor

MEMORY = os.environ.get("VIRGA_LAB_MEMORY", "6G")
CPUS = os.environ.get("VIRGA_LAB_CPUS", "1")
# Which of several machines for one checkout.
NUMBER = os.environ.get("VIRGA_LAB_MACHINE", "0")
SLOTS = ("work", "cache", "target")
COMMAND_LINE = "console=ttyS0 quiet ignore_loglevel panic=-1 mitigations=off tsc=reliable"


def shares():
    """What is visible in the machine besides the host's root: tag -> (path, read-only)."""
    found = {"work": (CHECKOUT, False), "cache": (cache_dir(), True)}
    target = os.environ.get("CARGO_TARGET_DIR")
    if target:
        path = (CHECKOUT / target).resolve()
        path.mkdir(parents=True, exist_ok=True)
        if not path.is_relative_to(CHECKOUT):
            found["target"] = (path, False)
    return found


def qemu(directory, ram, shared):
    """QEMU's command line. What the saved state depends on is the same for saving and restoring."""
    tree = tools()
    kernel = kernels.fetch("outer")
    data = [word for name in ("qemu", "seabios") for word in ("-L", tree.root / "usr/share" / name)]
    argv = tree.argv(
        "qemu-system-x86_64", *data, "-L", tree.root / "usr/lib/ipxe/qemu",
        "-name", "virga-lab", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-accel", "tcg,thread=multi,tb-size=512", "-M", "q35,memory-backend=ram", "-cpu", "max,+svm,-la57",
        "-smp", CPUS, "-m", MEMORY,
        "-object", f"memory-backend-file,id=ram,size={MEMORY},mem-path={ram},share={'on' if shared else 'off'}",
        "-kernel", kernel.bzimage, "-initrd", ram.with_name("initramfs"), "-append", COMMAND_LINE,
        "-serial", "file:serial.log", "-qmp", "unix:qmp.sock,server=on,wait=off",
        # No way out: only the forwarded port comes in.
        "-netdev", "user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:0-10.0.2.15:22",
        "-device", "virtio-net-pci,netdev=net,romfile=", "-device", "virtio-rng-pci",
        "-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap",
        "-device", "virtio-9p-pci,fsdev=root,mount_tag=root",
    )
    granted = {} if shared else shares()
    nothing = directory / "nothing"
    nothing.mkdir(exist_ok=True)
    for tag in SLOTS:
        path, read_only = granted.get(tag, (nothing, True))
        quoted = str(path).replace(",", ",,")
        argv += ["-fsdev", f"local,id={tag},path={quoted},security_model=none,multidevs=remap"
                           + (",readonly=on" if read_only else ""),
                 "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
    return [str(word) for word in argv]


def launch(directory, argv):
    """Starts QEMU in `directory`, with its words going to qemu.log there; records its pid."""
    environment = {**os.environ, "QEMU_MODULE_DIR": str(tools().root / "usr/lib/x86_64-linux-gnu/qemu")}
    for name in ("serial.log", "qmp.sock"):
        remove(directory / name)
    with open(directory / "qemu.log", "wb") as log:
        process = subprocess.Popen(argv, cwd=directory, env=environment, start_new_session=True,
                                   stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    (directory / "pid").write_text(f"{process.pid} {start_time(process.pid)}\n", encoding="ascii")
    return process


def start_time(pid):
    """When a process started, in the kernel's ticks, or None if there is none of that number (or a dead one)."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def connect(directory, process, limit=20):
    """The monitor of a QEMU that has just been started."""
    deadline = time.monotonic() + limit
    while True:
        try:
            return Monitor(directory)
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise Failure(f"QEMU did not start:\n{tail(directory / 'qemu.log')}") from None
            time.sleep(0.02)


def tail(path, size=3000):
    """The end of a log."""
    try:
        return path.read_bytes()[-size:].decode(errors="replace").strip()
    except OSError as error:
        return f"({error})"


def saved_state():
    """The directory with the machine's saved state (`ram`, `state`, `initramfs`); made at the first call."""
    tree, kernel, initramfs = tools(), kernels.fetch("outer"), outer.initramfs()
    with open(__file__, "rb") as source:
        name = outer.fingerprint(tree.root, kernel.version, initramfs, MEMORY, CPUS, source.read())
    directory = cache_dir() / f"lab/state-{name}"
    if not directory.exists():
        with locked(cache_dir() / "lab/build.lock", "it is preparing the lab"):
            if not directory.exists():
                forget_old("lab/state-*")
                with step("booting the outer machine once, to save its state (half a minute)"), \
                        building(directory) as partial:
                    partial.mkdir()
                    save(partial, initramfs)
    return directory


def save(directory, initramfs):
    """Boots the machine to its ssh server, and saves it there, before anything of the host is mounted."""
    ram = directory / "ram"
    (directory / "initramfs").write_bytes(initramfs)
    process = launch(directory, qemu(directory, ram, shared=True))
    try:
        with connect(directory, process) as monitor:
            deadline = time.monotonic() + 240
            while b"lab: ready" not in serial(directory):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise Failure(f"the outer machine does not come up:\n{tail(directory / 'serial.log')}\n"
                                  f"{tail(directory / 'qemu.log')}")
                time.sleep(0.1)
            if b"cannot load" in serial(directory):
                raise Failure(f"the outer machine lacks modules:\n{tail(directory / 'serial.log')}")
            time.sleep(1)  # let the ssh server get to its accept()
            monitor.do("stop")
            monitor.do("migrate-set-capabilities", capabilities=[{"capability": "x-ignore-shared", "state": True}])
            monitor.do("migrate", uri="file:state")
            monitor.wait("query-migrate", lambda answer: answer.get("status") == "completed")
            monitor.do("quit")
        process.wait(20)
    finally:
        end(process)


def serial(directory):
    """What the machine has written to its serial port so far."""
    try:
        return (directory / "serial.log").read_bytes()
    except FileNotFoundError:
        return b""


def end(process):
    """Ends a QEMU that we started, whatever it is doing."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)


class Instance:
    """This checkout's machine, running or not. The caller holds `lock()` around start and stop."""

    def __init__(self, directory=None):
        name = hashlib.sha256(repr((NUMBER, sorted(shares().items()))).encode()).hexdigest()[:12]
        self.directory = directory or cache_dir() / f"lab/run-{name}"
        self.directory.mkdir(parents=True, exist_ok=True)

    def lock(self):
        """Held while the machine is started or stopped."""
        return locked(self.directory / "lock", "it is starting or stopping the lab", limit=600)

    def pid(self):
        """The process id of the running QEMU, or None. A recycled number is not taken for it."""
        try:
            pid, started = (self.directory / "pid").read_text(encoding="ascii").split()
        except (OSError, ValueError):
            return None
        return int(pid) if start_time(int(pid)) == started else None

    def port(self):
        """The loopback port of the ssh server."""
        return int((self.directory / "port").read_text(encoding="ascii"))

    def start(self):
        """Restores the saved state and waits until its ssh port is known. Ends what it started if that fails."""
        state = saved_state()
        directory = self.directory
        process = launch(directory, qemu(directory, state / "ram", shared=False) + ["-incoming", "defer"])
        try:
            with connect(directory, process) as monitor:
                monitor.do("migrate-set-capabilities",
                           capabilities=[{"capability": "x-ignore-shared", "state": True}])
                monitor.do("migrate-incoming", uri=f"file:{state}/state")
                monitor.wait("query-status", lambda answer: answer["status"] == "paused")
                monitor.do("cont")
                found = re.search(r"HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)", monitor.human("info usernet"))
                if not found:
                    raise Failure("QEMU does not say which port it forwards")
            (directory / "port").write_text(found[1], encoding="ascii")
        except BaseException:
            end(process)
            say(f"QEMU's log: {tail(directory / 'qemu.log')}")
            raise

    def stop(self):
        """Ends QEMU by its recorded pid; returns whether there was one."""
        pid = self.pid()
        if pid is None:
            return False
        try:
            with Monitor(self.directory, limit=5) as monitor:
                monitor.do("quit")
        except (OSError, Failure):
            pass  # it may be gone or stuck: the signals below see to it
        for number in (None, signal.SIGTERM, signal.SIGKILL):
            if number:
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    break
            for _ in range(100):
                if self.pid() is None:
                    return True
                time.sleep(0.02)
        if self.pid() is not None:
            raise Failure(f"QEMU {pid} does not end")
        return True


def instances():
    """Those of all checkouts that use this cache."""
    return [Instance(path) for path in sorted(cache_dir().glob("lab/run-*"))]
