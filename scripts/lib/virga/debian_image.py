"""The Debian that guests boot from a disk."""


def image():
    """To come."""
    raise NotImplementedError
