"""linuxkit.yml -> kernel and initrd, from signed distribution packages; any OS, no root."""
