"""The images that guests boot: a small initramfs for quick tests, and a Debian on a disk."""

import stat

from . import kernels
from .common import SCRIPTS, building, cache_dir, forget_old
from .cpio import Archive
from .debian import tools
from .outer import fingerprint

# Loaded at boot, in this order, if the kernel has them as modules.
MODULES = "virtio_pci virtio_blk virtio_net virtio_console virtio_rng virtio_balloon button evdev".split()
# There to be loaded by a test: modprobe NAME.
SPARE = """
    virtio_mem virtio_pmem virtio_vsock vsock nd_virtio nvme e1000e virtiofs overlay vfat pvpanic_pci
    nd_pmem ext4 virtio_iommu tpm_crb af_packet loop
""".split()


def initramfs(kernel_name):
    """The path of the initramfs for that kernel; built at the first call and whenever its content changes."""
    kernel, tree = kernels.fetch(kernel_name), tools()
    init = (SCRIPTS / "guest.d/init").read_bytes()
    with open(__file__, "rb") as source:
        name = fingerprint(init, source.read(), kernel.version, tree.root)
    path = cache_dir() / f"initramfs-{kernel_name}-{name}.cpio"
    if not path.exists():
        archive = Archive()
        for name in ("bin", "dev", "proc", "sys", "run", "tmp", "root"):
            archive.directory(name)
        archive.node("dev/console", 5, 1)
        archive.file("bin/busybox", tree.find("busybox").read_bytes(), 0o755)
        archive.file("init", init, 0o755)
        loaded = kernel.closure(MODULES)
        archive.file("modules.order", "".join(f"{inside(kernel, module)}\n" for module in loaded))
        for module in loaded + kernel.closure(available(kernel, SPARE)):
            archive.file(inside(kernel, module), module.read_bytes())
        for index in ("modules.dep", "modules.alias", "modules.symbols", "modules.builtin"):
            archive.file(inside(kernel, kernel.modules / index), (kernel.modules / index).read_bytes())
        forget_old("initramfs-*.cpio")
        with building(path) as partial:
            partial.write_bytes(archive.bytes())
    return path


def inside(kernel, path):
    """Where a module file is within the guest."""
    return f"/lib/modules/{kernel.version}/{path.relative_to(kernel.modules)}"


def available(kernel, names):
    """Those of the names that this kernel has as modules or built in."""
    return [name for name in names if kernel.has(name)]


def with_script(base, script):
    """The bytes of an initramfs that runs a script: a second archive after the first."""
    archive = Archive()
    archive.add("script", stat.S_IFREG | 0o755, script)
    return base.read_bytes() + archive.bytes()
