"""A deployment as a folder for another host: packed here, verified and started there."""
