"""The deployment as it runs: up, down, restart, status, and what its engine's log says."""
