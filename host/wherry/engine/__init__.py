"""The long-lived process of one machine: containers, execs, events, state."""
