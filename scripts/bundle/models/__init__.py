"""Models on this host: from the hub or a folder, verified, into the store."""
