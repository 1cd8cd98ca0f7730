"""What the lab's outer machine boots from: its kernel, its initramfs with the ssh server, and the keys to it."""

import hashlib
import stat

from . import kernels
from .common import SCRIPTS, building, cache_dir, locked, run
from .cpio import Archive
from .debian import tools

# Loaded before the machine's state is saved. Whatever else a test needs it can modprobe from the host's root.
MODULES = """
    virtio_pci virtio_net virtio_blk virtio_rng 9pnet_virtio 9p overlay kvm_amd
    tun tap vhost_net vhost_vsock bridge veth loop dm_mod dm_snapshot nvme vfio_pci
""".split()
OPTIONS = {"kvm_amd": "nested=0", "loop": "max_loop=8"}


def keys():
    """The directory with the ssh keys of the lab: `host` (dropbear), `user`, `user.pub`, `known_hosts`."""
    directory = cache_dir() / "lab/keys"
    if not directory.exists():
        tree = tools()
        with locked(cache_dir() / "lab/build.lock", "it is preparing the lab"):
            if not directory.exists():
                with building(directory) as partial:
                    partial.mkdir(mode=0o700)
                    shown = run(tree.argv("dropbearkey", "-t", "ed25519", "-f", partial / "host"))
                    [public] = [line for line in shown.splitlines() if line.startswith("ssh-ed25519 ")]
                    run(tree.argv("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "virga-lab",
                                  "-f", partial / "user"))
                    (partial / "known_hosts").write_text(f"virga-lab {public}\n", encoding="ascii")
    return directory


def initramfs():
    """The bytes of the outer machine's initramfs."""
    tree, kernel = tools(), kernels.fetch("outer")
    archive = Archive()
    for name in ("bin", "dev", "proc", "sys", "run", "tmp", "host", "new", "over"):
        archive.directory(name)
    archive.node("dev/console", 5, 1)
    archive.node("dev/null", 1, 3)
    archive.file("bin/busybox", tree.find("busybox").read_bytes(), 0o755)
    for name in ("init", "join", "exec"):
        archive.file(name if name == "init" else f"lab/{name}", (SCRIPTS / "lab.d" / name).read_bytes(), 0o755)

    order = []
    for path in kernel.closure(MODULES):
        name = path.name.removesuffix(".ko")
        archive.file(f"modules/{path.name}", path.read_bytes())
        order.append(f"/modules/{path.name} {OPTIONS.get(name.replace('-', '_'), '')}".strip())
    archive.file("modules.order", "\n".join(order) + "\n")

    tree.pack("dropbear", archive)
    archive.file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")
    archive.file("etc/group", "root:x:0:\n")
    archive.file("etc/shells", "/bin/sh\n")
    archive.file("etc/dropbear/hostkey", (keys() / "host").read_bytes(), 0o600)
    archive.add("root/.ssh", stat.S_IFDIR | 0o700)
    archive.file("root/.ssh/authorized_keys", (keys() / "user.pub").read_bytes(), 0o600)
    return archive.bytes()


def fingerprint(*things):
    """A short name for a combination of inputs; another input gives another name."""
    digest = hashlib.sha256()
    for thing in things:
        digest.update(thing if isinstance(thing, bytes) else str(thing).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:16]
