"""The stages of scripts/test: what each runs, and the sum of it all."""

import os
import re
import subprocess
import sys
import time

from . import common, debian, debian_image, guest, kernels, toolchain
from .common import CHECKOUT, Failure, say

PROBE = ["--manifest-path", "probe/Cargo.toml", "--target-dir", "target/probe"]
# With the features that the whole of it is shipped with: those of `-p vmm` alone are others.
RELEASE = ["cargo", "build", "--locked", "--release", "--bin", "cloud-hypervisor"]
FUZZ = ["--manifest-path", "fuzz/Cargo.toml", "--target-dir", "target"]
UNITS = ["cargo", "test", "--locked", "--no-fail-fast", "--workspace", "--exclude", "tests"]
PROGRAMS = [["cargo", "build", "--locked", "-p", "vmm", "-p", "ch-remote", "-p", "vhost_user_block", "-p", "vhost_user_net",
             "-p", "bare-kvm"],
            ["scripts/build-probe"]]
RESULT = re.compile(r"^test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored", re.M)
SKIPPED = re.compile(r"^SKIPPED", re.M)


def whole(name):
    """The command that runs one of the tests of the whole."""
    return ["cargo", "test", "--locked", "-p", "tests", "--test", name, "--", "--nocapture"]


def soak(minutes, seed, machines):
    """The command that lets machines go through all that can happen to them, for so many minutes."""
    words = ["--minutes", minutes, "--seed", seed, "--machines", machines]
    return ["cargo", "test", "--locked", "-p", "tests", "--test", "soak", "--", *map(str, words)]


class Stage:
    """A name, what it is for, and the commands that must all succeed."""

    def __init__(self, name, about, *commands, prepare=None):
        self.name, self.about, self.commands, self.prepare = name, about, commands, prepare


def programs():
    """Brings the programs and the probe guest up to date: tests of the whole run what lies in the target directory."""
    for argv in PROGRAMS:
        common.run(argv, limit=1800, cwd=CHECKOUT)


def storage_daemon():
    """Has tests use QEMU's daemon that is known to do, not an old one of the host's."""
    os.environ.setdefault("VIRGA_STORAGE_DAEMON", str(debian.tools().root / "wrappers/qemu-storage-daemon"))


def peers():
    """The same for programs of others that serve devices to the machine."""
    storage_daemon()
    tree = debian.peers()
    for name in debian.PEERS:
        os.environ.setdefault(f"VIRGA_{name.upper()}", str(tree.root / "wrappers" / name))


def probe_ready():
    """What the probe's tests need."""
    programs()
    peers()


def lab_ready():
    """Fetches and builds what the lab's tests need, so that no test's time limit pays for it."""
    programs()
    peers()
    for name in kernels.GUEST_KERNELS:
        guest.initramfs(name)
    for kind in ("debian", "cloud"):
        debian_image.image(kind)
    debian.workshop()
    debian.project()


STAGES = [
    Stage("format", "rustfmt, on the project, the probe and the fuzz targets",
          ["cargo", "fmt", "--all", "--check"],
          ["cargo", "fmt", "--manifest-path", "probe/Cargo.toml", "--check"],
          ["cargo", "fmt", "--manifest-path", "fuzz/Cargo.toml", "--check"]),
    Stage("lints", "clippy with warnings as errors, and what may come in from outside",
          ["cargo", "clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"],
          ["cargo", "clippy", "--locked", "--release", *PROBE, "--", "-D", "warnings"],
          ["cargo", "clippy", "--locked", *FUZZ, "--", "-D", "warnings"],
          ["scripts/deny"],
          prepare=lambda: common.need("g++", "g++")),
    Stage("units", "each crate's own tests, on the real /dev/kvm, taps, terminals and sockets",
          UNITS, whole("floors"), whole("claims")),
    Stage("programs", "builds the programs and the probe guest, and looks whether the program for release has the functions it is laid out by",
          *PROGRAMS, RELEASE, whole("order")),
    Stage("probe", "the machine's devices, driven by the probe guest", whole("bare_kvm"), whole("probe"), prepare=probe_ready),
    Stage("api", "ch-remote and other clients against a running machine", whole("api"), prepare=programs),
    Stage("bad_input", "what must be refused, and how", whole("bad_input"), prepare=programs),
    Stage("soak", "machines under trouble for half a minute", soak(0.4, 21, 2), prepare=programs),
    Stage("fuzz", "each fuzz target for some seconds", ["scripts/fuzz", "--smoke"]),
    Stage("lab", "stock Debian kernels, old and new, and the examples of the README",
          whole("lab"), whole("readme"), prepare=lab_ready),
]


class Outcome:
    """What one stage came to."""

    def __init__(self, stage):
        self.stage, self.passed, self.failed, self.skipped, self.seconds = stage, 0, 0, 0, 0.0

    def add(self, status, output):
        """Counts the tests that a command reports; a command without any counts as one."""
        results = RESULT.findall(output)
        for passed, failed, ignored in results:
            self.passed += int(passed)
            self.failed += int(failed)
            self.skipped += int(ignored)
        self.skipped += len(SKIPPED.findall(output))
        if not results:
            self.passed += status == 0
        if status and not any(int(failed) for _, failed, _ in results):
            self.failed += 1


def execute(argv):
    """Runs a command, showing its output as it comes; returns exit status and output."""
    print(f"test: $ {' '.join(argv)}", flush=True)
    child = subprocess.Popen(argv, cwd=CHECKOUT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, text=True, errors="replace",
                             env={**os.environ, "CARGO_TERM_COLOR": "never"})
    lines = []
    try:
        for line in child.stdout:
            lines.append(line)
            sys.stdout.write(line)
            sys.stdout.flush()
        return child.wait(), "".join(lines)
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait()


def run(stage):
    """Runs all commands of a stage, whether or not one fails."""
    outcome = Outcome(stage)
    begin = time.monotonic()
    try:
        if stage.prepare:
            stage.prepare()
        for argv in stage.commands:
            outcome.add(*execute(argv))
    except Failure as failure:
        say(f"{stage.name}: {failure}")
        outcome.failed += 1
    outcome.seconds = time.monotonic() - begin
    return outcome


def go(options):
    """Runs the stages asked for; returns the exit status."""
    names = [stage.name for stage in STAGES]
    for name in [*options.stage, *options.without]:
        if name not in names:
            raise Failure(f"there is no stage {name}: it is one of {', '.join(names)}")
    if options.list:
        for stage in STAGES:
            print(f"{stage.name:<10} {stage.about}")
        return 0
    chosen = [s for s in STAGES if (not options.stage or s.name in options.stage) and s.name not in options.without]
    toolchain.prepare()
    outcomes = [run(stage) for stage in chosen]

    print(f"\n{'stage':<10} {'passed':>7} {'failed':>7} {'skipped':>8} {'seconds':>8}")
    for o in outcomes:
        print(f"{o.stage.name:<10} {o.passed:>7} {o.failed:>7} {o.skipped:>8} {o.seconds:>8.1f}")
    passed, failed, skipped = (sum(getattr(o, what) for o in outcomes) for what in ("passed", "failed", "skipped"))
    seconds = sum(o.seconds for o in outcomes)
    print(f"all of it took {seconds / 60:.1f} minutes\n")
    print(f"{passed} passed, {failed} failed, {skipped} skipped", flush=True)
    return 1 if failed or not passed else 0
