"""The keeper: a small process that holds QEMU's connections where QEMU cannot inherit sockets.

On Windows a chardev can only be TCP. Neither may QEMU listen (a guest reaches the host's loopback,
and QEMU asks nobody who he is), nor may it dial a port again that a stranger could have taken
meanwhile. So it dials once, while it is paused: the keeper, which started it, takes the four
connections that are proved to be QEMU's, closes its listeners, and from then on offers each
connection on a named pipe that only this user can open. It outlives the engine and ends with QEMU;
should it die first, QEMU dies with it. After the first second no port is open anywhere.
docs/windows.md

`python -m wherry.keeper PLAN`. Knows only `osutil` and `errors`, so that it is small. Runs on Linux
too, where its tests are.
"""
