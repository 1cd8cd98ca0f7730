"""The fuzz targets of fuzz/: their build, and runs of them."""

import concurrent.futures
import contextlib
import os
import pathlib
import re
import subprocess
import tempfile
import time

from . import toolchain
from .common import CHECKOUT, Failure, need, remove, run, say

FOLDER = CHECKOUT / "fuzz"
HOME = CHECKOUT / "target" / "fuzz"
# Inputs that found something once, each named after what it was.
REGRESSIONS = FOLDER / "regressions"
COVERAGE = ["-Cpasses=sancov-module", *(f"-Cllvm-args=-sanitizer-coverage-{what}" for what in (
    "level=4", "inline-8bit-counters", "pc-table", "trace-compares"))]
# Sanitizers are not a stable part of Rust yet.
BUILD = {"RUSTC_BOOTSTRAP": "1", "RUSTFLAGS": " ".join([*COVERAGE, "--cfg", "fuzzing", "-Zsanitizer=address"])}
# What a target may take: bytes of memory in all and for one allocation (in MiB), seconds for one input.
LIMITS = ["-rss_limit_mb=1024", "-malloc_limit_mb=256", "-timeout=20"]
SANITIZER = "detect_leaks=0:quarantine_size_mb=16:allocator_may_return_null=1:handle_sigbus=0"
LAST = re.compile(r"^#(\d+)\s.*cov: (\d+) ft: (\d+)", re.M)
REASON = re.compile(r"^(?:.*panicked at .*\n.*|==\d+== ?ERROR: .*)", re.M)


def check():
    """Installs or asks for what the build needs."""
    toolchain.prepare()
    need("g++", "g++")
    libraries = pathlib.Path(run(["rustc", "--print", "sysroot"]).strip()) / "lib/rustlib" / toolchain.TARGET / "lib"
    if not list(libraries.glob("librustc*asan*")):
        raise Failure(f"this Rust has no AddressSanitizer (no librustc*asan* in {libraries}): "
                      "the one of a distribution often has none; install rustup's, and put ~/.cargo/bin first")


def build():
    """Builds the program with all targets; returns it. Cargo's own progress is shown."""
    check()
    argv = ["cargo", "build", "--locked", "--release", "--target", toolchain.TARGET,
            "--manifest-path", FOLDER / "Cargo.toml", "--target-dir", HOME]
    done = subprocess.run([str(word) for word in argv], cwd=CHECKOUT, check=False, stdin=subprocess.DEVNULL, stdout=2,
                          env={**os.environ, **BUILD})
    if done.returncode:
        raise Failure("the fuzz targets cannot be built: see above")
    return HOME / toolchain.TARGET / "release" / "fuzz"


def listed(program):
    """Names of the targets and what they cover."""
    lines = run([program], env={**os.environ, "VIRGA_FUZZ_LIST": "1"}).splitlines()
    return dict(line.split(None, 1) for line in lines)


class Target:
    """A target, its directories, and how it is run."""

    def __init__(self, program, name):
        self.program, self.name = program, name
        self.found = HOME / "found" / name
        self.regressions = REGRESSIONS / name

    @contextlib.contextmanager
    def ready(self):
        """Yields the environment and a directory with seeds and options, gone afterwards."""
        base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        with tempfile.TemporaryDirectory(prefix=f"virga-fuzz-{self.name}-", dir=base) as directory:
            env = {**os.environ, "VIRGA_FUZZ": self.name, "VIRGA_FUZZ_SCRATCH": f"{directory}/files",
                   "ASAN_OPTIONS": SANITIZER}
            run([self.program], env={**env, "VIRGA_FUZZ_PREPARE": directory})
            # What was made for the seeds is made anew.
            remove(pathlib.Path(directory, "files"))
            yield env, pathlib.Path(directory)

    def argv(self, directory, *words):
        """A command line of libFuzzer."""
        options = (directory / "options").read_text(encoding="utf-8").split("\n")
        return [str(word) for word in [self.program, *options, *LIMITS, *words]]

    def hunt(self, seconds, smoke):
        """Looks for something for so long; returns an Outcome."""
        self.found.mkdir(parents=True, exist_ok=True)
        before = set(self.found.iterdir())
        begin = time.monotonic()
        with self.ready() as (env, directory):
            corpus = directory / "corpus" if smoke else HOME / "corpus" / self.name
            corpus.mkdir(parents=True, exist_ok=True)
            inputs = [corpus, directory / "seeds", *[self.regressions] * self.regressions.is_dir()]
            words = [f"-max_total_time={seconds}", f"-artifact_prefix={self.found}/", *inputs]
            try:
                # On standard output there is what guests write there.
                done = subprocess.run(self.argv(directory, *words), env=env, check=False, stdin=subprocess.DEVNULL,
                                      stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=600 + 2 * seconds)
            except subprocess.TimeoutExpired:
                raise Failure(f"{self.name} does not end after {seconds} s, nor {600 + seconds} s later") from None
        output = done.stderr.decode(errors="replace")
        new = set(self.found.iterdir()) - before
        outcome = Outcome(self.name, done.returncode, output, time.monotonic() - begin, new)
        what = "nothing" if outcome.ok() else "SOMETHING"
        say(f"{self.name}: {outcome.runs} inputs in {outcome.seconds:.0f} s, {what} found")
        return outcome


