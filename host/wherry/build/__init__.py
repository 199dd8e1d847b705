"""Making images: a Debian from signed packages. Knows the image store and the package archive."""
