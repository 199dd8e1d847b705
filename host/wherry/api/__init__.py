"""The Docker Engine API over HTTP. Translates; holds no state."""
