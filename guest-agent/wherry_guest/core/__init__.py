"""The container core: an OCI runtime spec in, a running container out."""
