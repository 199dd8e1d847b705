"""`wherry image`: everything about images under one noun."""

from __future__ import annotations

import click

from wherry.cli.lazy import LazyGroup

_MODULES = {
    "bootstrap": "wherry.cli.bootstrap",
    "diff": "wherry.cli.image_contents",
    "explore": "wherry.cli.image_contents",
    "history": "wherry.cli.images",
    "import": "wherry.cli.archives",
    "inspect": "wherry.cli.image_upkeep",
    "load": "wherry.cli.archives",
    "log": "wherry.cli.image_upkeep",
    "ls": "wherry.cli.images:images_command",
    "prune": "wherry.cli.image_upkeep",
    "pull": "wherry.cli.images",
    "push": "wherry.cli.push",
    "rm": "wherry.cli.images:rmi_command",
    "save": "wherry.cli.archives",
    "tag": "wherry.cli.images",
    "verify": "wherry.cli.image_upkeep",
}
_SUMMARIES = {
    "bootstrap": "Make a Debian image from signed packages, without a registry",
    "diff": "Show the files that differ between two images",
    "explore": "Show what each layer adds, changes, removes and wastes",
    "history": "Show the layers of an image",
    "import": "Make an image of the tar of a root file system",
    "inspect": "Show everything about images, as JSON",
    "load": "Load the images of an archive",
    "log": "Show what a tag pointed to, and when",
    "ls": "List images",
    "prune": "Remove images that nobody uses",
    "pull": "Fetch an image from a registry",
    "push": "Send an image to a registry",
    "rm": "Remove images",
    "save": "Write images to an archive",
    "tag": "Give an image another name",
    "verify": "Check what is stored, and repair it",
}


@click.group("image", cls=LazyGroup, modules=_MODULES, summaries=_SUMMARIES)
def image_command() -> None:
    """Manage images."""
