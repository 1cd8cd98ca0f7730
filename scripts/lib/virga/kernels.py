"""Debian's kernels: fetched, unpacked, and their images taken apart.

A kernel lives in `$VIRGA_CACHE/kernel-NAME/` as `bzImage`, `vmlinux` (uncompressed ELF), `version` and
`lib/modules/VERSION/` with the modules decompressed and indexed by depmod.
"""

import pathlib
import struct
import subprocess

from .common import Failure, building, cache_dir, locked, remove, run, step
from .debian import GUESTS, Apt, tools, unpack

# Name here, the Debian meta package, the suite it is taken from.
KERNELS = {
    "6.1": ("linux-image-cloud-amd64", f"{GUESTS}-security"),
    "6.12": ("linux-image-cloud-amd64", f"{GUESTS}-backports"),
    "outer": ("linux-image-amd64", f"{GUESTS}-backports"),
}
GUEST_KERNELS = ("6.1", "6.12")

DECOMPRESSORS = {
    b"\x02\x21\x4c\x18": ("lz4", "-d", "-c"),
    b"\x28\xb5\x2f\xfd": ("zstd", "-d", "-c"),
    b"\xfd7zXZ": ("xz", "-d", "-c", "--single-stream"),
    b"\x1f\x8b": ("gzip", "-d", "-c"),
}


class Kernel:
    """One unpacked kernel."""

    def __init__(self, name, root):
        self.name = name
        self.root = root
        self.bzimage = root / "bzImage"
        self.vmlinux = root / "vmlinux"
        self.version = (root / "version").read_text(encoding="ascii").strip()
        self.modules = root / "lib/modules" / self.version

    def index(self):
        """What depmod found: module name -> (path, names it depends on); and the names that are built in."""
        depends = {}
        for line in (self.modules / "modules.dep").read_text(encoding="ascii").splitlines():
            path, _, needed = line.partition(":")
            depends[plain(path)] = (path, [plain(word) for word in needed.split()])
        builtin = (self.modules / "modules.builtin").read_text(encoding="ascii").splitlines()
        return depends, {plain(line) for line in builtin}

    def has(self, name):
        """Whether there is a module of that name, or it is built in."""
        depends, builtin = self.index()
        return name.replace("-", "_") in depends or name.replace("-", "_") in builtin

    def closure(self, wanted):
        """Paths of the modules named, each after all it depends on. Built-in ones are left out.

        Raises Failure for a name that this kernel has neither as a module nor built in.
        """
        depends, builtin = self.index()
        order = []

        def visit(name):
            path, needed = depends[name]
            for other in needed:
                visit(other)
            if path not in order:
                order.append(path)

        for name in (word.replace("-", "_") for word in wanted):
            if name in depends:
                visit(name)
            elif name not in builtin:
                raise Failure(f"kernel {self.version} has no module {name}")
        return [self.modules / path for path in order]


def plain(path):
    """A module's name from its file's."""
    return pathlib.Path(path).name.split(".ko")[0].replace("-", "_")


def vmlinux_of(bzimage):
    """The uncompressed kernel within a bzImage, by its setup header (Linux x86 boot protocol 2.08 or later)."""
    if bzimage[0x202:0x206] != b"HdrS":
        raise Failure("not a bzImage: no HdrS")
    setup_sectors = bzimage[0x1F1] or 4
    offset, length = struct.unpack_from("<II", bzimage, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload = bzimage[start:start + length]
    for magic, (program, *flags) in DECOMPRESSORS.items():
        if payload.startswith(magic):
            break
    else:
        raise Failure(f"unknown compression of the kernel: {payload[:6].hex()}")
    # The last four bytes are the uncompressed size, put there for the kernel's own decompressor.
    size = struct.unpack("<I", payload[-4:])[0]
    argv = [program, *flags] if program == "gzip" else tools().argv(program, *flags)
    done = subprocess.run(argv, input=payload[:-4], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          check=False, timeout=300)
    if len(done.stdout) != size or not done.stdout.startswith(b"\x7fELF"):
        raise Failure(f"{program} gave {len(done.stdout)} bytes of {size}: {done.stderr.decode(errors='replace')}")
    return done.stdout


def fetch(name):
    """The kernel of that name; downloaded and prepared at the first call."""
    root = cache_dir() / f"kernel-{name}"
    if not root.exists():
        tools()  # before the lock, which it takes too
        with locked(cache_dir() / "tools.lock", "it is fetching packages"):
            if not root.exists():
                build(name, root)
    return Kernel(name, root)


def build(name, root):
    """Downloads the package that the meta package names today, and prepares it."""
    meta, suite = KERNELS[name]
    apt = Apt(GUESTS)
    if not any(apt.root.glob("lists/*_Packages*")):
        apt.update()
    with step(f"fetching Debian's {name} kernel"):
        [pointer] = apt.fetch(f"{meta}/{suite}")
        package = apt.depends(pointer).split()[0]
        [deb] = apt.fetch(package)
    with step(f"unpacking {package}"), building(root) as partial:
        unpack([deb], partial)
        [image] = partial.glob("boot/vmlinuz-*")
        version = image.name.removeprefix("vmlinuz-")
        (partial / "version").write_text(version + "\n", encoding="ascii")
        image.rename(partial / "bzImage")
        (partial / "vmlinux").write_bytes(vmlinux_of((partial / "bzImage").read_bytes()))
        decompress_modules(partial / "lib/modules" / version)
        run(tools().argv("depmod", "-b", partial, version))
        remove(partial / "usr")
    for path in (pointer, deb):
        path.unlink(missing_ok=True)


def decompress_modules(directory):
    """Unpacks .ko.xz files in place: whoever loads them needs no xz then."""
    packed = sorted(str(path) for path in directory.rglob("*.ko.xz"))
    for at in range(0, len(packed), 500):
        run(tools().argv("xz", "-d", *packed[at:at + 500]))
