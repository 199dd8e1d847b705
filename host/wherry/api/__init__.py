"""The Docker Engine API over HTTP. Translates requests to `wherry.engine`; holds no state."""
