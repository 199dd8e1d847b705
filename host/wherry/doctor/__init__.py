"""Examining an installation from outside: it needs no engine, starts none, and outlives a hung one.

A process of its own (`python -m wherry.doctor`), so that the command line stays quick and can give
up on it. May import every room but `api`, `cli` and `engine`; nobody imports it.
"""
