"""Distribution on the host: references, registry client, OCI layout store, EROFS writer."""
