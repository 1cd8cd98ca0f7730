"""The programs of this project: what building them needs on the host, and the build."""

import os
import re
import shutil
import subprocess
import tempfile
import urllib.request

from .common import CHECKOUT, Failure, install, run, say, step

TARGET = "x86_64-unknown-linux-gnu"
PROGRAMS = ("cloud-hypervisor", "ch-remote", "vhost_user_block", "vhost_user_net")


def wanted_rust():
    """The oldest Rust that Cargo.toml admits, as (major, minor)."""
    text = (CHECKOUT / "Cargo.toml").read_text(encoding="utf-8")
    return tuple(int(part) for part in re.search(r'rust-version = "(\d+)\.(\d+)', text).groups())


def found_rust():
    """The version of the Rust on the PATH or of rustup's usual place, or None."""
    os.environ["PATH"] += ":" + os.path.expanduser("~/.cargo/bin")
    if not shutil.which("cargo"):
        return None
    try:
        shown = re.search(r"rustc (\d+)\.(\d+)", run(["rustc", "--version"]))
    except Failure:
        return None
    return tuple(int(part) for part in shown.groups())


def prepare():
    """Installs a C compiler (for linking) and a Rust if they are missing."""
    missing = [] if shutil.which("cc") else ["gcc"]
    static = "/usr/lib/x86_64-linux-gnu/libc.a"
    if not os.path.exists(static):
        missing.append("libc6-dev")
    if missing:
        install(*missing)
    wanted, found = wanted_rust(), found_rust()
    if found and found >= wanted:
        return
    text = ".".join(map(str, wanted))
    if not shutil.which("rustup"):
        say(f"Rust {text} or later is needed; this machine has {'.'.join(map(str, found)) if found else 'none'}")
        try:
            install("rustup")
        except Failure:
            say("this release has no rustup package; taking rustup from its makers, https://sh.rustup.rs")
            install_rustup_by_script()
    with step("installing the stable Rust with rustup, for this user"):
        run(["rustup", "toolchain", "install", "stable", "--profile", "minimal", "-c", "rustfmt", "-c", "clippy"],
            limit=1200)
        run(["rustup", "default", "stable"])
    if (found_rust() or (0, 0)) < wanted:
        raise Failure(f"there is still no Rust {text}: another cargo may be first on the PATH")


def install_rustup_by_script():
    """Runs rustup's own installer for this user, as its site tells a person to."""
    try:
        with urllib.request.urlopen("https://sh.rustup.rs", timeout=60) as answer:
            script = answer.read()
    except OSError as error:
        raise Failure(f"cannot fetch https://sh.rustup.rs ({error}): install Rust and start again") from None
    with tempfile.NamedTemporaryFile(suffix=".sh") as file:
        file.write(script)
        file.flush()
        run(["sh", file.name, "-y", "--no-modify-path", "--default-toolchain", "none"], limit=600)
    os.environ["PATH"] += ":" + os.path.expanduser("~/.cargo/bin")


def build(profile):
    """Builds the programs; returns the directory with them. Cargo's own progress is shown."""
    say(f"building {', '.join(PROGRAMS)} ({profile}) ...")
    done = subprocess.run(["cargo", "build", "--locked", "--profile", profile], cwd=CHECKOUT, check=False,
                          stdin=subprocess.DEVNULL, stdout=2)
    if done.returncode:
        raise Failure("the build failed: see above")
    target = CHECKOUT / os.environ.get("CARGO_TARGET_DIR", "target")
    return target / TARGET / ("debug" if profile == "dev" else profile)
