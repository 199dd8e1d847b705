"""The engine as a service of the user's session: its socket is there after a reboot.

`definition` says what is to be run, `rendering` writes it as systemd, launchd and Windows want it
(pure), `systemd`, `launchd` and `logon` put it in place; `managers` chooses. `farewell` is a
process of its own. Otherwise nothing here talks to an engine: that is the command's affair.
"""
