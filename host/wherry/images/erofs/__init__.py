"""Layers as EROFS images: `write_erofs` makes a file system that Linux mounts of a layer's tar."""

from wherry.images.erofs.tree import Limits
from wherry.images.erofs.writer import FORMAT, ErofsInfo, layer_uuid, write_erofs
from wherry.images.tar import LayerError

__all__ = ["FORMAT", "ErofsInfo", "LayerError", "Limits", "layer_uuid", "write_erofs"]
