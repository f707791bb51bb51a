"""Can this host run the deployment: one check after the other, nothing changed."""
