"""The Debian that guests boot from a disk: made by mmdebstrap, put on a raw ext4 image.

systemd, as a Debian user expects; what is slow at boot under emulation is masked, and what a guest on a test bench
needs to be is set: root logged in by itself on the console, a fixed machine id, addresses by DHCP.
"""

import os

from . import debian, kernels
from .common import SCRIPTS, building, cache_dir, forget_old, locked, need, run, say, step
from .outer import fingerprint

SIZE = 1000 << 20  # bytes of the file system; the file is sparse and holds about half of that
# acpid and no dbus: the power button works without logind, which takes longer to start than all else together.
PACKAGES = """
    systemd-sysv udev acpid kmod procps iproute2 iputils-ping iperf3 socat pciutils ethtool
    python3-minimal less fio openssh-server
""".split()
# What makes a guest ask the host who it is, at its first boot.
CLOUD = ["cloud-init"]
MASKED = """
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer
    systemd-tmpfiles-clean.timer e2scrub_reap.service systemd-pstore.service systemd-random-seed.service
    systemd-update-utmp.service systemd-update-utmp-runlevel.service systemd-networkd-wait-online.service
    systemd-journal-flush.service ldconfig.service systemd-hwdb-update.service
    systemd-journal-catalog-update.service systemd-network-generator.service systemd-logind.service
    systemd-binfmt.service systemd-modules-load.service systemd-remount-fs.service kmod-static-nodes.service
    modprobe@drm.service modprobe@efi_pstore.service modprobe@fuse.service modprobe@configfs.service
    modprobe@dm_mod.service modprobe@loop.service dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount
    sys-kernel-tracing.mount sys-kernel-config.mount sys-fs-fuse-connections.mount getty@tty1.service getty-static.service
    proc-sys-fs-binfmt_misc.automount proc-sys-fs-binfmt_misc.mount
""".split()


def image(kind="debian"):
    """The path of the image of a kind, debian or cloud; built at the first call and whenever the recipe changes."""
    versions = [kernels.fetch(name).version for name in kernels.GUEST_KERNELS]
    parts = sorted((SCRIPTS / "guest.d/debian").rglob("*"))
    with open(__file__, "rb") as source:
        recipe = [part.read_bytes() for part in parts if part.is_file()]
        path = cache_dir() / f"{kind}-{fingerprint(source.read(), *versions, *recipe)}.raw"
    if not path.exists():
        with locked(cache_dir() / "image.lock", f"it is building the {kind} image"):
            if not path.exists():
                with building(path) as partial:
                    build(partial, PACKAGES + (CLOUD if kind == "cloud" else []))
                forget_old(f"{kind}-*.raw")
    return path


def build(path, packages):
    """Bootstraps Debian into a directory and makes the image of it."""
    need("mmdebstrap", "mmdebstrap")
    need("mke2fs", "e2fsprogs")
    as_root = os.geteuid() == 0
    if not as_root:
        need("newuidmap", "uidmap")
    # Beside nothing of ours: with --mode=unshare its files belong to a range of other users.
    root = path.with_name(f"{path.name}.root")
    listing = path.with_name(f"{path.name}.list")
    mode = "root" if as_root else "unshare"
    enter = [] if as_root else ["mmdebstrap", "--unshare-helper"]
    try:
        listing.write_text(debian.sources(debian.GUESTS), encoding="ascii")
        with step("building a Debian root file system (about 100 MB of packages, a minute or two)"):
            run([
                "mmdebstrap", f"--mode={mode}", "--variant=minbase", "--architectures=amd64", "--quiet",
                f"--include={','.join(packages)}", f"--keyring={debian.keyring()}",
                "--aptopt=Apt::Install-Recommends \"false\"",
                "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*",
                "--dpkgopt=path-exclude=/usr/share/locale/*", "--dpkgopt=path-exclude=/usr/share/info/*",
                *hooks(), debian.GUESTS, root, listing,
            ], limit=1800)
        # After mmdebstrap, which removes it: without one, systemd would preset every unit at the first boot.
        run([*enter, "sh", "-c", 'echo 5669726761207465737420677565737f > "$1/etc/machine-id"', "sh", root])
        with step("writing the disk image"):
            with open(path, "wb") as file:
                file.truncate(SIZE)
            run([*enter, "mke2fs", "-q", "-F", "-t", "ext4", "-L", "root", "-m", "0",
                 "-E", "lazy_itable_init=0,lazy_journal_init=0", "-d", root, path],
                env={**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"})
    finally:
        listing.unlink(missing_ok=True)
        if root.exists():
            run([*enter, "rm", "-rf", "--one-file-system", root])
    say(f"the image holds {os.stat(path).st_blocks // 2048} MiB")


def hooks():
    """What mmdebstrap does to the new root, `$1`, at the end."""
    overlay = SCRIPTS / "guest.d/debian"
    lines = [
        f'cp -r --no-preserve=ownership "{overlay}/." "$1/"',
        'chroot "$1" passwd -d root > /dev/null',
        'chroot "$1" systemctl --quiet disable systemd-networkd.service acpid.socket acpid.path ssh.service',
        'chroot "$1" systemctl --quiet enable acpid.service',
        'chroot "$1" systemctl --quiet set-default multi-user.target',
        f'chroot "$1" systemctl --quiet mask {" ".join(MASKED)}',
        'rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/* "$1"/var/log/*',
        # Their stamps must not be older than /usr, or systemd runs its updates at each first boot.
        'touch "$1/etc/.updated" "$1/var/.updated"',
        'mkdir -p "$1/usr/lib/modules"',
    ]
    for name in kernels.GUEST_KERNELS:
        modules = kernels.fetch(name).modules
        lines.append(f'cp -r --no-preserve=ownership "{modules}" "$1/usr/lib/modules/"')
    return [f"--customize-hook={line}" for line in lines]
