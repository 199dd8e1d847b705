"""Builds the VM image of amd64 from the packages that are there; prints its key and file hashes."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from wherry_image import build_image

image = build_image(arch="amd64", packages=Path(sys.argv[1]), out=Path(sys.argv[2]))
print(image.key)
for file in (image.initrd, image.kernel):
    print(hashlib.sha256(file.read_bytes()).hexdigest())
