"""The command line: one small module per noun, loaded lazily. Only this package exits or knows click and rich."""
