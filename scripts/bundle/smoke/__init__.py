"""Does the running service answer as an API client expects."""
