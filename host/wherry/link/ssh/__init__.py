"""SSH into the machine: keys, and a transport that carries the wire in an SSH channel.

The only package that knows paramiko, which takes a while to import: its modules are imported when
they are used. The rule: both keys are known beforehand, nobody is trusted on first use.
"""
