"""What each setting is worth: the records for people, and their proof on the built image."""
