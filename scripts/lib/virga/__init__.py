"""What the scripts of this directory share. Standard library only; Debian's Python 3.11 or later."""
