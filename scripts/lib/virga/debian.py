"""Debian packages without installing them: a private apt and a tree of unpacked packages.

The machine's own apt sources and dpkg database are read by nobody here and changed by nobody. Packages are checked
against Debian's archive key by apt as usual, unpacked with `dpkg-deb -x`, and their programs are run through their
own C library's loader, so that any Debian or Ubuntu host will do.
"""

import hashlib
import os
import pathlib
import re

from .common import Failure, building, cache_dir, locked, run, say, step

# What the guests run.
GUESTS = "bookworm"
# What the lab itself runs: its QEMU has to emulate nested virtualisation well, which older ones do not; see docs/lab.md.
PROGRAMS = "trixie"
MIRROR = os.environ.get("VIRGA_DEBIAN_MIRROR", "http://deb.debian.org/debian")
SECURITY = os.environ.get("VIRGA_DEBIAN_SECURITY_MIRROR", "http://security.debian.org/debian-security")
KEYRING = pathlib.Path("/usr/share/keyrings/debian-archive-keyring.gpg")

TOOLS = (
    [f"{name}/{PROGRAMS}-backports" for name in ("qemu-system-x86", "qemu-system-common", "qemu-system-data", "qemu-utils", "seabios")]
    + ["dropbear-bin", "busybox-static", "kmod", "openssh-client", "zstd", "lz4", "xz-utils", "dmsetup"]
    + ["iproute2", "iputils-ping", "iperf3", "socat", "pciutils", "strace"]
)

# Those of them that tests and the outer machine run by name.
WRAPPED = ("ip", "bridge", "tc", "ss", "ping", "iperf3", "socat", "lspci", "dmsetup", "modprobe", "insmod", "lsmod", "strace",
           "qemu-system-x86_64", "qemu-img", "qemu-storage-daemon")

# Programs that serve devices to our machines.
PEERS = ["virtiofsd", "passt"]

# DPDK's program that moves frames between ports. Its package is meant for developers: of what that depends on it gets libraries only.
SWITCH = "dpdk-dev"
SWITCH_DRIVERS = ["librte-net-vhost25", "librte-net-tap25", "librte-mempool-ring25"]

# What a guest builds a project with, as the root of a file system, and the programs of it that tests run on the host.
WORKSHOP = "tcc libc6-dev make git openssh-client base-files bash dash coreutils diffutils findutils grep sed".split()
CLIENTS = ["ssh", "ssh-keygen"]

# The project: C, no configuration, seconds to compile. From Debian's archive, which has it as long as it has the release.
PROJECT = ("pool/main/l/lua5.4/lua5.4_5.4.4.orig.tar.gz", "164c7849653b80ae67bec4b7473b884bf5cc8d2dca05653475ec2ed27b9ebf61")


def keyring():
    """Debian's archive key: the machine's, or on Ubuntu the one in Ubuntu's own archive."""
    if KEYRING.exists():
        return KEYRING
    here = cache_dir() / "keyring"
    found = here / "usr/share/keyrings" / KEYRING.name
    if not found.exists():
        with step("fetching Debian's archive key from this machine's own archive"), building(here) as partial:
            partial.mkdir()
            run(["apt-get", "download", "debian-archive-keyring"], cwd=partial)
            run(["dpkg-deb", "-x", next(partial.glob("*.deb")), partial])
    return found


def sources(suite):
    """The lines of a sources.list for a release with its backports."""
    signed = f"[signed-by={keyring()} arch=amd64]"
    return "".join(
        f"deb {signed} {line}\n"
        for line in (
            f"{MIRROR} {suite} main",
            f"{MIRROR} {suite}-updates main",
            f"{MIRROR} {suite}-backports main",
            f"{SECURITY} {suite}-security main",
        )
    )


