"""Initramfs archives: the "newc" cpio format, as the kernel's documentation (initramfs buffer format) gives it.

Written here so that device nodes and owners need no privilege, and so that the same input gives the same bytes.
"""

import stat


class Archive:
    """An archive being filled; `bytes()` ends it. Directories above a name are added by themselves."""

    def __init__(self):
        self.parts = []
        self.names = set()
        self.inode = 0

    def add(self, name, mode, data=b"", device=(0, 0)):
        """Adds one entry; `mode` includes the file type."""
        name = name.strip("/")
        if name in self.names:
            return
        parent = name.rpartition("/")[0]
        if parent:
            self.directory(parent)
        self.names.add(name)
        self.entry(name, mode, data, device)

    def entry(self, name, mode, data, device):
        """Writes header, name and data, each padded to four bytes."""
        self.inode += 1
        links = 2 if stat.S_ISDIR(mode) else 1
        path = name.encode() + b"\0"
        fields = (self.inode, mode, 0, 0, links, 0, len(data), 0, 0, *device, len(path), 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + path
        self.parts += [head, b"\0" * (-len(head) % 4), data, b"\0" * (-len(data) % 4)]

    def directory(self, name, mode=0o755):
        """Adds a directory."""
        self.add(name, stat.S_IFDIR | mode)

    def file(self, name, data, mode=0o644):
        """Adds a regular file with the given content."""
        self.add(name, stat.S_IFREG | mode, data.encode() if isinstance(data, str) else data)

    def link(self, name, target):
        """Adds a symbolic link."""
        self.add(name, stat.S_IFLNK | 0o777, target.encode())

    def node(self, name, major, minor):
        """Adds a character device."""
        self.add(name, stat.S_IFCHR | 0o600, device=(major, minor))

    def bytes(self):
        """The whole archive, with its trailer, padded so that another may follow it."""
        self.entry("TRAILER!!!", 0, b"", (0, 0))
        data = b"".join(self.parts)
        return data + b"\0" * (-len(data) % 512)
