"""What this host is: its facts, GPUs, memory as an engine finds it, ports, packages, the Docker daemon; and how it gets Docker."""
