"""A deployment for more than one host: the same Settings, written for other orchestrators than Compose."""
