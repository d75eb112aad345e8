"""The command ``kodojo``."""
