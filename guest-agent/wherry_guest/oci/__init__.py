"""The container core as an OCI runtime's command line: `python -m wherry_guest.oci`.

Only what a command line needs is here: arguments, the state directory, the split of create and
start, the console socket. Spec, plan, steps and the clone are `wherry_guest.core`'s, as for PID 1.
"""