class Outcome:
    """What a hunt came to."""

    def __init__(self, name, status, output, seconds, found):
        self.name, self.status, self.output, self.seconds = name, status, output, seconds
        self.found = sorted(found)
        last = LAST.findall(output)
        self.runs, self.covered, self.features = map(int, last[-1]) if last else (0, 0, 0)

    def ok(self):
        """Whether nothing was found and it did run."""
        return self.status == 0 and not self.found and self.runs > 0

    def tell(self):
        """Says what was found and how to look at it."""
        reason = REASON.search(self.output)
        say(f"{self.name}: {reason.group().strip() if reason else self.output[-3000:]}")
        for path in self.found:
            say(f"look at it with: scripts/fuzz {self.name} --replay {path.relative_to(CHECKOUT)}")


def possible(name):
    """Whether a target can run here; says so if not."""
    if name in ("virtio_net", "state") and (os.geteuid() != 0 or not os.path.exists("/dev/net/tun")):
        print(f"SKIPPED {name}: it needs root and /dev/net/tun, for a tap in a namespace of its own", flush=True)
        return False
    return True


def campaign(targets, options):
    """Runs targets, shows a table; returns the exit status."""
    seconds = options.seconds or (2 if options.smoke else 60)
    jobs = max(options.jobs, 2 if options.smoke else 1)
    say(f"{seconds} s for each of {len(targets)} targets, {jobs} at a time")
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        outcomes = list(pool.map(lambda target: target.hunt(seconds, options.smoke), targets))
    print(f"\n{'target':<16} {'inputs':>9} {'a second':>9} {'coverage':>9} {'features':>9}  found")
    for o in outcomes:
        print(f"{o.name:<16} {o.runs:>9} {o.runs / o.seconds:>9.0f} {o.covered:>9} {o.features:>9}  {len(o.found)}")
    bad = [o for o in outcomes if not o.ok()]
    for outcome in bad:
        outcome.tell()
    word = "FAILED" if bad else "ok"
    print(f"\ntest result: {word}. {len(outcomes) - len(bad)} passed; {len(bad)} failed; 0 ignored", flush=True)
    return 1 if bad else 0


def replay(target, path):
    """Tries one input, with its log."""
    with target.ready() as (env, directory):
        argv = target.argv(directory, path.absolute())
        env = {**env, "VIRGA_FUZZ_LOG": "1"}
        return subprocess.run(argv, env=env, check=False, stdin=subprocess.DEVNULL).returncode


def minimise(target, path):
    """Makes an input shorter."""
    shorter = path.with_name(path.name + ".short")
    with target.ready() as (env, directory):
        words = ["-minimize_crash=1", "-max_total_time=60", f"-exact_artifact_path={shorter}", path.absolute()]
        # libFuzzer sets the greatest length itself here, and cannot have it set twice.
        argv = [word for word in target.argv(directory, *words) if not word.startswith("-max_len=")]
        subprocess.run(argv, env=env, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL)
    if not shorter.exists():
        raise Failure(f"{path} finds nothing, or cannot be made shorter")
    print(shorter)
    return 0


def go(options):
    """Does what was asked; returns the exit status."""
    for path in (options.replay, options.minimise):
        if path and not path.is_file():
            raise Failure(f"{path}: no such file")
    program = build()
    names = listed(program)
    for name in options.target:
        if name not in names:
            raise Failure(f"there is no target {name}: it is one of {', '.join(names)}")
    if options.list:
        for name, about in names.items():
            print(f"{name:<16} {about}")
        return 0
    chosen = [Target(program, name) for name in options.target or names if possible(name)]
    if not chosen:
        return 0
    if options.replay:
        return replay(chosen[0], options.replay)
    if options.minimise:
        return minimise(chosen[0], options.minimise)
    return campaign(chosen, options)
