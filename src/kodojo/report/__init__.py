"""What kodojo knows, formatted for people and for programs. Nothing here prints."""