class Apt:
    """A private apt for one release: own sources, own lists, an empty dpkg database."""

    def __init__(self, suite):
        self.suite = suite
        self.root = cache_dir() / f"apt-{suite}"
        self.archives = self.root / "cache/archives"

    def argv(self, program, *words):
        """The command line of an apt program that uses this configuration."""
        options = {
            "Dir::Etc::sourcelist": self.root / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::State": self.root,
            "Dir::State::lists": self.root / "lists",
            "Dir::State::status": self.root / "status",
            "Dir::Cache": self.root / "cache",
            "APT::Architecture": "amd64",
            "APT::Architectures": "amd64",
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            "Acquire::http::Timeout": "30",
            "Debug::NoLocking": "true",
        }
        flags = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        return [program, *flags, *words]

    def update(self):
        """Refreshes the package lists."""
        for name in ("lists/partial", "cache/archives/partial"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        (self.root / "status").touch()
        (self.root / "sources.list").write_text(sources(self.suite), encoding="ascii")
        with step(f"reading the package lists of Debian {self.suite}"):
            run(self.argv("apt-get", "update", "--error-on=any"))

    def uris(self, *words):
        """File names of what an apt-get command would download."""
        listed = run(self.argv("apt-get", "--print-uris", "-y", *words))
        return re.findall(r"^'\S+' (\S+\.deb) \d+ ", listed, re.MULTILINE)

    def fetch_closure(self, names):
        """Downloads packages with all they depend on; returns the files."""
        files = self.uris("install", *names)
        run(self.argv("apt-get", "-y", "--download-only", "install", *names), limit=1800)
        return [self.archives / name for name in files]

    def fetch(self, *names):
        """Downloads packages without what they depend on; returns the files."""
        files = self.uris("download", *names)
        run(self.argv("apt-get", "download", *names), cwd=self.archives, limit=1800)
        return [self.archives / name for name in files]

    def fetch_libraries(self, name, more):
        """Downloads a package, the libraries that its programs need, and more packages with all they depend on; returns the files."""
        deb, = self.fetch(name)
        names = re.findall(r"(?:^|, )(lib[a-z0-9.+-]+)", self.depends(deb))
        return [deb, *self.fetch_closure([lib for lib in names if not lib.endswith("-dev")] + more)]

    def depends(self, deb):
        """The text of a package file's Depends field."""
        return run(["dpkg-deb", "-f", deb, "Depends"])


def unpack(debs, where):
    """Unpacks package files into a directory."""
    where.mkdir(parents=True, exist_ok=True)
    for deb in debs:
        run(["dpkg-deb", "-x", deb, where])


class Tools:
    """The unpacked programs, and how to run them."""

    PATH = ("usr/sbin", "usr/bin", "sbin", "bin", "usr/libexec")
    LIBRARIES = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu", "usr/lib", "lib")

    def __init__(self, root):
        self.root = root

    def find(self, name):
        """The path of an unpacked program."""
        for directory in self.PATH:
            path = self.root / directory / name
            if path.is_symlink() and os.readlink(path).startswith("/"):
                path = self.root / os.readlink(path).lstrip("/")  # as if the tree were the root
            if path.exists():
                return path
        raise Failure(f"{name} is not among the packages in {self.root}")

    def loader(self):
        """The dynamic loader: newer releases have it under usr only."""
        old = self.root / "lib64/ld-linux-x86-64.so.2"
        return old if old.exists() else self.root / "usr/lib64/ld-linux-x86-64.so.2"

    def argv(self, name, *words):
        """The command line that runs an unpacked program with its own libraries."""
        libraries = ":".join(str(self.root / directory) for directory in self.LIBRARIES)
        loader = self.loader()
        argv = [loader, "--argv0", name, "--library-path", libraries, self.find(name), *words]
        return [str(word) for word in argv]

    def libraries(self, name):
        """The shared libraries that a program loads, and the loader, as paths in the tree."""
        program = self.argv(name)
        listed = run([*program[:-1], "--list", program[-1]])
        return sorted(set(re.findall(r"(/\S+) \(0x", listed)))

    def pack(self, name, archive):
        """Puts a program into an initramfs, and what it loads, where it finds that."""
        archive.file(f"bin/{name}", self.find(name).read_bytes(), 0o755)
        for library in map(pathlib.Path, self.libraries(name)):
            where = "lib64" if library.name.startswith("ld-linux") else "lib/x86_64-linux-gnu"
            archive.file(f"{where}/{library.name}", library.read_bytes(), 0o755)


def unpacked(kind, packages, programs, suite, what, fetch=Apt.fetch_closure):
    """A tree of packages with all they depend on, and wrappers of these programs; fetched at the first call."""
    recipe = hashlib.sha256(" ".join(packages).encode()).hexdigest()[:12]
    root = cache_dir() / f"{kind}-{recipe}"
    if not root.exists():
        with locked(cache_dir() / f"{kind}.lock", "it is fetching packages"):
            if not root.exists():
                apt = Apt(suite)
                apt.update()
                with step(f"fetching {what}"):
                    debs = fetch(apt, packages)
                with step(f"unpacking {len(debs)} packages into {root}"), building(root) as partial:
                    unpack(debs, partial)
                    write_wrappers(Tools(partial), root, programs)
                for deb in debs:
                    deb.unlink(missing_ok=True)
    return Tools(root)


def tools():
    """The tree of the lab's programs."""
    return unpacked("tools", TOOLS, WRAPPED, PROGRAMS,
                    "QEMU and the lab's other programs (50 MB of packages, not installed)")


def peers():
    """The tree of the programs that serve devices to our machines."""
    return unpacked("peers", PEERS, PEERS, PROGRAMS, "virtiofsd and passt (10 MB of packages, not installed)")


def switch():
    """The tree of DPDK's testpmd."""
    return unpacked("switch", [SWITCH, *SWITCH_DRIVERS], ["dpdk-testpmd"], PROGRAMS,
                    "DPDK's testpmd (25 MB of packages, not installed)", lambda apt, names: apt.fetch_libraries(names[0], names[1:]))


def workshop():
    """The tree of what a guest builds a project with."""
    return unpacked("workshop", WORKSHOP, CLIENTS, GUESTS, "a compiler, git and ssh (30 MB of packages, not installed)")


def project():
    """The path of the archive with a project's sources."""
    place, checksum = PROJECT
    path = cache_dir() / place.rpartition("/")[2]
    if not path.exists():
        with step("fetching the sources of a project"), building(path) as partial:
            run(["/usr/lib/apt/apt-helper", "download-file", f"{MIRROR}/{place}", partial, f"SHA256:{checksum}"])
    return path


def own_words(name, root):
    """What a program must be told to find its parts where it was unpacked."""
    if name.startswith("qemu-system"):
        return f' -L "{root}/usr/share/qemu" -L "{root}/usr/share/seabios"'
    if name == "dpdk-testpmd":
        return "".join(f' -d "{root}/usr/lib/x86_64-linux-gnu/librte_{driver}.so.25"' for driver in ("mempool_ring", "net_vhost", "net_tap"))
    return ""


def write_wrappers(tree, final, programs):
    """Fills wrappers/ of the tree with one-line scripts, for a PATH: programs that the host may not have."""
    directory = tree.root / "wrappers"
    directory.mkdir()
    libraries = ":".join(str(final / name) for name in tree.LIBRARIES)
    loader = final / tree.loader().relative_to(tree.root)
    for name in programs:
        try:
            program = final / tree.find(name).relative_to(tree.root)
        except Failure as failure:
            say(f"no {name}: {failure}")
            continue
        script = directory / name
        script.write_text(
            f'#!/bin/sh\nexec "{loader}" --argv0 "{name}" --library-path "{libraries}" '
            f'"{program}"{own_words(name, final)} "$@"\n', encoding="ascii")
        script.chmod(0o755)
