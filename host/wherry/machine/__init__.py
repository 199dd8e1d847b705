"""QEMU: find, probe, command line, QMP, boot, hot-plug. Only this package knows qemu.qmp."""
