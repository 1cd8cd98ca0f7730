"""The steps of scripts/quickstart: a guest on this host or in the lab, for a person or as a tour."""

import contextlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

from . import debian_image, guest, kernels, session, toolchain
from .common import CHECKOUT, Failure, run, say, step
from .console import Console

PROMPT = r"root@virga-guest:\S* ?# ?$"


class Here:
    """This machine's own KVM."""

    name = "this machine's KVM"
    patience = 120

    @contextlib.contextmanager
    def ready(self):
        """Makes a directory for the socket while in this block; yields the socket's path."""
        with tempfile.TemporaryDirectory(prefix="virga-") as directory:
            yield f"{directory}/api.sock"

    def argv(self, command, terminal=False):
        """The command line that runs a command here."""
        del terminal
        return [str(word) for word in command]


class Lab:
    """The outer machine of scripts/lab."""

    name = "the lab (software emulation: minutes instead of seconds)"
    patience = 900

    @contextlib.contextmanager
    def ready(self):
        """Keeps the outer machine up while in this block; yields the socket's path, in there."""
        with session.Lab().used():
            yield f"/run/quickstart-{os.getpid()}.sock"

    def argv(self, command, terminal=False):
        """The command line that runs a command there."""
        return [str(word) for word in (CHECKOUT / "scripts/lab", "run", *(["-t"] if terminal else []), "--", *command)]


class Clock:
    """Names and durations of the steps, for the summary."""

    def __init__(self):
        self.rows = []

    @contextlib.contextmanager
    def step(self, name):
        """Times a step."""
        begin = time.monotonic()
        yield
        self.rows.append((name, time.monotonic() - begin))

    def table(self):
        """The summary."""
        return "\n".join(f"  {name:<34} {seconds:8.2f} s" for name, seconds in self.rows)


def go(options, tour):
    """Does all of it; returns the exit status."""
    clock = Clock()
    with clock.step("build"):
        toolchain.prepare()
        programs = toolchain.build(options.profile)
    with clock.step("kernel and Debian image"):
        kernel = kernels.fetch(options.kernel)
        initramfs = guest.initramfs(options.kernel)
        image = debian_image.image()
    place = Lab() if options.in_lab else choose(programs)
    say(f"the guest runs on {place.name}")

    (CHECKOUT / "target").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="quickstart-", dir=CHECKOUT / "target") as scratch, \
            place.ready() as socket:
        with clock.step("copy of the disk"):
            disk = pathlib.Path(scratch) / "disk.raw"
            run(["cp", "--reflink=auto", "--sparse=always", image, disk])
        command = [
            programs / "cloud-hypervisor", "--api-socket", f"path={socket}",
            "--cpus", f"boot={options.cpus}", "--memory", f"size={options.memory}",
            "--kernel", kernel.vmlinux, "--initramfs", initramfs, "--cmdline", "console=hvc0 quiet root=/dev/vda",
            "--disk", f"path={disk},image_type=raw", "--console", "tty", "--serial", "null",
        ]
        if tour:
            remote = [programs / "ch-remote", "--api-socket", socket]
            return take_tour(place, command, remote, clock, options)
        say("booting; root will be logged in by itself, and `poweroff` in the guest ends it")
        say(f"its API: {' '.join(place.argv([programs / 'ch-remote', '--api-socket', socket, 'info']))}")
        status = subprocess.run(place.argv(command, terminal=True), check=False).returncode
        say(f"the guest is off (exit status {status})")
        return status


def choose(programs):
    """Where the guest can run: asks the program itself, and shows what it says if the answer is no."""
    asked = subprocess.run([programs / "cloud-hypervisor", "--check-host"], stdin=subprocess.DEVNULL, check=False,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
    if asked.returncode == 0:
        return Here()
    say("cloud-hypervisor --check-host: " + asked.stdout.decode(errors="replace").strip().splitlines()[-1])
    return Lab()


def take_tour(place, command, remote, clock, options):
    """Boot, facts, info, pause, resume, power-off. Raises Failure at the first thing that does not happen."""
    say("this is the tour: the guest's console follows")
    console = Console(place.argv(command, terminal=True), mirror=sys.stdout.buffer)

    def ask_remote(*words):
        return run(place.argv([*remote, *words]), limit=place.patience)

    def state():
        return json.loads(ask_remote("info"))["state"]

    def expect_state(wanted):
        if state() != wanted:
            raise Failure(f"ch-remote info: the state is not {wanted}")

    try:
        with clock.step("boot to the login prompt"):
            found = console.expect(r"virga-guest login:|guest: cannot mount .*|Kernel panic.*", place.patience)
            if not found[0].endswith(b"login:"):
                raise Failure(f"the guest did not boot: {found[0].decode(errors='replace')}")
        with clock.step("login to the shell's prompt"):
            console.expect(PROMPT, place.patience)
        with clock.step("facts from inside"):
            facts = {name: console.ask(line, place.patience) for name, line in {
                "kernel": "uname -r", "system": ". /etc/os-release; echo $PRETTY_NAME", "CPUs": "nproc",
                "memory": "grep MemTotal /proc/meminfo", "devices": "lspci | grep -c Virtio",
                "disk": "df -h / | tail -n 1", "random": "head -c 8 /dev/hwrng | wc -c",
            }.items()}
        if facts["CPUs"] != str(options.cpus):
            raise Failure(f"the guest has {facts['CPUs']} CPUs, not {options.cpus}")
        if facts["kernel"] != kernels.fetch(options.kernel).version:
            raise Failure(f"the guest runs {facts['kernel']}")
        with clock.step("ch-remote info"):
            expect_state("Running")
        with clock.step("pause"):
            ask_remote("pause")
        expect_state("Paused")
        with clock.step("resume"):
            ask_remote("resume")
        expect_state("Running")
        with clock.step("an answer after the resume"):
            if console.ask("echo still $((40 + 2))", place.patience) != "still 42":
                raise Failure("the guest does not answer after the resume")
        with clock.step("power-off by the guest"):
            console.send("poweroff")
            status = console.wait_end(place.patience)
        if status != 0:
            raise Failure(f"cloud-hypervisor ended with exit status {status}")
    finally:
        console.end()
    print(f"\n\nWhat the guest said, on {place.name}:")
    for name, text in facts.items():
        print(f"  {name:<10} {re.sub(chr(10), ' ', text)}")
    print(f"\nTimings:\n{clock.table()}\n\nAll of it happened.")
    return 0
