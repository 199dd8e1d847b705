"""The command line: one small module per noun, loaded lazily.

Only this package exits the process, and only it knows click and rich.
"""
